//! gpt-oss: every message has a header with its channel and, for a call, its recipient. The reader is in `harmony.rs`.

use super::super::row::{DEFAULT, Row};

pub static ROW: Row = Row {
    name: super::HARMONY,
    signs: &[&["<|channel|>", "<|start|>"]],
    think: &[],
    inner: &["<|channel|>", "<|constrain|>", "<|message|>"],
    frame: Some(("<|start|>assistant", "<|call|>")),
    ..DEFAULT
};
