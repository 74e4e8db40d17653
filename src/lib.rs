//! rynd: a quantised GGUF runtime for workstations.
//!
//! A model file is mapped, never copied. An architecture file turns its metadata into a list of steps, built once; an
//! executor replays that list for every run of tokens, reading the GGML blocks where they lie. This page is the tour; each
//! module's header says what it refuses to do.
//!
//! # A token's way
//!
//! text -> [`tokenizer`] ids -> [`engine::Session::sync`], which keeps the longest common prefix and computes the rest ->
//! embedding, layers, the rows whose logits are wanted ([`plan`], run by [`cpu`]) -> [`sampler`] id -> whole characters ->
//! [`generate::Event::Text`]. Only the session has mutable state.
//!
//! # The forward pass is a value
//!
//! [`plan::Op`] is a closed set of operations over numbered slots; [`models`] has one file an architecture that reads like
//! the paper's block diagram. `rynd inspect MODEL --plan` prints the list with shapes, formats and bytes a token;
//! `rynd inspect MODEL --trace-step IDS` runs it step by step beside the exact mode and names the first step that parts.
//!
//! # Speed on the CPU
//!
//! Decoding one token reads every active weight once: it is bound by memory, so the kernels of `rynd_quant` multiply the
//! blocks as they come from memory, int8 by int8, and `rynd bench` prints GB/s beside tok/s and the share of the machine's
//! own read bandwidth. A batch of prompt tokens is bound by arithmetic: tiles of weights are unpacked to int8 once and used
//! for all tokens, and a mixture of experts groups its tokens by expert first. Attention walks pages of 64 tokens with an
//! online softmax; keys are stored transposed, so no sum crosses lanes. The threads of a run walk the steps together, with a
//! spinning barrier between two steps.
//!
//! # What is true
//!
//! Logits, hidden states, router picks and greedy ids are tested against another implementation (`tests/golden.rs`), token
//! ids, chat renderings and block decoding likewise. Exact mode (`--exact`) widens weights to f32 and keeps activations and
//! cache in f32: it is the reference beside every fast path. Scalar code is the specification of every SIMD kernel.

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
pub mod commands;
