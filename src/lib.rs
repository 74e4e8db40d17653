//! rynd: a quantised GGUF runtime for workstations.

// The order below is the law: a module may use only modules above it (tests/layering.rs checks it).
pub mod gguf;
pub mod catalog;
pub mod tokenizer;
pub mod chat;
pub mod sampler;
pub mod plan;
pub mod models;
pub mod weights;
pub mod experts;
pub mod backend;
pub mod cpu;
pub mod gpu;
pub mod engine;
pub mod generate;
pub mod complete;
pub mod quantize;
pub mod server;
pub mod commands;
