//! `/stats`: what the last answer cost, and what the model holds.

use std::fmt::Write;

use super::super::memory::Memory;
use super::super::{numbers, reuse};
use super::session::Chat;
use crate::generate::Finish;

/// The report, one line a fact.
pub fn report(chat: &Chat) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        // Writing to a string can not fail.
        let _ = writeln!(out, "{name:10}{text}");
    };
    match &chat.last {
        None => line("last", "no answer yet".to_owned()),
        Some(last) => {
            let computed = last.prompt_tokens - last.cached_tokens;
            let prompt = format!(
                "{} in {}, {:.1} tok/s",
                reuse::tokens(last),
                numbers::duration(last.prefill),
                numbers::rate(computed, last.prefill)
            );
            line("prompt", prompt);
            if let Some(parted) = reuse::parted(last, &chat.model.tokenizer) {
                line("", parted);
            }
            // The first token comes with the prompt; an end token was computed for, but is no part of the answer.
            let runs = match last.finish {
                Finish::End => last.generated_tokens,
                Finish::Stop | Finish::Length | Finish::Interrupted => last.generated_tokens.saturating_sub(1),
            };
            let answer = format!(
                "{} tokens in {}, {:.1} tok/s",
                last.generated_tokens,
                numbers::duration(last.decode),
                numbers::rate(runs, last.decode)
            );
            line("answer", answer);
            line("first", format!("token after {}", numbers::duration(last.prefill)));
        }
    }
    let (used, context) = (chat.used_tokens(), chat.model.engine.context());
    let forgotten = match chat.conversation.forgotten_turns() {
        0 => String::new(),
        turns => format!("; the oldest {turns} of the turns no longer fit"),
    };
    line("context", format!("{used} of {context} tokens used, {} %{forgotten}", used * 100 / context.max(1)));
    if let Some(memory) = Memory::now() {
        let text = format!(
            "{} resident: {} of the model's file, {} of our own",
            numbers::bytes(memory.resident_bytes),
            numbers::bytes(memory.file_bytes),
            numbers::bytes(memory.anonymous_bytes)
        );
        line("memory", text);
    }
    let gguf = chat.model.engine.gguf();
    let files = match gguf.shards().len() {
        0 | 1 => String::new(),
        more => format!(" and {} more files", more - 1),
    };
    let bytes = numbers::bytes(gguf.file_bytes());
    let shares = chat.model.engine.gpu_shares();
    let rest = if shares.is_empty() { "read by the CPU where they lie" } else { "shared with the GPUs below" };
    line("weights", format!("{bytes} in the mapped file, {rest}"));
    for share in shares {
        let layers = chat.model.engine.plan().layers + 1;
        line(
            "gpu",
            format!("{} holds {} of {layers} layers, {}", share.name, share.layers, numbers::bytes(share.bytes)),
        );
    }
    if let Some(report) = chat.model.engine.expert_report() {
        line("experts", report.to_string());
    }
    if let Some(counters) = chat.model.engine.tier_counters() {
        let in_ram = counters.wanted - counters.read;
        let read = numbers::bytes(counters.bytes_read);
        line("disk", format!("{in_ram} of {} experts wanted were in RAM, {read} read", counters.wanted));
    }
    line("file", format!("{}{files}", gguf.path().display()));
    out
}
