//! Models whose numbers are none: damaged weights, metadata that can not be, shapes at the edge. Each is one error that says
//! where it began, or the right logits; never a plausible answer.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rynd::backend::KvFormat;
use rynd::engine::{Engine, EngineConfig, GpuChoice, GpuOptions, Session, Wanted};
use rynd::gguf::{Gguf, Value, Writer};
use rynd_quant::Format;

const IDS: [u32; 5] = [7, 3, 11, 4, 9];

fn golden(model: &str) -> Gguf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(model).join("model.gguf");
    Gguf::open(&path).unwrap()
}

/// A copy of a model: `keys` replace or add metadata, `values` may change a tensor's values, `format` gives it another format
/// where its rows allow.
fn copy(
    model: &Gguf,
    path: &Path,
    keys: &[(&str, Value)],
    format: Option<Format>,
    values: impl Fn(&str, &mut Vec<f32>),
) -> Gguf {
    let mut writer = Writer::create(path).unwrap();
    for (key, value) in model.metadata() {
        writer.set(key, value.clone()).unwrap();
    }
    for (key, value) in keys {
        writer.set(key, value.clone()).unwrap();
    }
    let chosen = |tensor: &rynd::gguf::TensorInfo| match format {
        Some(format) if tensor.shape.len() > 1 && (tensor.shape[0] as usize).is_multiple_of(format.block_len()) => {
            format
        }
        _ => Format::F32,
    };
    for tensor in model.tensors() {
        writer.declare(&tensor.name, chosen(tensor), &tensor.shape).unwrap();
    }
    for tensor in model.tensors() {
        let mut floats = vec![0.0; tensor.shape.iter().product::<u64>() as usize];
        tensor.format.decode(model.bytes(tensor), &mut floats);
        values(&tensor.name, &mut floats);
        writer.write_tensor(&tensor.name, &encoded(chosen(tensor), tensor.shape[0] as usize, &floats)).unwrap();
    }
    writer.finish().unwrap();
    Gguf::open(path).unwrap()
}

/// Blocks of these values; a block with one that is not finite gets a scale that is not.
fn encoded(format: Format, k: usize, floats: &[f32]) -> Vec<u8> {
    if format == Format::F32 {
        return floats.iter().flat_map(|x| x.to_le_bytes()).collect();
    }
    assert_eq!(format, Format::Q8_0);
    let finite: Vec<f32> = floats.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect();
    let mut blocks = vec![0; finite.len() / format.block_len() * format.block_bytes()];
    format.encode(&finite, k, &mut blocks, None).unwrap();
    for (block, floats) in blocks.chunks_exact_mut(format.block_bytes()).zip(floats.chunks_exact(format.block_len())) {
        if floats.iter().any(|x| !x.is_finite()) {
            block[..2].copy_from_slice(&0x7e00_u16.to_le_bytes());
        }
    }
    blocks
}

fn config(exact: bool, kv: KvFormat) -> EngineConfig {
    let gpu = GpuOptions { choice: GpuChoice::Off, ..GpuOptions::default() };
    EngineConfig { exact, kv, threads: Some(2), batch: 16, context: Some(64), gpu, ..EngineConfig::default() }
}

/// The error of a run that must have one.
fn refused(gguf: &Gguf, config: &EngineConfig, what: &str) -> String {
    match logits(gguf, config) {
        Ok(_) => panic!("{what}: logits came out"),
        Err(error) => error,
    }
}

/// All logits of a few tokens.
fn logits(gguf: &Gguf, config: &EngineConfig) -> Result<Vec<f32>, String> {
    let mut engine = Engine::load(gguf.path(), config).map_err(|e| e.to_string())?;
    let mut all = vec![];
    let mut session = Session::new();
    let run = session.extend(&mut engine, &IDS, Wanted::All, |_, logits| {
        all.extend_from_slice(logits);
        ControlFlow::Continue(())
    });
    run.map_err(|e| e.to_string())?;
    Ok(all)
}

