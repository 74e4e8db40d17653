//! Prompt text to ids, so that the ids of a longer prompt begin with those that the session already holds.
//!
//! Why not encode each prompt afresh: a model may spell its answer in other tokens than the tokenizer would, and then
//! everything behind the first difference would be computed again. So the text is cut where a prompt or an answer
//! ended, and what lies before the cut keeps the ids it had. A cut is used only in front of a special token, where no
//! token can reach across it.

use std::ops::Range;

use crate::tokenizer::{Decoder, Encode, Prompt, Tokenizer};

/// What the session holds, as text and as ids.
#[derive(Debug, Default)]
pub struct Known {
    text: String,
    ids: Vec<u32>,
    /// Where prompts and answers ended: (bytes of `text`, tokens of `ids`), rising.
    cuts: Vec<(usize, usize)>,
    /// The prompts' seams: places in `text`.
    seams: Vec<usize>,
    /// Answers in `text`, whose ids are the model's own, whatever they spell.
    answers: Vec<Range<usize>>,
}

impl Known {
    /// The ids of a rendered prompt, which is what is known from now on.
    pub fn encode(&mut self, tokenizer: &Tokenizer, prompt: &Prompt) -> &[u32] {
        while let Some(&(bytes, tokens)) = self.cuts.last() {
            self.text.truncate(bytes);
            self.ids.truncate(tokens);
            self.seams.retain(|&seam| seam <= bytes);
            self.answers.retain(|answer| answer.end <= bytes);
            if let Some(rest) = prompt.text.strip_prefix(self.text.as_str())
                && self.seams_agree(prompt)
            {
                let how = Encode { add_special: false, parse_special: true };
                let new = tokenizer.encode_with_seams(rest, how, &prompt.seams_from(bytes));
                if new.first().is_none_or(|&id| tokenizer.is_special(id)) {
                    self.seams.extend(prompt.seams.iter().filter(|&&seam| seam > bytes));
                    self.add(rest, &new);
                    return &self.ids;
                }
            }
            self.cuts.pop();
        }
        let ids = tokenizer.encode_rendered(prompt);
        self.clear();
        self.seams.clone_from(&prompt.seams);
        self.add(&prompt.text, &ids);
        &self.ids
    }

    /// Whether the same text was only text before, too.
    fn seams_agree(&self, prompt: &Prompt) -> bool {
        let own = |seam: &&usize| !self.answers.iter().any(|answer| answer.start < **seam && **seam <= answer.end);
        let theirs = prompt.seams.iter().take_while(|&&seam| seam <= self.text.len());
        theirs.filter(own).eq(self.seams.iter().filter(own))
    }

    /// The answer to the last prompt, as it was generated.
    pub fn answered(&mut self, tokenizer: &Tokenizer, text: &str, ids: &[u32]) {
        // An answer that was broken off inside of a character has ids without text; it is encoded afresh.
        let mut decoder = Decoder::new(false);
        let mut spelled: String =
            ids.iter().flat_map(|&id| decoder.push(tokenizer, id).chars().collect::<Vec<_>>()).collect();
        spelled.push_str(decoder.finish());
        if spelled == text {
            self.answers.push(self.text.len()..self.text.len() + text.len());
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
    use crate::chat::{Message, Template};
    use crate::gguf::Gguf;
    use crate::tokenizer::Vocab;
    use std::path::Path;

    fn tokenizer() -> Tokenizer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/qwen2/model.gguf");
        let gguf = Gguf::open(&path).unwrap();
        Tokenizer::new(Vocab::from_gguf(&gguf).unwrap()).unwrap()
    }

    fn plain(text: &str) -> Prompt {
        text.to_owned().into()
    }

    #[test]
    fn what_was_text_before_and_is_a_token_now_is_encoded_anew() {
        let t = tokenizer();
        let template = Template::builtin("chatml").unwrap();
        let mut known = Known::default();
        let mut messages = vec![Message::user("a<|im_end|>b")];
        let prompt = |messages: &[Message]| template.prompt(&t, messages, None, true, &Default::default()).unwrap();
        let first = prompt(&messages);
        let safe = known.encode(&t, &first).to_vec();
        assert_ne!(safe, t.encode_prompt(&first.text));
        // The answer spells a token in text; its ids stay the model's own.
        let answer = "c<|im_end|>d";
        let ids = t.encode(answer, Encode::default());
        known.answered(&t, answer, &ids);
        messages.extend([Message::assistant(answer), Message::user("more")]);
        let second = prompt(&messages);
        assert_eq!(known.encode(&t, &second)[..safe.len() + ids.len()], [safe.clone(), ids].concat());
        assert_eq!(known.encode(&t, &plain(&second.text)), t.encode_prompt(&second.text));
        assert_eq!(known.encode(&t, &first), safe);
    }

    #[test]
    fn the_next_prompt_starts_with_the_ids_that_were_generated() {
        let t = tokenizer();
        let first = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
        let mut known = Known::default();
        let prompt = known.encode(&t, &plain(first)).to_vec();
        assert_eq!(prompt, t.encode_prompt(first));
        // One token a byte: not how the tokenizer would spell it.
        let answer = "the then";
        let odd: Vec<u32> = answer.chars().flat_map(|c| t.encode(&c.to_string(), Encode::default())).collect();
        assert_ne!(odd, t.encode(answer, Encode::default()));
        known.answered(&t, answer, &odd);
        let second = format!("{first}{answer}<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n");
        let ids = known.encode(&t, &plain(&second)).to_vec();
        assert_eq!(ids[..prompt.len() + odd.len()], [prompt.clone(), odd.clone()].concat());
        assert_eq!(t.decode(&ids, true), second);
        // Asked anew, the first prompt is a cut; another question goes back to the start.
        assert_eq!(known.encode(&t, &plain(first)), prompt);
        let other = first.replace("hi", "ho");
        assert_eq!(known.encode(&t, &plain(&other)), t.encode_prompt(&other));
    }

    #[test]
    fn an_answer_whose_text_is_not_its_ids_text_is_not_taken_over() {
        let t = tokenizer();
        let first = "<|im_start|>assistant\n";
        let mut known = Known::default();
        let prompt = known.encode(&t, &plain(first)).to_vec();
        let half = t.encode("é", Encode::default());
        known.answered(&t, "", &half[..1]);
        let second = format!("{first}<|im_end|>\n");
        assert_eq!(known.encode(&t, &plain(&second)), t.encode_prompt(&second));
        assert_eq!(known.encode(&t, &plain(first)), prompt);
    }
}
