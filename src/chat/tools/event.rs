//! What a generated text turns out to be, and the record of its calls.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

/// A piece of an answer. Pieces of one kind that follow each other belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Content(String),
    Reasoning(String),
    CallBegin {
        id: String,
        name: String,
    },
    /// More of the arguments, which are one JSON text.
    Arguments {
        id: String,
        json: String,
    },
    /// `whole` is false where the call was cut off or its arguments are no JSON.
    CallEnd {
        id: String,
        whole: bool,
    },
}

/// A call of this answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// JSON, as the events gave it.
    pub arguments: String,
    pub whole: bool,
    /// The bytes that were generated for it, without what frames a call in this format: a place in the text.
    pub generated: Range<usize>,
}

/// Makes the ids of calls: no two are equal, also between answers.
#[derive(Debug, Clone)]
pub struct Ids {
    seed: u64,
    next: u64,
}

impl Ids {
    /// Ids that depend on the seed alone; two answers must not have the same one.
    pub fn new(seed: u64) -> Ids {
        Ids { seed, next: 0 }
    }

    /// Ids unlike those of any other answer.
    pub fn random() -> Ids {
        Ids::new(RandomState::new().hash_one(0))
    }

    fn next(&mut self, short: bool) -> String {
        const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let n = if short { 9 } else { 24 };
        let mut id = String::from(if short { "" } else { "call_" });
        // Two numbers of the counter never share all digits: the last two are the counter's own.
        let mut bits = u128::from(mix(self.seed ^ mix(self.next))) << 64 | u128::from(mix(mix(self.seed) ^ self.next));
        for _ in 0..n - 2 {
            id.push(DIGITS[(bits % 62) as usize] as char);
            bits /= 62;
        }
        id.push(DIGITS[(self.next / 62 % 62) as usize] as char);
        id.push(DIGITS[(self.next % 62) as usize] as char);
        self.next += 1;
        id
    }
}

/// The finaliser of SplitMix64: every bit of the input moves half of the output's.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Events on their way out, and the calls so far.
#[derive(Debug)]
pub(super) struct Sink {
    pub events: Vec<Event>,
    pub calls: Vec<Call>,
    ids: Ids,
    short_ids: bool,
}

impl Sink {
    pub fn new(ids: Ids, short_ids: bool) -> Sink {
        Sink { events: vec![], calls: vec![], ids, short_ids }
    }

    pub fn content(&mut self, text: &str) {
        if let Some(Event::Content(last)) = self.events.last_mut() {
            last.push_str(text);
        } else if !text.is_empty() {
            self.events.push(Event::Content(text.to_owned()));
        }
    }

    pub fn reasoning(&mut self, text: &str) {
        if let Some(Event::Reasoning(last)) = self.events.last_mut() {
            last.push_str(text);
        } else if !text.is_empty() {
            self.events.push(Event::Reasoning(text.to_owned()));
        }
    }

    pub fn begin(&mut self, name: &str, at: usize) {
        let id = self.ids.next(self.short_ids);
        self.events.push(Event::CallBegin { id: id.clone(), name: name.to_owned() });
        let call = Call { id, name: name.to_owned(), arguments: String::new(), whole: false, generated: at..at };
        self.calls.push(call);
    }

    /// More arguments of the last call.
    pub fn arguments(&mut self, json: &str) {
        let Some(call) = self.calls.last_mut().filter(|_| !json.is_empty()) else { return };
        call.arguments.push_str(json);
        match self.events.last_mut() {
            Some(Event::Arguments { json: last, .. }) => last.push_str(json),
            _ => self.events.push(Event::Arguments { id: call.id.clone(), json: json.to_owned() }),
        }
    }

    pub fn end(&mut self, whole: bool, at: usize) {
        let Some(call) = self.calls.last_mut() else { return };
        call.whole = whole;
        call.generated.end = at;
        self.events.push(Event::CallEnd { id: call.id.clone(), whole });
    }

    /// Syntax behind the end of the last call.
    pub fn extend(&mut self, at: usize) {
        if let Some(call) = self.calls.last_mut() {
            call.generated.end = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_equal() {
        for short in [false, true] {
            let mut seen = std::collections::HashSet::new();
            for seed in 0..50 {
                let mut ids = Ids::new(seed);
                (0..200).for_each(|_| assert!(seen.insert(ids.next(short))));
            }
            let lengths: Vec<usize> = seen.iter().map(String::len).collect();
            assert!(lengths.iter().all(|&n| n == if short { 9 } else { 29 }));
        }
        assert_ne!(Ids::random().next(false), Ids::random().next(false));
    }
}
