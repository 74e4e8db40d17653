//! Tokens that are matched as whole strings before any word is split, and the names by which the
//! well-known ones are found in a file that does not say what they are for.
//!
//! The cutting order is llama.cpp's, because ids must agree: the longest token first, over the whole
//! text, then the next. Files do mark `<|im_end|>` and the like as ordinary tokens now and then, so a token
//! with a well-known name is special whatever its type says.

use super::pieces::{Index, Pieces};
use super::vocab::{Fim, TokenType, TokenizerError, Vocab};
use aho_corasick::AhoCorasick;
use std::ops::Range;

/// Names of tokens that end an answer. The first of those present that ends a turn is the EOT token.
const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];
const END_OF_GENERATION: &[&str] = &[
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];
const FIM_PREFIX: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const FIM_SUFFIX: &[&str] = &[
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const FIM_MIDDLE: &[&str] = &[
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
const FIM_PAD: &[&str] = &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const FIM_REPO: &[&str] = &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FIM_FILE_SEP: &[&str] = &["<|file_sep|>"];

/// Bytes of a special token that the automaton knows: building one is quadratic in the longest.
const SEARCHED_BYTES: usize = 64;

/// What the vocabulary's special tokens are for.
#[derive(Debug, Clone, Default)]
pub struct Roles {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
    pub fim: Fim,
    /// Sorted: every token that ends an answer.
    pub ends: Vec<u32>,
}

impl Roles {
    /// Reads the roles from the keys, then from well-known names; marks the named tokens in `types`.
    pub fn find(vocab: &Vocab, texts: &Pieces, index: &Index, types: &mut [TokenType]) -> Self {
        let find = |name: &&str| index.find(texts, name.as_bytes());
        let mut named = |key: Option<u32>, names: &[&str]| {
            key.or_else(|| {
                let id = names.iter().find_map(find)?;
                types[id as usize] = TokenType::Control;
                Some(id)
            })
        };
        let eot = named(vocab.eot, END_OF_TURN);
        let fim = Fim {
            prefix: named(vocab.fim.prefix, FIM_PREFIX),
            suffix: named(vocab.fim.suffix, FIM_SUFFIX),
            middle: named(vocab.fim.middle, FIM_MIDDLE),
            pad: named(vocab.fim.pad, FIM_PAD),
            repo: named(vocab.fim.repo, FIM_REPO),
            file_sep: named(vocab.fim.file_sep, FIM_FILE_SEP),
        };
        let mut ends = Vec::new();
        ends.extend([vocab.eos, eot, vocab.eom, fim.pad, fim.repo, fim.file_sep].into_iter().flatten());
        for name in END_OF_TURN.iter().chain(END_OF_GENERATION) {
            let Some(id) = find(name) else { continue };
            let kind = &mut types[id as usize];
            // An ordinary `</s>` is HTML that a coding model may well write (Qwen has it): it is cut
            // out of a prompt as llama.cpp does, but it does not end the answer.
            if *name != "</s>" || *kind != TokenType::Normal {
                ends.push(id);
            }
            *kind = TokenType::Control;
        }
        ends.sort_unstable();
        ends.dedup();
        Self { bos: vocab.bos, eos: vocab.eos, eot, unknown: vocab.unknown, padding: vocab.padding, fim, ends }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Fragment {
    Token(u32),
    Text(Range<usize>),
}

/// The special tokens, longest first, and a search for all of them at once.
#[derive(Debug)]
pub struct Specials {
    tokens: Vec<Special>,
    search: AhoCorasick, // pattern ids are places in `tokens`
}

#[derive(Debug)]
struct Special {
    id: u32,
    /// Matched even where special tokens are not parsed.
    always: bool,
}

impl Specials {
    pub fn new(texts: &Pieces, types: &[TokenType]) -> Result<Self, TokenizerError> {
        let mut tokens = Vec::new();
        for (id, kind) in types.iter().enumerate() {
            let always = match kind {
                TokenType::UserDefined => true,
                TokenType::Control | TokenType::Unknown => false,
                TokenType::Normal | TokenType::Unused | TokenType::Byte => continue,
            };
            if !texts.get(id as u32).is_empty() {
                tokens.push(Special { id: id as u32, always });
            }
        }
        tokens.sort_by_key(|token| std::cmp::Reverse(texts.get(token.id).len()));
        // The automaton only says which tokens may be there; cutting compares them whole. So the beginning of a long one is
        // enough, and a token of a million letters costs no more than any other.
        let beginning = |token: &Special| {
            let text = texts.get(token.id);
            &text[..text.len().min(SEARCHED_BYTES)]
        };
        let search = AhoCorasick::new(tokens.iter().map(beginning))
            .map_err(|why| TokenizerError::Internal { what: "the search for special tokens", why: why.to_string() })?;
        Ok(Self { tokens, search })
    }

    /// Cuts `text` at its special tokens. Control tokens count only if `parse_special`, and where no seam is in them.
    pub fn cut(&self, text: &str, texts: &Pieces, parse_special: bool, seams: &[usize]) -> Vec<Fragment> {
        let mut present = vec![false; self.tokens.len()];
        for found in self.search.find_overlapping_iter(text) {
            present[found.pattern()] = true;
        }
        let mut fragments = vec![Fragment::Text(0..text.len())];
        for (token, _) in self.tokens.iter().zip(present).filter(|(_, present)| *present) {
            if token.always || parse_special {
                let seams = if token.always { &[] } else { seams };
                fragments = cut_one(token.id, texts.get(token.id), text, seams, fragments);
            }
        }
        fragments.retain(|fragment| !matches!(fragment, Fragment::Text(range) if range.is_empty()));
        fragments
    }

    /// Where `text` needs a seam so that no control token is found in it, nor in what it touches: behind the first
    /// character of every spelling, of a beginning of one at the end, and of an ending of one at the start.
    pub fn seams(&self, text: &str, texts: &Pieces) -> Vec<usize> {
        let mut seams = vec![];
        let mut add = |at: usize| seams.extend(text[at..].chars().next().map(|first| at + first.len_utf8()));
        for found in self.search.find_overlapping_iter(text) {
            if !self.tokens[found.pattern()].always {
                add(found.start());
            }
        }
        let (head, tail) = (text.trim_start(), text.trim_end());
        let skipped = text.len() - head.len();
        for token in self.tokens.iter().filter(|token| !token.always) {
            let Ok(spelling) = std::str::from_utf8(texts.get(token.id)) else { continue };
            for (at, _) in spelling.char_indices().skip(1) {
                let (begins, ends) = spelling.split_at(at);
                for end in [text, tail].iter().filter(|end| end.ends_with(begins)) {
                    add(end.len() - begins.len());
                }
                for start in [0, skipped] {
                    if text[start..].starts_with(ends) {
                        add(start);
                    }
                }
            }
        }
        seams.sort_unstable();
        seams.dedup();
        seams
    }
}

fn cut_one(id: u32, token: &[u8], text: &str, seams: &[usize], fragments: Vec<Fragment>) -> Vec<Fragment> {
    let finder = memchr::memmem::Finder::new(token);
    let mut cut = Vec::with_capacity(fragments.len() + 2);
    for fragment in fragments {
        let Fragment::Text(range) = fragment else {
            cut.push(fragment);
            continue;
        };
        let (mut start, mut at) = (range.start, range.start);
        while let Some(found) = finder.find(&text.as_bytes()[at..range.end]) {
            let found = at + found;
            let end = found + token.len();
            let seam = seams.get(seams.partition_point(|&seam| seam <= found));
            if seam.is_some_and(|&seam| seam <= end) {
                at = found + 1;
                continue;
            }
            cut.push(Fragment::Text(start..found));
            cut.push(Fragment::Token(id));
            (start, at) = (end, end);
        }
        cut.push(Fragment::Text(start..range.end));
    }
    cut
}
