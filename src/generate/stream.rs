//! One answer as it grows: ids become whole characters, and the ends are watched for.

use std::ops::ControlFlow;

use super::{Event, Finish, Limits};
use crate::sampler::Sampler;
use crate::tokenizer::{Decoder, Tokenizer};

/// The state of one answer.
pub struct Stream {
    decoder: Decoder,
    held_back: HeldBack,
    limit: usize, // tokens
    ignore_end: bool,
    tokens: usize,
}

impl Stream {
    /// An answer of at most `room` tokens: what is left of the context.
    pub fn new(limits: &Limits, room: usize) -> Stream {
        Stream {
            decoder: Decoder::new(false),
            held_back: HeldBack::new(limits.stop.clone()),
            limit: limits.tokens.unwrap_or(usize::MAX).min(room),
            ignore_end: limits.ignore_end,
            tokens: 0,
        }
    }

    /// Tokens of the answer so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Takes a chosen token and tells `on_event`; returns why the answer is over, if it is.
    pub fn push(
        &mut self,
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
        id: u32,
        on_event: &mut impl FnMut(Event) -> ControlFlow<()>,
    ) -> Option<Finish> {
        if self.tokens == self.limit {
            return Some(Finish::Length);
        }
        if tokenizer.is_end(id) && !self.ignore_end {
            self.flush(on_event);
            return Some(Finish::End);
        }
        sampler.accept(id);
        self.tokens += 1;
        let (text, stopped) = self.held_back.push(self.decoder.push(tokenizer, id));
        if on_event(Event::Token(id)).is_break() || (!text.is_empty() && on_event(Event::Text(&text)).is_break()) {
            return Some(Finish::Interrupted);
        }
        if stopped {
            return Some(Finish::Stop);
        }
        if self.tokens == self.limit {
            self.flush(on_event);
            return Some(Finish::Length);
        }
        None
    }

    /// Gives out what was held back, when no more will come.
    fn flush(&mut self, on_event: &mut impl FnMut(Event) -> ControlFlow<()>) {
        let rest = self.held_back.finish(self.decoder.finish());
        if !rest.is_empty() {
            // The stream is over: whether the caller would break off no longer matters.
            let _ = on_event(Event::Text(&rest));
        }
    }
}

/// Keeps back text that may be the start of a stop text.
struct HeldBack {
    stops: Vec<String>,
    pending: String,
}

impl HeldBack {
    fn new(stops: Vec<String>) -> HeldBack {
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
    fn finish(&mut self, text: &str) -> String {
        let (mut last, stopped) = self.push(text);
        if !stopped {
            last.push_str(&std::mem::take(&mut self.pending));
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
        let mut held = HeldBack::new(stops.iter().map(|s| (*s).to_owned()).collect());
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
