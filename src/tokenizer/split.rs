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
    /// White space at the end of a fragment is a word.
    Tail,
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

const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-",
    r"\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-",
    r"\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-",
    r"\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}",
    r"\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-",
    r"\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-",
    r"\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}",
    r"\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}",
    r"\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}",
    r"\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-",
    r"\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}",
    r"\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-",
    r"\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+",
);
const DEEPSEEK_MARKS: &str = r"\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
const DEEPSEEK_EAST: &str = r"[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
// A word changes from capitals to small letters once; of letters beyond ASCII both kinds take all.
const CASED: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}--a-z]*[\p{L}--A-Z]+|[^\r\n\p{L}\p{N}]?[\p{L}--a-z]+[\p{L}--A-Z]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}--a-z]*[\p{L}--A-Z]+(?i-u:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{L}--a-z]+[\p{L}--A-Z]*(?i-u:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+";
const SEED: &str = r"(?i-u:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+";
const HAN: &str = r"[\u{2e80}-\u{2fdf}\u{3005}\u{3007}\u{3021}-\u{3029}\u{3038}-\u{303b}\u{3400}-\u{4dbf}\u{4e00}-\u{9fff}\u{f900}-\u{faff}\u{20000}-\u{323af}]+";
const KIMI: &str = r"[^\r\n\p{L}\p{N}]?[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]--[\u{2e80}-\u{2fdf}\u{3005}\u{3007}\u{3021}-\u{3029}\u{3038}-\u{303b}\u{3400}-\u{4dbf}\u{4e00}-\u{9fff}\u{f900}-\u{faff}\u{20000}-\u{323af}]]*[[\p{Ll}\p{Lm}\p{Lo}\p{M}]--[\u{2e80}-\u{2fdf}\u{3005}\u{3007}\u{3021}-\u{3029}\u{3038}-\u{303b}\u{3400}-\u{4dbf}\u{4e00}-\u{9fff}\u{f900}-\u{faff}\u{20000}-\u{323af}]]+(?i-u:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]--[\u{2e80}-\u{2fdf}\u{3005}\u{3007}\u{3021}-\u{3029}\u{3038}-\u{303b}\u{3400}-\u{4dbf}\u{4e00}-\u{9fff}\u{f900}-\u{faff}\u{20000}-\u{323af}]]+[[\p{Ll}\p{Lm}\p{Lo}\p{M}]--[\u{2e80}-\u{2fdf}\u{3005}\u{3007}\u{3021}-\u{3029}\u{3038}-\u{303b}\u{3400}-\u{4dbf}\u{4e00}-\u{9fff}\u{f900}-\u{faff}\u{20000}-\u{323af}]]*(?i-u:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+";

const RULES: &[Rule] = &[
    Rule {
        names: &["qwen2", "deepseek-r1-qwen", "hunyuan", "stablelm2"],
        passes: &[Pass::Words(QWEN2)],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["qwen35"], passes: &[Pass::Words(QWEN35)], ignore_merges: false, add_bos: false },
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        passes: &[Pass::Words(LLAMA3)],
        ignore_merges: true,
        add_bos: true,
    },
    Rule { names: &["glm4", "glm5"], passes: &[Pass::Words(LLAMA3)], ignore_merges: true, add_bos: false },
    Rule {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        passes: &[Pass::Find(r"\p{N}"), Pass::Words(GPT2)],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["gpt-2", "olmo", "exaone4", "granite-docling"],
        passes: &[Pass::Words(GPT2)],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["deepseek-v3", "hunyuan-dense"],
        passes: &[Pass::Find(r"\p{N}{1,3}"), Pass::Find("[一-龥\u{3040}-ゟ゠-ヿ]+"), Pass::Words(DEEPSEEK3)],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["default"],
        passes: &[
            Pass::Find(r"[\p{P}\$\+<=>\^~\|]+"),
            Pass::Words(GPT2),
            Pass::Find(r"\p{N}+"),
            Pass::Find("[0-9][0-9][0-9]"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["deepseek-llm"],
        passes: &[
            Pass::Find(r"[\r\n]"),
            Pass::Find(DEEPSEEK_LETTERS),
            Pass::Find(DEEPSEEK_MARKS),
            Pass::Tail,
            Pass::Find(DEEPSEEK_EAST),
            Pass::Find(r"\p{N}+"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["deepseek-coder"],
        passes: &[
            Pass::Find(r"[\r\n]"),
            Pass::Find(r"\s?\p{L}+"),
            Pass::Find(r"\s?\p{P}+"),
            Pass::Find(DEEPSEEK_EAST),
            Pass::Find(r"\p{N}"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["tekken"], passes: &[Pass::Words(CASED)], ignore_merges: true, add_bos: true },
    Rule { names: &["seed-coder"], passes: &[Pass::Words(SEED)], ignore_merges: false, add_bos: false },
    Rule {
        names: &["gpt-4o", "llama4", "minimax-m2"],
        passes: &[Pass::Words(GPT4O)],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["smaug-bpe", "dbrx", "chatglm-bpe"],
        passes: &[Pass::Words(LLAMA3)],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["kimi-k2"], passes: &[Pass::Find(HAN), Pass::Words(KIMI)], ignore_merges: false, add_bos: false },
];

/// In a pass that has it, the pattern after the words.
const WHITESPACE: usize = 1;

/// Cuts text into words by a named rule.
pub struct Splitter {
    passes: Vec<Option<Regex>>, // none: white space at a fragment's end
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
                Pass::Tail => return Ok(None),
            };
            regex.map(Some).map_err(|why| TokenizerError::Internal { what: "the pre-tokenizer", why: why.to_string() })
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
                match regex {
                    Some(regex) => cut(regex, text, fragment.clone(), &mut words),
                    None => {
                        let tail = fragment.start + text[fragment.clone()].trim_end().len();
                        let parts = [fragment.start..tail, tail..fragment.end];
                        words.extend(parts.into_iter().filter(|part| !part.is_empty()));
                    }
                }
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
