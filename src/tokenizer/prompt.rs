//! A rendered prompt in which a message's text stays text.
//!
//! A template writes `<|im_end|>` to end a turn; a user who pastes a file may write the same characters and mean them. The
//! two look alike once they are rendered, so what came from a message carries seams: places at which no special token may
//! be found. The text itself is untouched. Tokens that the file calls user-defined are matched in any text, as the models
//! were trained.

/// The text of a prompt and its seams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    pub text: String,
    /// Ends of characters that are only text, rising; a control token that covers one of them is not read as a token.
    pub seams: Vec<usize>,
}

impl Prompt {
    /// Takes the marks out of a text; each becomes a seam.
    pub fn from_marked(marked: &str, mark: char) -> Prompt {
        let mut prompt = Prompt { text: String::with_capacity(marked.len()), seams: vec![] };
        for (at, part) in marked.split(mark).enumerate() {
            if at > 0 && prompt.seams.last() != Some(&prompt.text.len()) {
                prompt.seams.push(prompt.text.len());
            }
            prompt.text.push_str(part);
        }
        prompt
    }

    /// The seams behind byte `at`, counted from there.
    pub fn seams_from(&self, at: usize) -> Vec<usize> {
        self.seams.iter().filter(|&&seam| seam > at).map(|seam| seam - at).collect()
    }
}

/// A text in which every spelling of a special token is one.
impl From<String> for Prompt {
    fn from(text: String) -> Prompt {
        Prompt { text, seams: vec![] }
    }
}
