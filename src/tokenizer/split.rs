//! Pre-tokenizers: how a `gpt2` vocabulary's text is cut into words before its bytes are merged.
//!
//! Each named rule is a list of passes; a pass cuts the fragments that the pass before it left. The
//! patterns are part of a model's definition. Their one non-regular piece, `\s+(?!\S)` (leave the last
//! space of a run to the word that follows), is applied by hand after a match, so that the patterns run
//! on `regex-automata`, in linear time. An unknown name is refused: a near rule gives wrong ids silently.

use super::vocab::TokenizerError;
use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input};
use std::ops::Range;

enum Pass {
    /// Every match is a word.
    Find(&'static str),
    /// As `Find`, then runs of white space, which give their last character to a following word.
    Words(&'static str),
}

struct Rule {
    names: &'static [&'static str],
    passes: &'static [Pass],
    /// A word that is a token as it stands is not merged from bytes.
    ignore_merges: bool,
    /// The default where the file does not say.
    add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+";
const LLAMA3: &str =
    r"(?i-u:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+";
const QWEN2: &str =
    r"(?i-u:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+";
const QWEN35: &str =
    r"(?i-u:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"##;

const RULES: &[Rule] = &[
    Rule { names: &["qwen2", "deepseek-r1-qwen"], passes: &[Pass::Words(QWEN2)], ignore_merges: false, add_bos: false },
    Rule { names: &["qwen35"], passes: &[Pass::Words(QWEN35)], ignore_merges: false, add_bos: false },
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3"],
        passes: &[Pass::Words(LLAMA3)],
        ignore_merges: true,
        add_bos: true,
    },
    Rule { names: &["glm4"], passes: &[Pass::Words(LLAMA3)], ignore_merges: true, add_bos: false },
    Rule {
        names: &["smollm"],
        passes: &[Pass::Find(r"\p{N}"), Pass::Words(GPT2)],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["gpt-2"], passes: &[Pass::Words(GPT2)], ignore_merges: false, add_bos: false },
    Rule {
        names: &["deepseek-v3"],
        passes: &[Pass::Find(r"\p{N}{1,3}"), Pass::Find("[一-龥\u{3040}-ゟ゠-ヿ]+"), Pass::Words(DEEPSEEK3)],
        ignore_merges: false,
        add_bos: false,
    },
];

/// In a pass that has it, the pattern after the words.
const WHITESPACE: usize = 1;

/// Cuts text into words by a named rule.
pub struct Splitter {
    passes: Vec<Regex>,
    pub(super) ignore_merges: bool,
    pub(super) add_bos: bool,
}

impl Splitter {
    pub fn new(pre: &str) -> Result<Self, TokenizerError> {
        let Some(rule) = RULES.iter().find(|rule| rule.names.contains(&pre)) else {
            let known: Vec<_> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
            return Err(TokenizerError::UnknownPre { found: pre.to_owned(), known: known.join(", ") });
        };
        let compile = |pass: &Pass| {
            let regex = match pass {
                Pass::Find(pattern) => Regex::new(pattern),
                Pass::Words(pattern) => Regex::new_many(&[pattern, r"\s+"]),
            };
            regex.map_err(|why| TokenizerError::Internal { what: "the pre-tokenizer", why: why.to_string() })
        };
        let passes = rule.passes.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { passes, ignore_merges: rule.ignore_merges, add_bos: rule.add_bos })
    }

    /// The words of `text`, in order; together they are all of it.
    pub fn words(&self, text: &str) -> Vec<Range<usize>> {
        let mut fragments = Vec::new();
        fragments.push(0..text.len());
        let mut words = Vec::new();
        for regex in &self.passes {
            words.clear();
            words.reserve(text.len() / 4);
            for fragment in &fragments {
                cut(regex, text, fragment.clone(), &mut words);
            }
            std::mem::swap(&mut fragments, &mut words);
        }
        fragments
    }
}

/// Appends the matches in `fragment` and, as words of their own, the gaps between them.
fn cut(regex: &Regex, text: &str, fragment: Range<usize>, words: &mut Vec<Range<usize>>) {
    let mut gap = fragment.start; // where the text without a match began
    let mut at = fragment.start;
    while at < fragment.end {
        // Anchored: a match begins where the last one ended, so no search backwards is needed.
        let input = Input::new(text).range(at..fragment.end).anchored(Anchored::Yes);
        let Some(found) = regex.search_half(&input) else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
            continue;
        };
        let mut end = found.offset();
        if found.pattern().as_usize() == WHITESPACE && end < fragment.end {
            // `\s+(?!\S)`: a run before a word keeps its last character for that word, if it has two.
            let last = text[at..end].chars().next_back().map_or(0, char::len_utf8);
            if end - last > at {
                end -= last;
            }
        }
        if gap < at {
            words.push(gap..at);
        }
        words.push(at..end);
        at = end;
        gap = end;
    }
    if gap < at {
        words.push(gap..at);
    }
}
