//! `rynd::quantize` from file to file: formats and errors against llama-quantize's, metadata, splits, and everything
//! that must be refused with the input untouched and no output left behind.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "golden_case/wide.rs"]
mod wide;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rynd::gguf::{Gguf, Value, Writer};
use rynd::quantize::{self, FileType, Imatrix, Job, Options, QuantizeError, Recipe, Source, stream};
use rynd_quant::Format;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn model(name: &str) -> PathBuf {
    if name == "qwen3moe_wide" { wide::path() } else { fixture(&format!("models/{name}/model.gguf")) }
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("rynd-quantize-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn options(file_type: &str) -> Options {
    Options {
        recipe: Recipe::new(FileType::from_name(file_type).unwrap()),
        imatrix: None,
        allow_requantize: false,
        split_bytes: None,
    }
}

fn with_imatrix(file_type: &str) -> Options {
    let path = fixture("quantize/qwen3moe.imatrix.gguf");
    let mut options = options(file_type);
    options.recipe.weighted = true;
    options.imatrix = Some((Imatrix::read(&path).unwrap(), "calibration.gguf".into()));
    options
}

fn quantize(input: &Path, out: &Path, options: &Options) -> Result<Gguf, QuantizeError> {
    let job = Job::new(Source::open(input)?, options)?;
    quantize::quantize(&job, 2, out, |_| ControlFlow::Continue(()))?;
    Ok(Gguf::open(&job.paths(out)[0]).unwrap())
}

fn weights(gguf: &Gguf, name: &str) -> Vec<f32> {
    let tensor = gguf.tensor(name).unwrap_or_else(|| panic!("{name}"));
    let mut weights = vec![0.0; tensor.elements() as usize];
    tensor.format.decode(gguf.bytes(tensor), &mut weights);
    weights
}

fn rmse(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A GGUF of one architecture key and these F32 tensors.
fn write_model(path: &Path, tensors: &[(&str, &[u64], Vec<f32>)]) {
    let mut writer = Writer::create(path).unwrap();
    writer.set("general.architecture", "llama").unwrap();
    for (name, shape, _) in tensors {
        writer.declare(name, Format::F32, shape).unwrap();
    }
    for (name, _, weights) in tensors {
        let bytes: Vec<u8> = weights.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write_tensor(name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// Format and root mean squared error by tensor.
type Errors = BTreeMap<String, (String, f64)>;

#[test]
fn formats_and_errors_are_those_of_llama_quantize_or_better() {
    let text = std::fs::read_to_string(fixture("quantize/rmse.json")).unwrap();
    let reference: BTreeMap<String, BTreeMap<String, Errors>> = serde_json::from_str(&text).unwrap();
    let folder = folder("rmse");
    for (name, types) in &reference {
        let original = Gguf::open(&model(name)).unwrap();
        for (file_type, tensors) in types {
            let out = quantize(&model(name), &folder.join("out.gguf"), &options(file_type)).unwrap();
            for (tensor, (format, expected)) in tensors {
                assert_eq!(out.tensor(tensor).unwrap().format.name(), format, "{name} {file_type} {tensor}");
                let found = rmse(&weights(&original, tensor), &weights(&out, tensor));
                assert!(found <= expected * 1.005, "{name} {file_type} {tensor}: {found} against {expected}");
            }
        }
    }
}

#[test]
fn tensors_that_stay_keep_every_bit() {
    let out = quantize(&model("qwen2"), &folder("stay").join("out.gguf"), &options("Q4_K_M")).unwrap();
    let original = Gguf::open(&model("qwen2")).unwrap();
    for name in ["output_norm.weight", "blk.0.attn_q.bias", "blk.1.ffn_norm.weight"] {
        let [ours, theirs] = [&out, &original].map(|gguf| gguf.bytes(gguf.tensor(name).unwrap()).to_vec());
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn widening_and_narrowing_again_changes_nothing() {
    let folder = folder("widen");
    let wide = folder.join("f32.gguf");
    quantize(&model("qwen3moe"), &wide, &options("F32")).unwrap();
    let back = quantize(&wide, &folder.join("bf16.gguf"), &options("BF16")).unwrap();
    let original = Gguf::open(&model("qwen3moe")).unwrap();
    for tensor in original.tensors() {
        assert_eq!(back.bytes(back.tensor(&tensor.name).unwrap()), original.bytes(tensor), "{}", tensor.name);
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    let folder = folder("threads");
    let job = Job::new(Source::open(&model("qwen3moe")).unwrap(), &with_imatrix("Q3_K_M")).unwrap();
    let bytes = [1, 3].map(|threads| {
        let out = folder.join(format!("{threads}.gguf"));
        quantize::quantize(&job, threads, &out, |_| ControlFlow::Continue(())).unwrap();
        std::fs::read(out).unwrap()
    });
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn metadata_is_carried_over_and_says_how_the_file_was_made() {
    let out = quantize(&model("qwen3moe"), &folder("meta").join("out.gguf"), &with_imatrix("Q4_K_S")).unwrap();
    let original = Gguf::open(&model("qwen3moe")).unwrap();
    for (key, value) in original.metadata().filter(|(key, _)| *key != "general.file_type") {
        assert!(out.get(key) == Some(value), "{key}");
    }
    for (key, value) in [
        ("general.file_type", Value::from(14_u32)),
        ("general.quantization_version", 2_u32.into()),
        ("quantize.imatrix.file", "calibration.gguf".into()),
        ("quantize.imatrix.dataset", "text.py".into()),
        ("quantize.imatrix.entries_count", 16_u32.into()),
        ("quantize.imatrix.chunks_count", 6_u32.into()),
    ] {
        assert!(out.get(key) == Some(&value), "{key}: {:?}", out.get(key));
    }
}

#[test]
fn an_importance_matrix_lowers_the_error_that_it_weighs() {
    let folder = folder("weighted");
    let plain = quantize(&model("qwen3moe"), &folder.join("plain.gguf"), &options("Q4_K_S")).unwrap();
    let weighted = quantize(&model("qwen3moe"), &folder.join("weighted.gguf"), &with_imatrix("Q4_K_S")).unwrap();
    let original = Gguf::open(&model("qwen3moe")).unwrap();
    let (imatrix, _) = with_imatrix("Q4_K_S").imatrix.unwrap();
    let name = "blk.1.ffn_gate_exps.weight"; // (16 experts, 32 rows, 256 columns)
    let importance = imatrix.importance(name).unwrap();
    let error = |gguf: &Gguf| -> f64 {
        let pairs = weights(gguf, name).into_iter().zip(weights(&original, name)).enumerate();
        pairs.map(|(i, (a, b))| f64::from(importance[i / (32 * 256) * 256 + i % 256] * (a - b).powi(2))).sum()
    };
    let (plain, weighted) = (error(&plain), error(&weighted));
    assert!(weighted < 0.97 * plain, "{weighted} against {plain}");
}

#[test]
fn a_split_output_is_the_same_model_and_a_split_input_is_read_whole() {
    let folder = folder("split");
    let whole = quantize(&model("qwen2"), &folder.join("whole.gguf"), &options("Q8_0")).unwrap();
    let split = Options { split_bytes: Some(200_000), ..options("Q8_0") };
    let parts = quantize(&model("qwen2"), &folder.join("parts.gguf"), &split).unwrap();
    assert!(parts.shards().len() > 3, "{:?}", parts.shards());
    for tensor in whole.tensors() {
        assert_eq!(parts.bytes(parts.tensor(&tensor.name).unwrap()), whole.bytes(tensor), "{}", tensor.name);
    }
    assert_eq!(parts.get("split.tensors.count"), Some(&Value::from(whole.tensors().len() as i32)));

    let mut again = options("Q4_0");
    again.allow_requantize = true;
    let joined = quantize(&parts.shards()[2], &folder.join("joined.gguf"), &again).unwrap();
    assert_eq!(joined.shards().len(), 1);
    assert!(joined.metadata().all(|(key, _)| !key.starts_with("split.")));
    let direct = quantize(&folder.join("whole.gguf"), &folder.join("direct.gguf"), &again).unwrap();
    for tensor in direct.tensors() {
        assert_eq!(joined.bytes(joined.tensor(&tensor.name).unwrap()), direct.bytes(tensor), "{}", tensor.name);
    }
}

/// The error, and proof that nothing but the input is in the folder afterwards.
fn refused(folder: &Path, input: &Path, options: &Options) -> String {
    let before = (names(folder), std::fs::read(input).unwrap());
    let error = quantize(input, &folder.join("out.gguf"), options).expect_err("it should be refused").to_string();
    assert!((names(folder), std::fs::read(input).unwrap()) == before, "{:?}", names(folder));
    error
}

#[test]
fn what_is_quantised_already_needs_leave_to_be_quantised_again() {
    let error = refused(&folder("again"), &fixture("quantized/qwen2-Q4_K_M.gguf"), &options("Q3_K_S"));
    assert!(error.contains("is already Q") && error.contains("--allow-requantize"), "{error}");
    // The same format is a copy, and needs none.
    let input = fixture("quantized/qwen2-Q4_K_M.gguf");
    let out = quantize(&input, &folder("copy").join("out.gguf"), &options("Q4_K_M")).unwrap();
    let original = Gguf::open(&input).unwrap();
    for tensor in original.tensors() {
        assert_eq!(out.bytes(out.tensor(&tensor.name).unwrap()), original.bytes(tensor), "{}", tensor.name);
    }
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let folder = folder("nan");
    let input = folder.join("in.gguf");
    let mut weights = vec![0.5; 512 * 256];
    weights[300 * 256 + 17] = f32::NAN;
    write_model(&input, &[("blk.0.ffn_up.weight", &[256, 512], weights.clone())]);
    for file_type in ["Q4_K_M", "F16", "F32"] {
        let error = refused(&folder, &input, &options(file_type));
        assert!(error.contains("'blk.0.ffn_up.weight', row 300, column 17: the weight is NaN"), "{error}");
    }
    weights[300 * 256 + 17] = f32::INFINITY;
    write_model(&input, &[("blk.0.ffn_up.weight", &[256, 512], weights)]);
    let error = refused(&folder, &input, &options("Q6_K"));
    assert!(error.contains("row 300, column 17: the weight is inf"), "{error}");
    // A mask of infinities that stays as it is passes.
    write_model(&input, &[("mask.bias", &[4], vec![f32::NEG_INFINITY; 4])]);
    quantize(&input, &folder.join("mask.gguf"), &options("Q6_K")).unwrap();
}

#[test]
fn a_weight_beyond_f16_is_named_with_the_way_out() {
    let folder = folder("large");
    let input = folder.join("in.gguf");
    write_model(&input, &[("blk.0.ffn_up.weight", &[32, 2], vec![1e30; 64])]);
    let error = refused(&folder, &input, &options("F16"));
    assert!(error.contains("'blk.0.ffn_up.weight'") && error.contains("BF16"), "{error}");
}

#[test]
fn rows_that_fit_no_block_become_f16_and_only_an_order_for_them_is_refused() {
    let folder = folder("rows");
    let input = folder.join("in.gguf");
    write_model(
        &input,
        &[("blk.0.ffn_up.weight", &[20, 4], vec![0.5; 80]), ("token_embd.weight", &[20, 4], vec![0.5; 80])],
    );
    let mut options = options("Q4_K_M");
    let out = quantize(&input, &folder.join("fits.gguf"), &options).unwrap();
    assert_eq!(out.tensor("blk.0.ffn_up.weight").unwrap().format, Format::F16);
    options.recipe.embedding = Some(Format::Q4_K);
    let error = refused(&folder, &input, &options);
    assert!(error.contains("'token_embd.weight' has rows of 20") && error.contains("Q4_K"), "{error}");
}

#[test]
fn very_low_formats_want_an_importance_matrix() {
    let error = refused(&folder("needs"), &model("qwen2"), &options("IQ2_XS"));
    assert!(error.contains("blk.0.") && error.contains("rynd imatrix") && error.contains("--imatrix"), "{error}");
}

#[test]
fn a_matrix_of_another_model_is_refused() {
    let folder = folder("misfit");
    let mut options = with_imatrix("Q4_K_M");
    // Same names, another number of columns.
    let input = folder.join("in.gguf");
    write_model(&input, &[("blk.0.attn_q.weight", &[512, 8], vec![0.5; 4096])]);
    let error = refused(&folder, &input, &options);
    assert!(error.contains("calibration.gguf") && error.contains("'blk.0.attn_q.weight'"), "{error}");
    // No name in common.
    write_model(&input, &[("layers.0.weight", &[512, 8], vec![0.5; 4096])]);
    let error = refused(&folder, &input, &options);
    assert!(error.contains("nothing for any tensor"), "{error}");
    // Values that are no importance.
    let (mut imatrix, path) = options.imatrix.take().unwrap();
    imatrix.entries.get_mut("blk.0.attn_q.weight").unwrap().sums[3] = f32::NAN;
    let file = folder.join("nan.gguf");
    imatrix.write(&file).unwrap();
    assert_eq!(path, Path::new("calibration.gguf"));
    let error = Imatrix::read(&file).unwrap_err().to_string();
    assert!(error.contains("nan.gguf") && error.contains("'blk.0.attn_q.weight' holds NaN"), "{error}");
}

#[test]
fn the_output_may_not_be_the_input() {
    let folder = folder("same");
    let input = folder.join("in.gguf");
    std::fs::copy(model("qwen2"), &input).unwrap();
    let job = Job::new(Source::open(&input).unwrap(), &options("Q8_0")).unwrap();
    for out in [input.clone(), folder.join(".").join("in.gguf")] {
        let error = quantize::quantize(&job, 1, &out, |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, QuantizeError::SameFile { .. }), "{error}");
    }
    assert!(std::fs::read(&input).unwrap() == std::fs::read(model("qwen2")).unwrap());
    assert_eq!(names(&folder), ["in.gguf"]);
}

#[test]
fn breaking_off_leaves_nothing_behind() {
    let folder = folder("break");
    let job = Job::new(Source::open(&model("qwen2")).unwrap(), &options("Q8_0")).unwrap();
    let mut seen = 0;
    let result = quantize::quantize(&job, 2, &folder.join("out.gguf"), |_| {
        seen += 1;
        if seen == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(QuantizeError::Interrupted)));
    assert_eq!(names(&folder), [""; 0]);
}

/// A disk with room for so many bytes.
struct SmallDisk(usize);

impl Write for SmallDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let n = bytes.len().min(self.0);
        self.0 -= n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_one_clear_error() {
    let job = Job::new(Source::open(&model("qwen2")).unwrap(), &options("Q8_0")).unwrap();
    for room in [0, 1000, 300_000] {
        let error =
            stream::run(&job, 2, &mut SmallDisk(room), Path::new("disk/out.gguf"), |_| ControlFlow::Continue(()));
        let error = error.unwrap_err();
        let QuantizeError::Write { cause, bytes, .. } = &error else { panic!("{error}") };
        assert_eq!((cause.kind(), *bytes), (io::ErrorKind::StorageFull, job.bytes()));
        assert!(error.to_string().contains("disk/out.gguf"), "{error}");
    }
}

#[test]
fn an_input_that_is_cut_short_under_way_is_an_error() {
    let folder = folder("cut");
    let input = folder.join("in.gguf");
    std::fs::copy(model("qwen2"), &input).unwrap();
    let job = Job::new(Source::open(&input).unwrap(), &options("Q8_0")).unwrap();
    std::fs::OpenOptions::new().write(true).open(&input).unwrap().set_len(1_000_000).unwrap();
    let error = quantize::quantize(&job, 2, &folder.join("out.gguf"), |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, QuantizeError::Read { .. }), "{error}");
    assert_eq!(names(&folder), ["in.gguf"]);
}
