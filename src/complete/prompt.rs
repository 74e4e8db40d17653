//! The fill-in-the-middle prompt: other files of the repository, then what is before and behind the cursor.
//!
//! The order is Qwen2.5-Coder's (technical report, section 3.2): `<|repo_name|>`, per file `<|file_sep|>` path and
//! content, then prefix, suffix, middle. Only the tokens' ids are used, so text that spells a token stays text. What
//! comes first changes least between keystrokes, and the prefix's start moves in coarse steps: so most of the prompt is
//! still cached when the next key is pressed.

use super::{CompleteError, Request};
use crate::tokenizer::{Encode, Tokenizer};

/// What is left for other files shrinks in steps of so many tokens: a file that no longer fits moves all that follows.
const STEP_TOKENS: usize = 256;
/// Lines that the prefix's start moves by when it must be cut.
const STEP_LINES: usize = 32;

/// Ids of a whole prompt of at most `budget` tokens, `suffix_tokens` of them behind the cursor.
pub fn build(
    tokenizer: &Tokenizer,
    request: &Request,
    budget: usize,
    suffix_tokens: usize,
) -> Result<Vec<u32>, CompleteError> {
    let fim = tokenizer.fim();
    let (Some(prefix), Some(suffix), Some(middle)) = (fim.prefix, fim.suffix, fim.middle) else {
        return Err(CompleteError::NoFim);
    };
    let encode = |text: &str| tokenizer.encode(text, Encode::default());
    // What stands behind the cursor goes on: SentencePiece's implied space is not in front of it.
    let encode_on = |text: &str| tokenizer.encode_on(text);

    let budget = budget.saturating_sub(8); // markers
    let most_behind = suffix_tokens.min(budget / 2);
    let mut behind = encode_on(head(&request.suffix, most_behind * 16));
    behind.truncate(most_behind);
    let mut before = encode(tail(&request.prefix, budget * 16));
    let room = budget - behind.len();
    if before.len() > room {
        before = encode(cut_lines(&request.prefix, tokenizer, room));
        // One line may be longer than the room.
        before.drain(..before.len().saturating_sub(room));
    }

    let mut ids = vec![];
    if let (Some(repository), Some(separator)) = (fim.repo, fim.file_sep)
        && (!request.files.is_empty() || request.path.is_some())
    {
        let left = room - before.len().next_multiple_of(STEP_TOKENS).min(room);
        let mut context = vec![repository];
        context.extend(encode(&format!("{}\n", request.repository)));
        for file in &request.files {
            let mut part = vec![separator];
            part.extend(encode(&format!("{}\n{}\n", file.path, file.text)));
            if context.len() + part.len() > left {
                continue; // A smaller file may still fit.
            }
            context.extend(part);
        }
        if let Some(path) = &request.path {
            context.push(separator);
            context.extend(encode(&format!("{path}\n")));
        }
        if context.len() <= left {
            ids = context;
        }
    }
    if tokenizer.add_bos()
        && let Some(bos) = tokenizer.bos()
    {
        ids.insert(0, bos);
    }
    ids.push(prefix);
    ids.extend(before);
    ids.push(suffix);
    ids.extend(behind);
    ids.push(middle);
    Ok(ids)
}

/// The end of the prefix that fits, starting at a line whose number is a multiple of the step.
fn cut_lines<'a>(text: &'a str, tokenizer: &Tokenizer, room: usize) -> &'a str {
    let starts: Vec<usize> =
        std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).step_by(STEP_LINES).collect();
    let fits = |start: usize| tokenizer.encode(&text[start..], Encode::default()).len() <= room;
    // Longer tails have more tokens: the first start that fits is found by halving.
    let first = starts.partition_point(|&start| !fits(start));
    match starts.get(first) {
        Some(&start) => &text[start..],
        None => tail(text, room),
    }
}

/// The last `bytes` bytes, from a character's start.
fn tail(text: &str, bytes: usize) -> &str {
    let at = text.len().saturating_sub(bytes);
    &text[(at..=text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len())..]
}

/// The first `bytes` bytes, to a character's end.
fn head(text: &str, bytes: usize) -> &str {
    let at = bytes.min(text.len());
    &text[..(0..=at).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)]
}
