//! By text: the ids that were kept for the longest prefix of a text.
//!
//! Walks the segments as a tree over the tokens' own bytes, so an answer keeps the ids it was generated with whatever the
//! tokenizer would make of its text. A token counts only whole, and an end inside a character of the text is cut back, so
//! that the rest can be tokenised.

use std::collections::HashSet;
use std::sync::Arc;

use super::CacheStore;
use super::digest::Digest;
use super::error::CacheError;
use super::format::Body;
use super::index::{Entry, Folder};

/// Stored ids whose text is the beginning of the wanted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextHit {
    pub ids: Vec<u32>,
    /// Bytes of the wanted text that they stand for.
    pub bytes: usize,
}

/// A segment that was reached.
struct Step {
    from: Option<usize>, // the step that it goes on from
    entry: Arc<Entry>,
    body: Arc<Body>,
    text_at: usize,   // byte of the wanted text where it begins
    matched: usize,   // tokens whose text is the wanted one
    end: usize,       // byte of the wanted text where the prefix may end; 0: nowhere in this segment
    end_token: usize, // tokens of the segment up to there
}

impl CacheStore {
    /// The longest stored text that `text` begins with, as the ids it was computed from. The next step is to tokenise the rest
    /// and to look up all ids together.
    pub fn lookup_text(&self, text: &[u8]) -> Option<TextHit> {
        let mut bad = vec![];
        let steps = self.walk(&self.refreshed().own, text, &mut bad);
        for (name, error) in &bad {
            self.discard(name, error);
        }
        // Of equal ends the one used last.
        let rank = |step: &Step| (step.end, step.entry.used_ms(), step.entry.prefix.name);
        let mut at = (0..steps.len()).filter(|i| steps[*i].end > 0).max_by_key(|i| rank(&steps[*i]))?;
        let bytes = steps[at].end;
        let (mut pieces, mut tokens) = (vec![], steps[at].end_token);
        loop {
            let step = &steps[at];
            pieces.push(&step.body.ids[..tokens]);
            let Some(from) = step.from else { break };
            tokens = step.entry.prefix.start - steps[from].entry.prefix.start;
            at = from;
        }
        Some(TextHit { ids: pieces.into_iter().rev().flatten().copied().collect(), bytes })
    }

    fn walk(&self, folder: &Folder, text: &[u8], bad: &mut Vec<(Digest, CacheError)>) -> Vec<Step> {
        let layout = &self.model.layout;
        let page = layout.page_tokens;
        let mut steps: Vec<Step> = vec![];
        // A segment's name covers what lies before it, so each one is reached with one text only.
        let mut seen = HashSet::new();
        let mut reached = vec![(None, self.root, 0, 0)];
        for next in 0.. {
            for (from, digest, start, text_at) in reached.drain(..) {
                for entry in folder.by_parent.get(&digest).into_iter().flatten() {
                    if entry.prefix.start != start || !seen.insert(entry.prefix.name) {
                        continue;
                    }
                    match entry.body_of(layout) {
                        Err(e) => bad.push((entry.prefix.name, e)),
                        Ok(body) => {
                            let (matched, end, end_token) = compare(&body, text, text_at);
                            steps.push(Step { from, entry: entry.clone(), body, text_at, matched, end, end_token });
                        }
                    }
                }
            }
            let Some(step) = steps.get(next) else { break };
            let boundaries = step.entry.boundaries().unwrap_or_default();
            let boundaries = boundaries.get(..step.matched / page).unwrap_or_default();
            let mut text_at = step.text_at;
            for (i, digest) in boundaries.iter().enumerate() {
                text_at += step.body.lens[i * page..(i + 1) * page].iter().map(|n| *n as usize).sum::<usize>();
                reached.push((Some(next), *digest, step.entry.prefix.start + (i + 1) * page, text_at));
            }
        }
        steps
    }
}

/// How many tokens of a segment are the text from `at` on, and the furthest good end: after a token with text, at a
/// character's boundary.
fn compare(body: &Body, text: &[u8], at: usize) -> (usize, usize, usize) {
    let (mut from, mut at) = (0, at);
    let (mut end, mut end_token) = (0, 0);
    for (token, len) in body.lens.iter().enumerate() {
        let bytes = &body.text[from..from + *len as usize];
        if !text[at..].starts_with(bytes) {
            return (token, end, end_token);
        }
        (from, at) = (from + bytes.len(), at + bytes.len());
        if !bytes.is_empty() && text.get(at).is_none_or(|byte| byte & 0xc0 != 0x80) {
            (end, end_token) = (at, token + 1);
        }
    }
    (body.lens.len(), end, end_token)
}