#[test]
fn one_weight_that_is_no_number_is_an_error_that_names_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let configs = [config(true, KvFormat::F32), config(false, KvFormat::F16), config(false, KvFormat::Q8_0)];
    for name in ["qwen2", "qwen3moe", "gemma3"] {
        let model = golden(name);
        let tensors: Vec<String> = model.tensors().iter().map(|t| t.name.clone()).collect();
        let wanted = tensors.iter().filter(|name| !name.starts_with("blk.") || name.starts_with("blk.1."));
        for tensor in wanted {
            for format in [None, Some(Format::Q8_0)] {
                for bad in [f32::NAN, f32::INFINITY] {
                    let row = model.tensor(tensor).unwrap().shape[0] as usize;
                    let damaged = copy(&model, &path, &[], format, |name, values| {
                        if name == tensor {
                            // In a row that the tokens read, where it is the table; in every expert's first row.
                            let at = if name == "token_embd.weight" { IDS[1] as usize * row + 1 } else { 1 % row };
                            values[at] = bad;
                            if name.contains("_exps") {
                                let matrix = values.len() / model.u32("qwen3moe.expert_count").unwrap() as usize;
                                values.iter_mut().skip(at).step_by(matrix).for_each(|x| *x = bad);
                            }
                        }
                    });
                    for config in &configs {
                        let how = format!("{name} {tensor} {format:?} {bad} {:?} {}", config.kv, config.exact);
                        let error = refused(&damaged, config, &how);
                        assert!(error.contains(&format!("'{tensor}'")), "{how}: {error}");
                        assert!(error.contains("m.gguf"), "{how}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn scores_that_overflow_name_the_attention_that_made_them() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden("qwen2");
    let damaged = copy(&model, &folder.path().join("m.gguf"), &[], None, |name, values| {
        if name == "blk.1.attn_q.weight" || name == "blk.1.attn_k.weight" {
            values.iter_mut().for_each(|x| *x *= 1e25);
        }
    });
    let error = refused(&damaged, &config(true, KvFormat::F32), "overflow");
    assert!(error.contains("attention of layer 1"), "{error}");
}

#[test]
fn every_command_that_runs_a_model_ends_with_the_error_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    copy(&golden("qwen2"), &path, &[], None, |name, values| {
        if name == "blk.0.attn_k.weight" {
            values.fill(f32::NAN);
        }
    });
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "fn main() { let x = 1; }\n".repeat(60)).unwrap();
    let (m, text) = (path.display().to_string(), text.display().to_string());
    let out = folder.path().join("out").display().to_string();
    for arguments in [
        &["run", &m, "-p", "hello", "--raw", "-n", "4"][..],
        &["run", &m, "-p", "hello", "--raw", "-n", "4", "--temp", "0", "--exact"],
        &["logits", &m, "--ids", "1,2,3", "--all", "-o", &out],
        &["bench", &m, "-p", "16", "-n", "4", "-r", "1"],
        &["imatrix", &m, "-f", &text, "-c", "32", "--chunks", "1", "-o", &out],
        &["perplexity", &m, "-f", &text, "-c", "32", "--chunks", "1"],
        &["perplexity", &m, "-f", &text, "-c", "32", "--chunks", "1", "--save-logits", &out],
        &["chat", &m, "--temp", "0"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
        command.args(arguments).env("RYND_HOME", folder.path().join("home")).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"hello\n");
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains("'blk.0.attn_k.weight' is no number"), "{arguments:?}: {stderr}");
        assert!(!Path::new(&out).exists(), "{arguments:?}");
    }
}

#[test]
fn metadata_that_can_not_be_computed_with_is_refused_by_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let model = golden("qwen2");
    for (key, bad) in [
        ("qwen2.attention.layer_norm_rms_epsilon", &[f32::NAN, f32::INFINITY, 0.0, -1e-5][..]),
        ("qwen2.rope.freq_base", &[f32::NAN, f32::INFINITY, 0.0, -1.0, -10_000.0]),
    ] {
        for &value in bad {
            let damaged = copy(&model, &path, &[(key, value.into())], None, |_, _| {});
            let error = refused(&damaged, &config(true, KvFormat::F32), key);
            assert!(error.contains(key), "{key} {value}: {error}");
        }
    }
    let yarn = |key: &str, value: f32| {
        let key = format!("qwen2.rope.scaling.{key}");
        let keys = [
            ("qwen2.rope.scaling.type", Value::from("yarn")),
            ("qwen2.rope.scaling.factor", 4.0_f32.into()),
            (key.as_str(), value.into()),
        ];
        logits(&copy(&model, &path, &keys, None, |_, _| {}), &config(true, KvFormat::F32)).err()
    };
    assert_eq!(yarn("attn_factor", 1.0), None);
    for (key, value) in [
        ("attn_factor", f32::NAN),
        ("attn_factor", 0.0),
        ("yarn_beta_fast", f32::NAN),
        ("yarn_beta_slow", -1.0),
        ("factor", f32::NAN),
        ("factor", 0.5),
    ] {
        let error = yarn(key, value).expect("a refusal");
        assert!(error.contains("qwen2.rope."), "{key} {value}: {error}");
    }
}

#[test]
fn numbers_beyond_every_tensor_are_refused_before_anything_is_built() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    for (name, key, bad) in [
        ("qwen2", "qwen2.embedding_length", &[1 << 31, u32::MAX - 1][..]),
        ("qwen2", "qwen2.attention.key_length", &[1 << 30, u32::MAX - 1, u32::MAX - 3]),
        ("qwen2", "qwen2.attention.value_length", &[1 << 30]),
        ("qwen2", "qwen2.attention.head_count", &[1 << 31]),
        ("qwen2", "qwen2.rope.dimension_count", &[1 << 30, u32::MAX - 1]),
        ("qwen2", "qwen2.feed_forward_length", &[1 << 31]),
        ("qwen2", "qwen2.block_count", &[1 << 31, u32::MAX]),
        ("qwen3moe", "qwen3moe.expert_count", &[1 << 31, u32::MAX]),
        ("qwen3moe", "qwen3moe.expert_feed_forward_length", &[1 << 31]),
        ("qwen3moe", "qwen3moe.expert_used_count", &[1 << 31]),
    ] {
        for &value in bad {
            let damaged = copy(&golden(name), &path, &[(key, value.into())], None, |_, _| {});
            let begun = Instant::now();
            let error = refused(&damaged, &config(true, KvFormat::F32), key);
            // Generous: what was built in vain took 15 seconds on an idle machine.
            assert!(begun.elapsed() < Duration::from_secs(10), "{key} {value}");
            assert!(error.contains("m.gguf"), "{key} {value}: {error}");
        }
    }
    // The context is no tensor's size: it is what may be asked for, and caches are made for what is.
    let long = copy(&golden("qwen2"), &path, &[("qwen2.context_length", u32::MAX.into())], None, |_, _| {});
    assert!(logits(&long, &config(true, KvFormat::F32)).is_ok());
}

