//! Notices that an answer goes round in circles: the same span of tokens, or the same call of a tool, again and again.
//!
//! For every length up to a limit it counts how many of the last items equal the one that many places before. A length
//! has looped when that is so for several whole spans and for enough items; code has honest repetitions, so both count.

use serde_json::Value as Json;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// When repetition is a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest span, in items.
    pub longest: usize,
    /// How often a span comes, the first time included.
    pub times: usize,
    /// Repeated items, at least.
    pub items: usize,
}

impl Limits {
    /// For tokens of an answer. 400 repeated tokens are more than tables of numbers and rulers of dashes have.
    pub const TOKENS: Limits = Limits { longest: 1024, times: 4, items: 400 };
    /// For calls and their results: the fourth time that the same call had the same result, or a round of up to four.
    pub const CALLS: Limits = Limits { longest: 4, times: 4, items: 3 };
}

/// A span that came again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loop {
    /// Items of the span.
    pub span: usize,
    /// How often it came, whole.
    pub times: usize,
}

/// Items as they come.
#[derive(Debug, Clone)]
pub struct Repeats {
    limits: Limits,
    items: Vec<u64>, // the last `longest`, a ring
    next: usize,
    /// By span - 1: how many of the last items equal the one a span before.
    runs: Vec<u32>, // (longest)
}

impl Repeats {
    pub fn new(limits: Limits) -> Repeats {
        Repeats { limits, items: vec![], next: 0, runs: vec![0; limits.longest] }
    }

    /// Takes the next item; tells of the shortest span that has looped.
    pub fn push(&mut self, item: u64) -> Option<Loop> {
        let Limits { longest, times, items } = self.limits;
        let held = self.items.len();
        let mut found = None;
        for span in 1..=held {
            let before = self.items[(self.next + held - span) % held.max(1)];
            let run = &mut self.runs[span - 1];
            *run = if before == item { *run + 1 } else { 0 };
            let run = *run as usize;
            if found.is_none() && run >= items.max(span * (times - 1)) {
                found = Some(Loop { span, times: run / span + 1 });
            }
        }
        if held < longest {
            self.items.push(item);
        } else if let Some(oldest) = self.items.get_mut(self.next) {
            *oldest = item;
            self.next = (self.next + 1) % longest;
        }
        found
    }
}

/// A call as an item: its name, its arguments whatever their spelling, and its result where that is known.
pub fn call(name: &str, arguments: &str, result: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    match serde_json::from_str::<Json>(arguments) {
        Ok(value) => sorted(&value).hash(&mut hasher),
        Err(_) => arguments.hash(&mut hasher),
    }
    result.hash(&mut hasher);
    hasher.finish()
}

/// JSON with the keys in order.
fn sorted(value: &Json) -> String {
    match value {
        Json::Array(items) => format!("[{}]", items.iter().map(sorted).collect::<Vec<_>>().join(",")),
        Json::Object(map) => {
            let mut pairs: Vec<(&String, String)> = map.iter().map(|(key, item)| (key, sorted(item))).collect();
            pairs.sort();
            let pairs = pairs.iter().map(|(key, item)| format!("{}:{item}", Json::from(key.as_str())));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(limits: Limits, items: impl IntoIterator<Item = u64>) -> Option<(usize, Loop)> {
        let mut repeats = Repeats::new(limits);
        items.into_iter().enumerate().find_map(|(at, item)| Some((at, repeats.push(item)?)))
    }

    #[test]
    fn a_span_that_comes_again_and_again_is_found_with_its_length() {
        for span in [1, 2, 7, 100, 133, 134, 500, 1024] {
            let text = (0..300u64).map(|i| 1_000_000 + i * i).chain((0..20_000).map(|i| 1 + i % span));
            let (at, found) = first(Limits::TOKENS, text).unwrap();
            let span = span as usize;
            assert_eq!(found.span, span);
            // The first round is no repetition.
            let wanted = 300 + span + 400.max(3 * span) - 1;
            assert_eq!(at, wanted, "{span}");
            assert!(found.times >= 4);
        }
    }

    #[test]
    fn what_changes_or_ends_is_no_loop() {
        // A list that counts: one token of ten is another.
        let list = (0..5_000u64).map(|i| if i % 10 == 0 { 1000 + i } else { i % 10 });
        assert_eq!(first(Limits::TOKENS, list), None);
        // Three hundred equal numbers in a row, then something else, again and again.
        let table = (0..3_000u64).map(|i| if i % 300 == 299 { i } else { 5 });
        assert_eq!(first(Limits::TOKENS, table), None);
        // Longer than the longest span.
        assert_eq!(first(Limits::TOKENS, (0..20_000).map(|i| i % 1025)), None);
        let mut x = 1u64;
        let noise = std::iter::repeat_with(|| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            x >> 60
        });
        assert_eq!(first(Limits::TOKENS, noise.take(50_000)), None);
    }

    #[test]
    fn the_same_call_with_the_same_result_is_a_loop_the_fourth_time() {
        let same = call("run", r#"{"a": 1, "b": [2]}"#, Some("x"));
        assert_eq!(same, call("run", r#"{"b":[2],"a":1}"#, Some("x")));
        assert_ne!(same, call("run", r#"{"a": 1, "b": [2]}"#, Some("y")));
        assert_ne!(call("run", "not JSON", None), call("run", "not JSON ", None));
        assert_eq!(first(Limits::CALLS, [same; 10]), Some((3, Loop { span: 1, times: 4 })));
        let polls = (0..10).map(|i| call("status", "{}", Some(&format!("{i}%"))));
        assert_eq!(first(Limits::CALLS, polls), None);
        let (a, b) = (call("read", "{}", Some("1")), call("write", "{}", Some("2")));
        let round = std::iter::repeat_n([a, b], 10).flatten();
        assert_eq!(first(Limits::CALLS, round), Some((7, Loop { span: 2, times: 4 })));
    }
}
