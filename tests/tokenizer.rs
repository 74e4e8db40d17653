//! The tokenizer against ids and text that llama.cpp gave for four vocabularies.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use rynd::tokenizer::{Decoder, Encode, TokenType, Tokenizer, TokenizerError, Vocab};
use serde_json::Value;
use std::io::Read;
use std::path::PathBuf;

const FIXTURES: [&str; 4] = ["qwen2", "smollm", "gemma3", "tiny"];
const PLAIN: Encode = Encode { add_special: false, parse_special: false };
const SPECIAL: Encode = Encode { add_special: false, parse_special: true };
const BOS_SPECIAL: Encode = Encode { add_special: true, parse_special: true };

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer").join(name)
}

/// A vocabulary as tests/fixtures/tokenizer/make.py wrote it.
struct Stored {
    keys: Value,
    tokens: Vec<String>,
    types: Vec<TokenType>,
    scores: Vec<f32>,
    merges: Vec<String>,
}

impl Stored {
    fn read(name: &str) -> Self {
        let file = std::fs::File::open(fixture(&format!("{name}.vocab.gz"))).unwrap();
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        let line = bytes.iter().position(|&byte| byte == b'\n').unwrap();
        let keys = serde_json::from_slice(&bytes[..line]).unwrap();
        let mut rest = &bytes[line + 1..];
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at(n);
            rest = tail;
            head
        };
        let n = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
        let tokens: Vec<String> = (0..n)
            .map(|_| {
                let bytes = u16::from_le_bytes(take(2).try_into().unwrap()) as usize;
                String::from_utf8(take(bytes).to_vec()).unwrap()
            })
            .collect();
        let types = take(n).iter().map(|&id| TokenType::from_gguf(id.into())).collect();
        let mut scores = Vec::new();
        if take(1)[0] == 1 {
            let mut score = 0.0;
            for _ in 0..n {
                score += f32::from_le_bytes(take(4).try_into().unwrap());
                scores.push(score);
            }
        }
        let m = u32::from_le_bytes(take(4).try_into().unwrap());
        let mut id = 0;
        let merges = (0..m)
            .map(|_| {
                id += i32::from_le_bytes(take(4).try_into().unwrap());
                let (left, right) = tokens[id as usize].split_at(take(1)[0] as usize);
                format!("{left} {right}")
            })
            .collect();
        Self { keys, tokens, types, scores, merges }
    }

    fn vocab(&self) -> Vocab<'_> {
        let id = |key: &str| self.keys[key].as_u64().map(|id| id as u32);
        Vocab {
            model: self.keys["model"].as_str().unwrap(),
            pre: self.keys["pre"].as_str(),
            tokens: self.tokens.iter().map(String::as_str).collect(),
            types: self.types.clone(),
            scores: self.scores.clone(),
            merges: self.merges.iter().map(String::as_str).collect(),
            bos: id("bos_token_id"),
            eos: id("eos_token_id"),
            unknown: id("unknown_token_id"),
            padding: id("padding_token_id"),
            add_bos: self.keys["add_bos_token"].as_bool(),
            add_eos: self.keys["add_eos_token"].as_bool(),
            add_space_prefix: self.keys["add_space_prefix"].as_bool(),
            ..Vocab::default()
        }
    }
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::new(Stored::read(name).vocab()).unwrap()
}

struct Case {
    text: String,
    ids: [(&'static str, Encode, Vec<u32>); 3],
    detok: Vec<u8>,
}

fn cases(name: &str) -> Vec<Case> {
    let file = std::fs::File::open(fixture(&format!("{name}.json"))).unwrap();
    let golden: Value = serde_json::from_reader(std::io::BufReader::new(file)).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 77);
    let ids = |case: &Value, mode: &str| serde_json::from_value(case[mode].clone()).unwrap();
    let case = |case: &Value| Case {
        text: case["text"].as_str().unwrap().to_owned(),
        ids: [
            ("plain", PLAIN, ids(case, "plain")),
            ("special", SPECIAL, ids(case, "special")),
            ("bos_special", BOS_SPECIAL, ids(case, "bos_special")),
        ],
        detok: hex(case["detok_hex"].as_str().unwrap()),
    };
    cases.iter().map(case).collect()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn all_golden_strings_have_the_reference_ids_in_every_mode() {
    let mut wrong = Vec::new();
    for name in FIXTURES {
        let tokenizer = tokenizer(name);
        for case in cases(name) {
            for (mode, how, expected) in case.ids {
                let found = tokenizer.encode(&case.text, how);
                if found != expected {
                    wrong.push(format!("{name} {mode} {:?}\n  found {found:?}\n  wanted {expected:?}", case.text));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn all_golden_ids_decode_to_the_reference_bytes() {
    for name in FIXTURES {
        let tokenizer = tokenizer(name);
        for case in cases(name) {
            let [_, (_, _, ids), _] = &case.ids;
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
            assert_eq!(bytes, case.detok, "{name} {:?}", case.text);
        }
    }
}