#[test]
fn more_threads_than_could_ever_help_are_refused() {
    let golden = golden("qwen2");
    let m = golden.path().display().to_string();
    for arguments in [
        &["run", &m, "-p", "x", "-n", "1", "-t", "100000"][..],
        &["perplexity", &m, "-p", "x", "-t", "100000"],
        &["imatrix", &m, "-f", "-", "-o", "/dev/null", "-t", "100000"],
        &["quantize", &m, "/dev/null", "Q8_0", "-t", "100000"],
        &["plan", &m, "-t", "100000"],
        &["run", &m, "-p", "x", "-n", "1", "-t", "0"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_rynd")).args(arguments).stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains("threads"), "{arguments:?}: {stderr}");
    }
    // What may be asked for does run.
    let most = rynd::cores::most().to_string();
    let run = ["run", &m, "-p", "x", "--raw", "-n", "1", "--gpu", "off", "-t", &most];
    assert!(Command::new(env!("CARGO_BIN_EXE_rynd")).args(run).stdin(Stdio::null()).output().unwrap().status.success());
}

#[test]
fn a_window_of_zero_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let with = |tokens: u32| {
        let keys = [("gemma3.attention.sliding_window", Value::from(tokens))];
        let model = copy(&golden("gemma3"), &folder.path().join(format!("{tokens}.gguf")), &keys, None, |_, _| {});
        logits(&model, &config(true, KvFormat::F32)).unwrap()
    };
    assert_eq!(with(0), with(1 << 20));
    assert_ne!(with(2), with(1 << 20), "the window matters to these tokens");
}

