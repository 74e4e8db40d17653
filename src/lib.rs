//! rynd: a quantised GGUF runtime for workstations.

// The order below is the law: a module may use only modules above it (tests/layering.rs checks it).
pub mod backend;
pub mod catalog;
pub mod chat;
pub mod commands;
pub mod cpu;
pub mod engine;
pub mod experts;
pub mod generate;
pub mod gguf;
pub mod gpu;
pub mod models;
pub mod plan;
pub mod quantize;
pub mod sampler;
pub mod server;
pub mod tokenizer;
pub mod weights;
