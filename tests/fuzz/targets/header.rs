//! A file's header: metadata, tensor table, and the plan made of them.
#![no_main]

use std::hint::black_box;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use rynd::engine::{Engine, EngineConfig};
use rynd::gguf::Gguf;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(Path::new("fuzz.gguf"), bytes.into()) else { return };
    gguf.metadata().for_each(|(_, value)| drop(black_box(value.to_string())));
    gguf.tensors().iter().for_each(|tensor| drop(black_box(gguf.bytes(tensor).len())));
    let _ = black_box(Engine::outline(&gguf, &EngineConfig::default()));
});
