//! Headers read over the network, from a server on loopback.

use std::sync::Arc;

use serde_json::Value;

#[path = "../catalog/server.rs"]
#[expect(dead_code, reason = "the catalog's tests use more of it")]
mod server;

use self::server::{Reply, Server};
use super::shapes::{self, Part};
use super::{near, rynd, stdout};

/// A header and a megabyte of what follows it.
fn beginning(part: &Part) -> Vec<u8> {
    let mut bytes = part.header.clone();
    bytes.resize((part.bytes as usize).min(part.header.len() + (1 << 20)), 0);
    bytes
}

/// A hub with the repository `o/r`, whose files are cut: who reads beyond the headers finds nothing.
fn hub(parts: &[Part], whole: bool) -> Server {
    let names: Vec<String> =
        (1..=parts.len()).map(|no| format!("Q4_K_M/m-Q4_K_M-{no:05}-of-{:05}.gguf", parts.len())).collect();
    let files: Vec<(String, Arc<Vec<u8>>)> =
        names.into_iter().zip(parts).map(|(name, part)| (name, Arc::new(beginning(part)))).collect();
    Server::start(move |request| {
        if request.path.starts_with("/api/models/o/r/tree/") {
            let node = |(path, bytes): &(String, Arc<Vec<u8>>)| {
                format!(r#"{{"type":"file","oid":"1","size":{},"path":"{path}"}}"#, bytes.len())
            };
            return Reply::Text(format!("[{}]", files.iter().map(node).collect::<Vec<_>>().join(",")), None);
        }
        match files.iter().find(|(name, _)| request.path.ends_with(name)) {
            Some((_, bytes)) if whole => Reply::Whole(bytes.clone()),
            Some((_, bytes)) => Reply::File(bytes.clone()),
            None => Reply::Status(404),
        }
    })
}

#[test]
fn a_model_of_the_hub_is_planned_from_ranged_reads() {
    let small = shapes::coder_30b();
    let tensors = small.quantised("Q4_K_M");
    let parts = shapes::parts(&small, &tensors, 3);
    let wanted = super::shape(&small, &tensors).tensor_bytes;
    for whole in [false, true] {
        let server = hub(&parts, whole);
        let plan = ["plan", "hf:o/r:Q4_K_M", "--rig", "1x24g-128", "--json"];
        let json: Value = serde_json::from_str(&stdout(rynd(&plan, &[("HF_ENDPOINT", &server.url)]))).unwrap();
        assert_eq!(json["model"]["tensor_bytes"].as_u64(), Some(wanted));
        assert_eq!(json["model"]["layers"], 48);
        near(json["decode"][0]["tokens_per_second"].as_f64().unwrap(), 115.0, 0.5);
        let reads: Vec<_> = server.requests().into_iter().filter(|r| r.path.contains(".gguf")).collect();
        assert_eq!(reads.len(), 3, "one a file");
        assert!(reads.iter().all(|read| read.range == Some((0, 1 << 20))));
    }
}

#[test]
fn a_long_header_is_read_in_growing_pieces() {
    let small = shapes::coder_30b();
    let mut part = shapes::parts(&small, &small.quantised("Q4_K_M"), 1).remove(0);
    // A vocabulary of three megabytes behind the other keys.
    let keys = u64::from_le_bytes(part.header[16..24].try_into().unwrap());
    part.header[16..24].copy_from_slice(&(keys + 1).to_le_bytes());
    let text = |text: &[u8]| [&(text.len() as u64).to_le_bytes()[..], text].concat();
    let words = 3 << 17;
    let mut vocabulary = text(b"tokenizer.ggml.tokens");
    vocabulary.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
    vocabulary.extend((words as u64).to_le_bytes());
    (0..words).for_each(|_| vocabulary.extend(text(b"")));
    part.header.splice(24..24, vocabulary);
    part.bytes = u64::MAX;
    let server = hub(&[part], false);
    let plan = ["plan", "hf:o/r", "--rig", "1x24g-128"];
    let text = stdout(rynd(&plan, &[("HF_ENDPOINT", &server.url)]));
    assert!(text.contains("128 experts"), "{text}");
    let ranges: Vec<_> =
        server.requests().into_iter().filter(|r| r.path.contains(".gguf")).filter_map(|r| r.range).collect();
    assert_eq!(ranges, [(0, 1 << 20), (1 << 20, 4 << 20)]);
}

#[test]
fn what_is_no_model_or_not_there_is_told() {
    let junk = Part { header: b"<html>".to_vec(), bytes: 6 };
    let server = hub(&[junk], false);
    let stderr = |model: &str, url: &str| {
        let output = rynd(&["plan", model, "--rig", "1x24g-128"], &[("HF_ENDPOINT", url)]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(stderr("hf:o/r", &server.url).contains("looks like a web page"));
    assert!(stderr("hf:o/r:Q8_0", &server.url).contains("it has Q4_K_M"));
    assert!(stderr("qwen3-coder-480b", "http://127.0.0.1:9").contains("can not reach 127.0.0.1"));
}
