//! Prompts by their text, kept by their ids: an answer that comes back keeps the ids it was generated with.
//!
//! A model may spell its answer in other tokens than the tokenizer would, and everything behind the first difference would be
//! computed again. So a rendered prompt is compared with what is remembered as text between special tokens, which are told apart
//! from text that only spells them. Up to the last special token where both agree, which no other token can reach across, the
//! remembered ids are taken; behind it the tokenizer's.

use super::Engine;
use crate::tokenizer::{Prompt, Tokenizer};

/// Where a prompt leaves what was remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parted {
    /// Tokens that are equal.
    pub at: usize,
    /// What was remembered there, and what came: a few ids each.
    pub was: Vec<u32>,
    pub is: Vec<u32>,
}

/// Ids of either side that show a difference.
const SHOWN: usize = 6;
/// Tokens that must be equal for two prompts to be of one conversation.
const LEAST_COMMON: usize = 32;

impl Engine {
    /// The ids of a rendered prompt: those that were generated where an answer comes back.
    pub fn encode_prompt(&self, tokenizer: &Tokenizer, prompt: &Prompt) -> Vec<u32> {
        let new = tokenizer.encode_rendered(prompt);
        let mut best = (0, None);
        for known in self.memory.past().texts() {
            best = better(tokenizer, &known, &new, best);
        }
        let mut spelled = vec![];
        new.iter().for_each(|&id| tokenizer.spell_apart(id, &mut spelled));
        if let Some((ids, _)) = self.known_text(&spelled) {
            best = better(tokenizer, &ids, &new, best);
        }
        best.1.unwrap_or(new)
    }

    /// Where these ids leave the remembered sequence that they follow longest, if it went on otherwise.
    pub fn parted(&self, ids: &[u32]) -> Option<Parted> {
        let common = |session: &super::Session| super::common_prefix(&session.ids, ids);
        let nearest = self.memory.past().sessions().max_by_key(|session| common(session))?;
        let at = common(nearest);
        let few = |ids: &[u32]| ids.iter().skip(at).take(SHOWN).copied().collect();
        let went_on = at < nearest.ids.len() && at < ids.len();
        (went_on && at >= LEAST_COMMON).then(|| Parted { at, was: few(&nearest.ids), is: few(ids) })
    }
}

/// The better of a candidate and of the prompt with what these known ids say in place of its start: more of the known ones.
fn better(
    tokenizer: &Tokenizer,
    known: &[u32],
    new: &[u32],
    best: (usize, Option<Vec<u32>>),
) -> (usize, Option<Vec<u32>>) {
    let (taken, cut) = agree(tokenizer, known, new);
    // How far the ids of both together follow the known ones.
    let rest = super::common_prefix(&known[taken..], &new[cut..]);
    if taken + rest <= best.0 {
        return best;
    }
    let ids = (known[..taken] != new[..cut]).then(|| [&known[..taken], &new[cut..]].concat());
    (taken + rest, ids)
}

/// The last place where the texts of both agree and a special token of `new` begins or ends: tokens of each up to there. Text is
/// compared from special token to special token, as it was shown: bytes that are no character count as U+FFFD.
fn agree(tokenizer: &Tokenizer, known: &[u32], new: &[u32]) -> (usize, usize) {
    let (mut i, mut j) = (0, 0);
    loop {
        let (a, b) = (stretch(tokenizer, &known[i..]), stretch(tokenizer, &new[j..]));
        let same =
            known[i..i + a] == new[j..j + b] || text(tokenizer, &known[i..i + a]) == text(tokenizer, &new[j..j + b]);
        if !same {
            return (i, j);
        }
        (i, j) = (i + a, j + b);
        match (known.get(i), new.get(j)) {
            (Some(a), Some(b)) if a == b => (i, j) = (i + 1, j + 1),
            _ => return (i, j),
        }
    }
}

/// Tokens before the first special one.
fn stretch(tokenizer: &Tokenizer, ids: &[u32]) -> usize {
    ids.iter().position(|&id| tokenizer.is_special(id)).unwrap_or(ids.len())
}

fn text(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::tokenizer::{Encode, Vocab};

    fn tokenizer() -> Tokenizer {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/qwen2/model.gguf");
        Tokenizer::new(Vocab::from_gguf(&Gguf::open(&path).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn an_answer_that_comes_back_keeps_the_ids_it_was_generated_with() {
        let t = tokenizer();
        let first = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
        let answer = "the then";
        // One token a byte: not how the tokenizer would spell it.
        let odd: Vec<u32> = answer.chars().flat_map(|c| t.encode(&c.to_string(), Encode::default())).collect();
        assert_ne!(odd, t.encode(answer, Encode::default()));
        let known = [t.encode_prompt(first), odd.clone()].concat();
        let second = format!("{first}{answer}<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n");
        let new = t.encode_prompt(&second);
        let (tokens, ids) = better(&t, &known, &new, (0, None));
        let ids = ids.unwrap();
        assert_eq!((tokens, &ids[..known.len()]), (known.len(), &known[..]));
        assert_eq!(t.decode(&ids, true), second);
        // An answer that was changed is cut where its turn began.
        let other = t.encode_prompt(&second.replace("the then", "the than"));
        let (tokens, ids) = better(&t, &known, &other, (0, None));
        assert_eq!((tokens >= t.encode_prompt(first).len(), ids), (true, None));
        // The same prompt is what it was.
        assert_eq!(better(&t, &known, &t.encode_prompt(first), (0, None)).1, None);
    }

    #[test]
    fn text_that_spells_a_special_token_is_not_that_token() {
        let t = tokenizer();
        let end = t.encode_prompt("a<|im_end|>");
        let spelled = t.encode("a<|im_end|>", Encode { add_special: false, parse_special: false });
        assert_ne!(end, spelled);
        assert_eq!(agree(&t, &spelled, &[end.clone(), end.clone()].concat()), (0, 0));
        assert_eq!(agree(&t, &end, &end), (end.len(), end.len()));
    }
}
