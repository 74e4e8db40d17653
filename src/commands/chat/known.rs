//! Prompt text to ids, so that the ids of a longer prompt begin with those that the session already holds.
//!
//! Why not encode each prompt afresh: a model may spell its answer in other tokens than the tokenizer would, and then
//! everything behind the first difference would be computed again. So the text is cut where a prompt or an answer
//! ended, and what lies before the cut keeps the ids it had. A cut is used only in front of a special token, where no
//! token can reach across it.

use crate::tokenizer::{Decoder, Encode, Tokenizer};

/// What the session holds, as text and as ids.
#[derive(Debug, Default)]
pub struct Known {
    text: String,
    ids: Vec<u32>,
    /// Where prompts and answers ended: (bytes of `text`, tokens of `ids`), rising.
    cuts: Vec<(usize, usize)>,
}

impl Known {
    /// The ids of a rendered prompt, which is what is known from now on.
    pub fn encode(&mut self, tokenizer: &Tokenizer, prompt: &str) -> &[u32] {
        while let Some(&(bytes, tokens)) = self.cuts.last() {
            self.text.truncate(bytes);
            self.ids.truncate(tokens);
            if let Some(rest) = prompt.strip_prefix(self.text.as_str()) {
                let new = tokenizer.encode(rest, Encode { add_special: false, parse_special: true });
                if new.first().is_none_or(|&id| tokenizer.is_special(id)) {
                    self.add(rest, &new);
                    return &self.ids;
                }
            }
            self.cuts.pop();
        }
        let ids = tokenizer.encode_prompt(prompt);
        self.text.clear();
        self.ids.clear();
        self.add(prompt, &ids);
        &self.ids
    }

    /// The answer to the last prompt, as it was generated.
    pub fn answered(&mut self, tokenizer: &Tokenizer, text: &str, ids: &[u32]) {
        // An answer that was broken off inside of a character has ids without text; it is encoded afresh.
        let mut decoder = Decoder::new(false);
        let mut spelled: String =
            ids.iter().flat_map(|&id| decoder.push(tokenizer, id).chars().collect::<Vec<_>>()).collect();
        spelled.push_str(decoder.finish());
        if spelled == text {
            self.add(text, ids);
        }
    }

    /// Forgets everything, as for another model.
    pub fn clear(&mut self) {
        *self = Known::default();
    }

    fn add(&mut self, text: &str, ids: &[u32]) {
        self.text.push_str(text);
        self.ids.extend_from_slice(ids);
        let end = (self.text.len(), self.ids.len());
        if self.cuts.last() != Some(&end) {
            self.cuts.push(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::tokenizer::Vocab;
    use std::path::Path;

    fn tokenizer() -> Tokenizer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/qwen2/model.gguf");
        let gguf = Gguf::open(&path).unwrap();
        Tokenizer::new(Vocab::from_gguf(&gguf).unwrap()).unwrap()
    }

    #[test]
    fn the_next_prompt_starts_with_the_ids_that_were_generated() {
        let t = tokenizer();
        let first = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
        let mut known = Known::default();
        let prompt = known.encode(&t, first).to_vec();
        assert_eq!(prompt, t.encode_prompt(first));
        // One token a byte: not how the tokenizer would spell it.
        let answer = "the then";
        let odd: Vec<u32> = answer.chars().flat_map(|c| t.encode(&c.to_string(), Encode::default())).collect();
        assert_ne!(odd, t.encode(answer, Encode::default()));
        known.answered(&t, answer, &odd);
        let second = format!("{first}{answer}<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n");
        let ids = known.encode(&t, &second).to_vec();
        assert_eq!(ids[..prompt.len() + odd.len()], [prompt.clone(), odd.clone()].concat());
        assert_eq!(t.decode(&ids, true), second);
        // Asked anew, the first prompt is a cut; another question goes back to the start.
        assert_eq!(known.encode(&t, first), prompt);
        let other = first.replace("hi", "ho");
        assert_eq!(known.encode(&t, &other), t.encode_prompt(&other));
    }

    #[test]
    fn an_answer_whose_text_is_not_its_ids_text_is_not_taken_over() {
        let t = tokenizer();
        let first = "<|im_start|>assistant\n";
        let mut known = Known::default();
        let prompt = known.encode(&t, first).to_vec();
        let half = t.encode("é", Encode::default());
        known.answered(&t, "", &half[..1]);
        let second = format!("{first}<|im_end|>\n");
        assert_eq!(known.encode(&t, &second), t.encode_prompt(&second));
        assert_eq!(known.encode(&t, first), prompt);
    }
}
