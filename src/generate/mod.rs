//! From a prompt to a stream of text: the only decode loop.
//!
//! Everything that produces text (run, chat, complete, serve) goes through `generate`: it syncs the session, samples,
//! turns ids into whole characters and watches for the ends. It does not print and does not know of templates.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::engine::{Engine, EngineError, Session, Wanted};
use crate::sampler::{Sampler, SamplerError};
use crate::tokenizer::{Decoder, Tokenizer};

/// Why generation failed.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Sampler(#[from] SamplerError),
}

/// When to end.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Tokens to generate; `None` is the rest of the context.
    pub tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Goes on after end-of-sequence tokens.
    pub ignore_end: bool,
}

/// What happens while generating.
#[derive(Debug)]
pub enum Event<'a> {
    /// After each prefill run: tokens computed and tokens to compute.
    Prefill { done: usize, total: usize },
    /// A token was chosen.
    Token(u32),
    /// Text that is final: whole characters, free of any part of a stop text.
    Text(&'a str),
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-sequence token.
    End,
    /// A stop text.
    Stop,
    /// The token limit or the end of the context.
    Length,
    /// The caller broke off.
    Interrupted,
}

/// What was done, for the user's statistics.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub finish: Finish,
    pub prompt_tokens: usize,
    /// Prompt tokens that the session already held.
    pub cached_tokens: usize,
    pub generated_tokens: usize,
    /// Until the first token was known.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// Continues `prompt` in the session. `on_event` may break off at any event; the session then holds what was computed.
pub fn generate(
    engine: &mut Engine,
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    prompt: &[u32],
    limits: &Limits,
    mut on_event: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Summary, GenerateError> {
    let start = Instant::now();
    let held = session.ids().iter().zip(prompt).take_while(|(a, b)| a == b).count();
    let mut summary = Summary {
        finish: Finish::Length,
        prompt_tokens: prompt.len(),
        cached_tokens: held.min(prompt.len().saturating_sub(1)),
        generated_tokens: 0,
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
    };
    let synced = session.sync_with(engine, prompt, |done, total| on_event(Event::Prefill { done, total }));
    let logits = match synced {
        Err(EngineError::Interrupted) => {
            summary.finish = Finish::Interrupted;
            summary.prefill = start.elapsed();
            return Ok(summary);
        }
        other => other?,
    };
    prompt.iter().for_each(|&id| sampler.accept(id));
    let mut id = sampler.sample(logits)?;
    summary.prefill = start.elapsed();
    let decode_start = Instant::now();
    let limit = limits.tokens.unwrap_or(usize::MAX).min(engine.context() - prompt.len());
    let mut decoder = Decoder::new(false);
    let mut held_back = HeldBack::new(&limits.stop);
    while summary.generated_tokens < limit {
        if tokenizer.is_end(id) && !limits.ignore_end {
            summary.finish = Finish::End;
            break;
        }
        sampler.accept(id);
        summary.generated_tokens += 1;
        let (text, stopped) = held_back.push(decoder.push(tokenizer, id));
        if on_event(Event::Token(id)).is_break() || (!text.is_empty() && on_event(Event::Text(&text)).is_break()) {
            summary.finish = Finish::Interrupted;
            break;
        }
        if stopped {
            summary.finish = Finish::Stop;
            break;
        }
        if summary.generated_tokens == limit {
            break;
        }
        let wanted = if sampler.takes_largest() { Wanted::Best } else { Wanted::Last };
        session.extend(engine, &[id], wanted, |_, _| ControlFlow::Continue(()))?;
        id = match engine.best().filter(|_| wanted == Wanted::Best) {
            Some(best) => best,
            None => sampler.sample(engine.last_logits()?)?,
        };
    }
    if !matches!(summary.finish, Finish::Stop | Finish::Interrupted) {
        let rest = held_back.finish(decoder.finish());
        if !rest.is_empty() {
            // The stream is over: whether the caller would break off no longer matters.
            let _ = on_event(Event::Text(&rest));
        }
    }
    summary.decode = decode_start.elapsed();
    Ok(summary)
}

/// Keeps back text that may be the start of a stop text.
struct HeldBack<'a> {
    stops: &'a [String],
    pending: String,
}

impl<'a> HeldBack<'a> {
    fn new(stops: &'a [String]) -> HeldBack<'a> {
        HeldBack { stops, pending: String::new() }
    }

    /// Takes new text; returns what is final now, and whether a stop text was met.
    fn push(&mut self, text: &str) -> (String, bool) {
        self.pending.push_str(text);
        let stops = || self.stops.iter().filter(|stop| !stop.is_empty());
        if let Some(at) = stops().filter_map(|stop| self.pending.find(stop.as_str())).min() {
            self.pending.truncate(at);
            return (std::mem::take(&mut self.pending), true);
        }
        let keep = stops().map(|stop| overlap(&self.pending, stop)).max().unwrap_or(0);
        let rest = self.pending.split_off(self.pending.len() - keep);
        (std::mem::replace(&mut self.pending, rest), false)
    }

    /// The last text, when no more will come.
    fn finish(mut self, text: &str) -> String {
        let (mut last, stopped) = self.push(text);
        if !stopped {
            last.push_str(&self.pending);
        }
        last
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1))
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut held = HeldBack::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            let (text, stopped) = held.push(piece);
            out.push_str(&text);
            if stopped {
                return (out, true);
            }
        }
        out.push_str(&held.finish(""));
        (out, false)
    }

    #[test]
    fn a_stop_text_split_over_pieces_is_cut_out() {
        assert_eq!(stream(&["</end>"], &["abc</", "en", "d>def"]), ("abc".into(), true));
        assert_eq!(stream(&["</end>"], &["abc</", "en", "x"]), ("abc</enx".into(), false));
        assert_eq!(stream(&["é!", "zz"], &["caf", "é", "?"]), ("café?".into(), false));
        assert_eq!(stream(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(stream(&[], &["a", "b"]), ("ab".into(), false));
    }
}
