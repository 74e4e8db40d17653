//! The GGUF module against files that llama.cpp wrote, against the decoder of gguf-rs, and against damaged files made
//! by hand here. Files are built from bytes where the writer under test must not be its own judge.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod damage;
mod raw;
mod shards;
mod values;
mod writing;

use std::path::{Path, PathBuf};

use rynd::gguf::{Advice, Gguf, Writer};
use rynd_quant::Format;

use raw::{Raw, TempDir, fixtures, parse};

const GOLDEN: &str = "tests/fixtures/quantized/qwen2-Q4_K_M.gguf";

#[test]
fn a_file_of_another_writer_reads_as_its_author_describes_it() {
    // The values are what the Python package gguf 0.19 prints for this file.
    let g = Gguf::open(Path::new(GOLDEN)).unwrap();
    assert_eq!(g.version(), 3);
    assert_eq!(g.file_bytes(), 671_648);
    assert_eq!(g.path(), Path::new(GOLDEN));
    assert_eq!(g.shards(), [PathBuf::from(GOLDEN)]);

    let keys: Vec<&str> = g.metadata().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), 23);
    assert_eq!((keys[0], keys[5], keys[22]), ("general.architecture", "qwen2.context_length", "general.file_type"));
    assert_eq!(g.str("general.architecture").unwrap(), "qwen2");
    assert_eq!(g.u32("qwen2.context_length").unwrap(), 2048);
    assert_eq!(g.f32("qwen2.attention.layer_norm_rms_epsilon").unwrap(), 1e-6);
    assert!(!g.bool("tokenizer.ggml.add_bos_token").unwrap());

    let tokens = g.strs("tokenizer.ggml.tokens").unwrap();
    assert_eq!((tokens.len(), tokens[0], tokens[511]), (512, "!", "<|file_sep|>"));
    let types = g.i32s("tokenizer.ggml.token_type").unwrap();
    assert_eq!((types.len(), types[0], types[511]), (512, 1, 3));
    let merges: Vec<&[u8]> = g.byte_strings("tokenizer.ggml.merges").unwrap().collect();
    assert_eq!((merges.len(), merges[246]), (247, "Ġf rom".as_bytes()));

    assert_eq!(g.tensors().len(), 27);
    let t = g.tensor("blk.1.attn_v.weight").unwrap();
    assert_eq!(
        (t.format, t.shape.as_slice(), t.bytes, t.shard, t.offset),
        (Format::Q6_K, &[256, 128][..], 26880, 0, 516_256)
    );
    assert_eq!(t.elements(), 32768);
    assert_eq!(g.tensor_index("output.weight"), Some(0));
    let file = std::fs::read(GOLDEN).unwrap();
    assert_eq!(g.bytes(t), &file[516_256..][..26880]);
    assert!(g.tensor("blk.9.attn_v.weight").is_none());
}

#[test]
fn the_decoder_of_gguf_rs_sees_the_same_files() {
    for path in fixtures() {
        let ours = Gguf::open(&path).unwrap();
        let mut container = gguf_rs::get_gguf_container_array_size(path.to_str().unwrap(), u64::MAX).unwrap();
        let theirs = container.decode().unwrap();
        assert_eq!(ours.metadata().count(), theirs.metadata().len());
        for (key, value) in ours.metadata() {
            assert_eq!(&serde_json::to_value(value).unwrap(), &theirs.metadata()[key], "{} {key}", path.display());
        }
        assert_eq!(ours.tensors().len(), theirs.tensors().len());
        for (a, b) in ours.tensors().iter().zip(theirs.tensors()) {
            let place = (theirs.data_offset() + b.offset) as usize;
            assert_eq!((&a.name, a.format.ggml_id(), &a.shape, a.offset), (&b.name, b.kind, &b.shape, place));
        }
    }
}

#[test]
fn copying_a_file_key_by_key_and_tensor_by_tensor_gives_the_same_bytes() {
    let dir = TempDir::new("copy");
    for (i, path) in fixtures().into_iter().enumerate() {
        let g = Gguf::open(&path).unwrap();
        let copy = dir.file(&format!("{i}.gguf"));
        let mut w = Writer::create(&copy).unwrap();
        for (key, value) in g.metadata() {
            w.set(key, value.clone()).unwrap();
        }
        for t in g.tensors() {
            w.declare(&t.name, t.format, &t.shape).unwrap();
        }
        for t in g.tensors() {
            w.write_tensor(&t.name, g.bytes(t)).unwrap();
        }
        w.finish().unwrap();
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&path).unwrap(), "{} differs", path.display());
    }
}

#[test]
fn version_2_reads_like_version_3() {
    let mut bytes = std::fs::read(GOLDEN).unwrap();
    bytes[4] = 2;
    let g = parse(bytes).unwrap();
    assert_eq!((g.version(), g.tensors().len(), g.u32("qwen2.block_count").unwrap()), (2, 27, 2));
}

#[test]
fn a_file_without_keys_and_tensors_is_a_file() {
    let g = parse(Raw::header(3, 0, 0).0).unwrap();
    assert_eq!((g.metadata().count(), g.tensors().len()), (0, 0));
}

#[test]
fn a_clone_outlives_the_original_in_another_thread() {
    let g = Gguf::open(Path::new(GOLDEN)).unwrap();
    let (clone, value) = (g.clone(), g.get("tokenizer.ggml.pre").unwrap().clone());
    drop(g);
    let tensors = std::thread::spawn(move || clone.tensors().len()).join().unwrap();
    assert_eq!((tensors, value.as_str()), (27, Some("qwen2")));
}

#[test]
fn advice_changes_no_byte() {
    let g = Gguf::open(Path::new(GOLDEN)).unwrap();
    let before: Vec<u8> = g.tensors().iter().flat_map(|t| g.bytes(t).to_vec()).collect();
    for advice in [Advice::WillNeed, Advice::DontNeed, Advice::Random, Advice::Sequential, Advice::Normal] {
        for t in g.tensors() {
            g.advise(t, advice);
            g.advise_range(t, t.bytes / 2..t.bytes + 99, advice);
            g.advise_range(t, t.bytes..t.bytes, advice);
        }
        let after: Vec<u8> = g.tensors().iter().flat_map(|t| g.bytes(t).to_vec()).collect();
        assert!(after == before, "{advice:?}");
    }
}