#[test]
fn heads_of_up_to_1024_values_agree_in_every_cache() {
    let folder = tempfile::tempdir().unwrap();
    for head in [512, 576, 768, 1024] {
        let path = folder.path().join(format!("{head}.gguf"));
        wide_heads(head, &path);
        let gguf = Gguf::open(&path).unwrap();
        let exact = logits(&gguf, &config(true, KvFormat::F32)).unwrap();
        for kv in [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0] {
            let fast = logits(&gguf, &config(false, kv)).unwrap();
            let most = exact.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let error = exact.iter().zip(&fast).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(most > 0.1 && error <= 0.02 * most, "{head} {kv:?}: {error} of {most}");
        }
    }
}

/// A model of one layer with two query heads of this size over one.
fn wide_heads(head: u64, path: &Path) {
    let vocab = golden("llama");
    let (width, ff) = (64_u64, 64_u64);
    let tokens = vocab.tensor("token_embd.weight").unwrap().shape[1];
    let mut writer = Writer::create(path).unwrap();
    for (key, value) in vocab.metadata().filter(|(key, _)| !key.starts_with("llama.")) {
        writer.set(key, value.clone()).unwrap();
    }
    for (key, value) in [
        ("block_count", 1),
        ("embedding_length", width as u32),
        ("feed_forward_length", ff as u32),
        ("context_length", 256),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", head as u32),
        ("attention.value_length", head as u32),
        ("rope.dimension_count", head as u32),
        ("vocab_size", tokens as u32),
    ] {
        writer.set(&format!("llama.{key}"), value).unwrap();
    }
    writer.set("llama.attention.layer_norm_rms_epsilon", 1e-5_f32).unwrap();
    let tensors = [
        ("token_embd.weight", vec![width, tokens]),
        ("output_norm.weight", vec![width]),
        ("output.weight", vec![width, tokens]),
        ("blk.0.attn_norm.weight", vec![width]),
        ("blk.0.attn_q.weight", vec![width, 2 * head]),
        ("blk.0.attn_k.weight", vec![width, head]),
        ("blk.0.attn_v.weight", vec![width, head]),
        ("blk.0.attn_output.weight", vec![2 * head, width]),
        ("blk.0.ffn_norm.weight", vec![width]),
        ("blk.0.ffn_gate.weight", vec![width, ff]),
        ("blk.0.ffn_up.weight", vec![width, ff]),
        ("blk.0.ffn_down.weight", vec![ff, width]),
    ];
    for (name, shape) in &tensors {
        writer.declare(name, Format::F32, shape).unwrap();
    }
    let mut state = 9_u32;
    for (name, shape) in &tensors {
        let scale = if shape.len() == 1 { 0.0 } else { (3.0 / shape[0] as f32).sqrt() };
        let values = (0..shape.iter().product::<u64>()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            if scale == 0.0 { 1.0 } else { noise * scale }
        });
        writer.write_tensor(name, &values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    }
    writer.finish().unwrap();
}
