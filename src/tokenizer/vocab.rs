//! The vocabulary as a model file states it: plain borrowed data, checked and not yet indexed.
//!
//! [`Vocab`] has one field for each `tokenizer.ggml.*` key that changes ids or text. It exists so that
//! the tokenizer can be built and tested without a model file. An absent key stays `None` here: its
//! default depends on the tokenizer's family, which `Tokenizer::new` knows.

use thiserror::Error;

/// `tokenizer.ggml.token_type`; the numbers are the file format's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenType {
    Normal,
    Unknown,
    /// Never matched in text unless special tokens are parsed; has no text of its own.
    Control,
    /// Matched in text as a whole, always, before anything is merged.
    UserDefined,
    /// A row that only pads the embedding table.
    Unused,
    /// One byte of a SentencePiece vocabulary, written `<0x41>`.
    Byte,
}

impl TokenType {
    /// Anything the format does not define is treated as padding.
    pub fn from_gguf(id: i64) -> Self {
        match id {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Unused,
        }
    }
}

/// Ids of the fill-in-the-middle markers; `None` where the model has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fim {
    pub prefix: Option<u32>,
    pub suffix: Option<u32>,
    pub middle: Option<u32>,
    pub pad: Option<u32>,
    pub repo: Option<u32>,
    pub file_sep: Option<u32>,
}

#[derive(Debug, Clone, Default)]
pub struct Vocab<'a> {
    /// `gpt2` or `llama`.
    pub model: &'a str,
    /// The pre-tokenizer of a `gpt2` vocabulary.
    pub pre: Option<&'a str>,
    pub tokens: Vec<&'a str>,  // (n_vocab)
    pub types: Vec<TokenType>, // (n_vocab), or empty: all normal
    pub scores: Vec<f32>,      // (n_vocab), or empty
    pub merges: Vec<&'a str>,  // (n_merges), "left right", best first
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
    pub fim: Fim,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
}

#[derive(Debug, Error, PartialEq)]
pub enum TokenizerError {
    #[error(
        "tokenizer.ggml.model is '{0}': this build knows 'gpt2' (byte-pair) and 'llama' (SentencePiece); convert the model with one of these"
    )]
    UnknownModel(String),
    #[error(
        "tokenizer.ggml.pre is '{found}': this build knows {known}; its text splitting is not implemented, so ids would be wrong"
    )]
    UnknownPre { found: String, known: String },
    #[error("{key} is missing: the file has no complete tokenizer; convert the model again")]
    Missing { key: &'static str },
    #[error("{key} has {found} entries but the vocabulary has {n_vocab} tokens; the file is damaged or was edited")]
    Length { key: &'static str, found: usize, n_vocab: usize },
    #[error("{key} is {id}, outside the vocabulary of {n_vocab} tokens; the file is damaged or was edited")]
    BadId { key: &'static str, id: u32, n_vocab: usize },
    #[error(
        "tokenizer.ggml.merges[{index}] is {text:?}, not two pieces with a space between; the file is damaged or was edited"
    )]
    BadMerge { index: usize, text: String },
    #[error("tokenizer.ggml.scores[{index}] is not a number; the file is damaged")]
    BadScore { index: usize },
    #[error("the vocabulary of {n_vocab} tokens does not fit this tokenizer's 32-bit offsets")]
    TooLarge { n_vocab: usize },
    #[error("{what} could not be built: {why}")]
    Internal { what: &'static str, why: String },
}

impl Vocab<'_> {
    /// Refuses what would make a later index go out of range.
    pub(super) fn check(&self) -> Result<(), TokenizerError> {
        let n_vocab = self.tokens.len();
        if n_vocab == 0 {
            return Err(TokenizerError::Missing { key: "tokenizer.ggml.tokens" });
        }
        let bytes: usize = self.tokens.iter().map(|text| text.len()).sum();
        if u32::try_from(n_vocab).is_err() || u32::try_from(bytes).is_err() {
            return Err(TokenizerError::TooLarge { n_vocab });
        }
        let lengths = [("tokenizer.ggml.token_type", self.types.len()), ("tokenizer.ggml.scores", self.scores.len())];
        for (key, found) in lengths {
            if found != 0 && found < n_vocab {
                return Err(TokenizerError::Length { key, found, n_vocab });
            }
        }
        let ids = [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.eot_token_id", self.eot),
            ("tokenizer.ggml.eom_token_id", self.eom),
            ("tokenizer.ggml.unknown_token_id", self.unknown),
            ("tokenizer.ggml.padding_token_id", self.padding),
            ("tokenizer.ggml.fim_pre_token_id", self.fim.prefix),
            ("tokenizer.ggml.fim_suf_token_id", self.fim.suffix),
            ("tokenizer.ggml.fim_mid_token_id", self.fim.middle),
            ("tokenizer.ggml.fim_pad_token_id", self.fim.pad),
            ("tokenizer.ggml.fim_rep_token_id", self.fim.repo),
            ("tokenizer.ggml.fim_sep_token_id", self.fim.file_sep),
        ];
        for (key, id) in ids {
            if let Some(id) = id.filter(|&id| id as usize >= n_vocab) {
                return Err(TokenizerError::BadId { key, id, n_vocab });
            }
        }
        Ok(())
    }
}
