//! Ids to text while they arrive: a character may be spread over several tokens, and only whole ones
//! are given out.
//!
//! Bytes that can no longer become a character turn into U+FFFD at once, as `String::from_utf8_lossy`
//! would have it, so the pieces joined equal the lossy decoding of the whole.

use super::Tokenizer;

#[derive(Debug, Clone, Default)]
pub struct Decoder {
    show_special: bool,
    pending: Vec<u8>, // an unfinished character: at most 3 bytes between calls
    text: String,     // what the last call gave out
}

impl Decoder {
    /// Control tokens give no text unless `show_special`.
    pub fn new(show_special: bool) -> Self {
        Self { show_special, ..Self::default() }
    }

    /// The characters that `id` completes; empty while one is unfinished.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        self.text.clear();
        if self.show_special || !tokenizer.is_special(id) {
            self.pending.extend_from_slice(tokenizer.token_bytes(id));
        }
        let mut done = 0;
        while done < self.pending.len() {
            match std::str::from_utf8(&self.pending[done..]) {
                Ok(valid) => {
                    self.text.push_str(valid);
                    done = self.pending.len();
                }
                Err(error) => {
                    let valid = &self.pending[done..done + error.valid_up_to()];
                    self.text.push_str(&String::from_utf8_lossy(valid));
                    done += error.valid_up_to();
                    let Some(bad) = error.error_len() else { break };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    done += bad;
                }
            }
        }
        self.pending.drain(..done);
        &self.text
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.pending.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }
}
