//! Variants of models whose references are kept here: other tensors, the same numbers.
//!
//! `_fused`: gate and up of the experts in one tensor, and q, k and v of attention in one. `_guessing`: another layer behind the
//! last, for guessing further tokens, which no pass computes, and a period in place of the list of recurrent layers.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rynd::gguf::{Gguf, Writer};
use rynd_quant::Format;

use super::fixture;

/// The model whose references a variant has.
pub fn parent(name: &str) -> &str {
    name.strip_suffix("_fused").or_else(|| name.strip_suffix("_guessing")).unwrap_or(name)
}

/// The variant's file, written once a process; `None` for a model that has one of its own.
pub fn path(name: &str) -> Option<PathBuf> {
    static WRITING: Mutex<()> = Mutex::new(());
    let parent = parent(name);
    if parent == name {
        return None;
    }
    let _one = WRITING.lock().unwrap();
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.gguf", std::process::id()));
    if !path.exists() {
        let gguf = Gguf::open(&fixture(&format!("models/{parent}/model.gguf"))).unwrap();
        match name.ends_with("_fused") {
            true => fused(&gguf, &path),
            false => guessing(&gguf, &path),
        }
    }
    Some(path)
}

struct Tensor {
    name: String,
    format: Format,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

fn tensors(gguf: &Gguf) -> Vec<Tensor> {
    let tensor = |t: &rynd::gguf::TensorInfo| Tensor {
        name: t.name.clone(),
        format: t.format,
        shape: t.shape.to_vec(),
        bytes: gguf.bytes(t).to_vec(),
    };
    gguf.tensors().iter().map(tensor).collect()
}

fn write(gguf: &Gguf, path: &Path, keys: &[(String, Option<u32>)], tensors: &[Tensor]) {
    let mut writer = Writer::create(path).unwrap();
    for (key, value) in gguf.metadata().filter(|(key, _)| keys.iter().all(|(other, _)| other != key)) {
        writer.set(key, value.clone()).unwrap();
    }
    for (key, value) in keys {
        value.iter().for_each(|value| writer.set(key, *value).unwrap());
    }
    tensors.iter().for_each(|t| writer.declare(&t.name, t.format, &t.shape).unwrap());
    tensors.iter().for_each(|t| writer.write_tensor(&t.name, &t.bytes).unwrap());
    writer.finish().unwrap();
}

/// Rows of tensors one after the other, matrix by matrix.
fn stacked(name: String, parts: &[&Tensor]) -> Tensor {
    let matrices = parts[0].shape.get(2).copied().unwrap_or(1) as usize;
    let mut shape = parts[0].shape.clone();
    shape[1] = parts.iter().map(|part| part.shape[1]).sum();
    let matrix = |part: &Tensor, at: usize| {
        let size = part.bytes.len() / matrices;
        part.bytes[at * size..(at + 1) * size].to_vec()
    };
    let bytes = (0..matrices).flat_map(|at| parts.iter().flat_map(move |part| matrix(part, at))).collect();
    Tensor { name, format: parts[0].format, shape, bytes }
}

fn fused(gguf: &Gguf, path: &Path) {
    let all = tensors(gguf);
    let find = |name: &str| all.iter().find(|t| t.name == name).unwrap();
    let mut out = vec![];
    let mut count = [0, 0];
    for tensor in &all {
        if let Some(block) = tensor.name.strip_suffix("ffn_gate_exps.weight") {
            let parts = [tensor, find(&format!("{block}ffn_up_exps.weight"))];
            out.push(stacked(format!("{block}ffn_gate_up_exps.weight"), &parts));
            count[0] += 1;
        } else if let Some(block) = tensor.name.strip_suffix("attn_q.weight") {
            let part = |name: &str| find(&format!("{block}{name}.weight"));
            out.push(stacked(format!("{block}attn_qkv.weight"), &[tensor, part("attn_k"), part("attn_v")]));
            count[1] += 1;
        } else if !["ffn_up_exps", "attn_k.", "attn_v."].iter().any(|name| tensor.name.contains(name)) {
            let Tensor { name, format, shape, bytes } = tensor;
            out.push(Tensor { name: name.clone(), format: *format, shape: shape.clone(), bytes: bytes.clone() });
        }
    }
    assert!(count.iter().all(|n| *n > 0));
    write(gguf, path, &[], &out);
}

fn guessing(gguf: &Gguf, path: &Path) {
    let arch = gguf.str("general.architecture").unwrap();
    let layers = gguf.u32(&format!("{arch}.block_count")).unwrap();
    let mut all = tensors(gguf);
    let last = format!("blk.{}.", layers - 1);
    let mut more = vec![];
    for tensor in all.iter().filter(|t| t.name.starts_with(&last)) {
        let Tensor { name, format, shape, bytes } = tensor;
        let name = name.replace(&last, &format!("blk.{layers}."));
        more.push(Tensor { name, format: *format, shape: shape.clone(), bytes: bytes.clone() });
    }
    let norm = format!("blk.{layers}.nextn.enorm.weight");
    more.push(Tensor { name: norm, format: Format::F32, shape: vec![256], bytes: vec![0; 1024] });
    all.extend(more);
    let key = |name: &str| format!("{arch}.{name}");
    let keys = [
        (key("block_count"), Some(layers + 1)),
        (key("nextn_predict_layers"), Some(1)),
        (key("attention.recurrent_layers"), None),
    ];
    write(gguf, path, &keys, &all);
}
