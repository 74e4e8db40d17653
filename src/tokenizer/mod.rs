//! Text to ids and back, from the vocabulary that the model file carries.
//!
//! Two families: `gpt2` byte-pair vocabularies and `llama` SentencePiece ones. Ids equal llama.cpp's,
//! which means no Unicode normalisation, also for models whose original tokenizer has it.
//!
//! Why not the `tokenizers` crate: building its byte-pair model from Qwen's 151,387 merges took 97 to
//! 129 ms, before any special token, of a start that may take 400 ms; all of this takes 26 to 32 ms. It
//! also has no SentencePiece model that works from scores alone. What is left to write is the merge loop.
//!
//! Refused: other families (WordPiece, Unigram, RWKV) and pre-tokenizers that are not in `split`.

mod bpe;
mod decoder;
mod file;
mod pieces;
mod prompt;
mod special;
mod split;
mod spm;
mod vocab;

pub use decoder::Decoder;
pub use prompt::Prompt;
pub use split::Splitter;
pub use vocab::{Fim, TokenType, TokenizerError, Vocab};

use pieces::{Index, Pieces};
use special::{Fragment, Roles, Specials};

/// How to read a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Encode {
    /// Put BOS in front and EOS behind, as far as the model wants them.
    pub add_special: bool,
    /// Read `<|im_end|>` and the like as the tokens they name. Off for text that is not trusted.
    pub parse_special: bool,
}

pub struct Tokenizer {
    family: Family,
    texts: Pieces,         // (n_vocab), as the file spells them
    bytes: Pieces,         // (n_vocab), what each stands for
    index: Index,          // over `texts`
    types: Vec<TokenType>, // (n_vocab)
    specials: Specials,
    roles: Roles,
    add_bos: bool,
    add_eos: bool,
}

enum Family {
    Bpe { bpe: bpe::Bpe, splitter: split::Splitter },
    Spm { spm: spm::Spm, add_space_prefix: bool },
}

impl Tokenizer {
    pub fn new(mut vocab: Vocab) -> Result<Self, TokenizerError> {
        vocab.check()?;
        let n_vocab = vocab.tokens.len();
        let mut texts = Pieces::with_capacity(n_vocab, vocab.tokens.iter().map(|text| text.len()).sum());
        for text in &vocab.tokens {
            texts.push_with(|out| out.extend_from_slice(text.as_bytes()));
        }
        let index = Index::new(&texts);
        let mut types = std::mem::take(&mut vocab.types);
        types.resize(n_vocab, TokenType::Normal);

        let (family, add_bos, add_eos) = match vocab.model {
            "gpt2" => {
                // Files from before there was a choice; whoever opens one is told so by the commands.
                let splitter = split::Splitter::new(vocab.pre.unwrap_or("default"))?;
                if vocab.merges.is_empty() {
                    return Err(TokenizerError::Missing { key: "tokenizer.ggml.merges" });
                }
                let bpe = bpe::Bpe::new(&vocab.merges, &texts, &index)?;
                let add_bos = splitter.add_bos && vocab.bos.is_some();
                (Family::Bpe { bpe, splitter }, add_bos, false)
            }
            "llama" => {
                // The numbers of SentencePiece's own defaults.
                let default = |id: u32| Some(id).filter(|&id| (id as usize) < n_vocab);
                vocab.unknown = vocab.unknown.or(default(0));
                vocab.bos = vocab.bos.or(default(1));
                vocab.eos = vocab.eos.or(default(2));
                let scores = std::mem::take(&mut vocab.scores);
                let spm = spm::Spm::new(scores, &texts, &index, vocab.unknown)?;
                let add_space_prefix = vocab.add_space_prefix.unwrap_or(true);
                (Family::Spm { spm, add_space_prefix }, true, false)
            }
            other => return Err(TokenizerError::UnknownModel(other.to_owned())),
        };
        let add_bos = vocab.add_bos.unwrap_or(add_bos);
        let add_eos = vocab.add_eos.unwrap_or(add_eos);
        if add_bos && vocab.bos.is_none() {
            return Err(TokenizerError::Missing { key: "tokenizer.ggml.bos_token_id" });
        }
        if add_eos && vocab.eos.is_none() {
            return Err(TokenizerError::Missing { key: "tokenizer.ggml.eos_token_id" });
        }

        let roles = Roles::find(&vocab, &texts, &index, &mut types);
        let specials = Specials::new(&texts, &types)?;
        let mut family = family;
        if let Family::Spm { spm, .. } = &mut family {
            spm.never_join(&types);
        }
        let mut bytes = Pieces::with_capacity(n_vocab, vocab.tokens.iter().map(|text| text.len()).sum());
        for (text, &kind) in vocab.tokens.iter().zip(&types) {
            bytes.push_with(|out| family.spell(text, kind, out));
        }
        Ok(Self { family, texts, bytes, index, types, specials, roles, add_bos, add_eos })
    }

    /// A text that goes on another one: without the space that SentencePiece models put in front of a text, and without
    /// special tokens.
    pub fn encode_on(&self, text: &str) -> Vec<u32> {
        self.encode_as(text, Encode::default(), &[], false)
    }

    pub fn encode(&self, text: &str, how: Encode) -> Vec<u32> {
        self.encode_as(text, how, &[], true)
    }

    /// As `encode`; no control token is read that covers the end of a character at one of the `seams`.
    pub fn encode_with_seams(&self, text: &str, how: Encode, seams: &[usize]) -> Vec<u32> {
        self.encode_as(text, how, seams, true)
    }

    fn encode_as(&self, text: &str, how: Encode, seams: &[usize], begins: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if how.add_special && self.add_bos {
            ids.extend(self.roles.bos);
        }
        let fragments = self.specials.cut(text, &self.texts, how.parse_special, seams);
        match &self.family {
            Family::Bpe { bpe, splitter } => {
                let mut scratch = bpe::Scratch::default();
                let mut spelled = String::new();
                for fragment in fragments {
                    let range = match fragment {
                        Fragment::Text(range) => range,
                        Fragment::Token(id) => {
                            ids.push(id);
                            continue;
                        }
                    };
                    let text = &text[range];
                    for word in splitter.words(text) {
                        let word = &text.as_bytes()[word];
                        if splitter.ignore_merges {
                            spelled.clear();
                            spelled.extend(word.iter().map(|&byte| bpe::byte_char(byte)));
                            let whole = self.index.find(&self.texts, spelled.as_bytes());
                            if let Some(id) = whole.filter(|&id| !self.is_special(id)) {
                                ids.push(id);
                                continue;
                            }
                        }
                        bpe.encode(word, &mut scratch, &mut ids);
                    }
                }
            }
            Family::Spm { spm, add_space_prefix } => {
                let mut after_special = begins;
                for fragment in fragments {
                    match fragment {
                        Fragment::Text(range) => {
                            let prefix = if *add_space_prefix && after_special { spm::SPACE } else { "" };
                            let escaped = format!("{prefix}{}", text[range].replace(' ', spm::SPACE));
                            spm.encode(&escaped, &self.texts, &self.index, &mut ids);
                            after_special = false;
                        }
                        Fragment::Token(id) => {
                            ids.push(id);
                            after_special = true;
                        }
                    }
                }
            }
        }
        if how.add_special && self.add_eos {
            ids.extend(self.roles.eos);
        }
        ids
    }

    /// A rendered chat prompt: special tokens are read, and BOS is added if the model wants it and the
    /// template has not written it.
    pub fn encode_prompt(&self, text: &str) -> Vec<u32> {
        self.encode_prompt_with_seams(text, &[])
    }

    /// As `encode_prompt`, with what came from messages left as text.
    pub fn encode_rendered(&self, prompt: &Prompt) -> Vec<u32> {
        self.encode_prompt_with_seams(&prompt.text, &prompt.seams)
    }

    /// The seams that keep control tokens out of `text`, wherever it is put.
    pub fn seams(&self, text: &str) -> Vec<usize> {
        self.specials.seams(text, &self.texts)
    }

    fn encode_prompt_with_seams(&self, text: &str, seams: &[usize]) -> Vec<u32> {
        let mut ids = self.encode_with_seams(text, Encode { add_special: false, parse_special: true }, seams);
        if let Some(bos) = self.roles.bos.filter(|&bos| self.add_bos && ids.first() != Some(&bos)) {
            ids.insert(0, bos);
        }
        ids
    }

    /// All the text of `ids`; what is no UTF-8 becomes U+FFFD. The space that `encode` puts in front of
    /// a SentencePiece text is taken off again.
    pub fn decode(&self, ids: &[u32], show_special: bool) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids, show_special)).into_owned()
    }

    /// As `decode`, byte for byte.
    pub fn decode_bytes(&self, ids: &[u32], show_special: bool) -> Vec<u8> {
        let shown = ids.iter().filter(|&&id| show_special || !self.is_special(id));
        let mut bytes: Vec<u8> = shown.flat_map(|&id| self.token_bytes(id)).copied().collect();
        if matches!(&self.family, Family::Spm { add_space_prefix: true, .. }) && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        bytes
    }

    /// What a token stands for, special ones by their name; empty for padding and ids out of range.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id)
    }

    /// The token that is spelled like this in the file, such as `<|im_end|>`.
    /// Appends a token's bytes so that texts can be told apart by them: a text token's own, and for a special token bytes that
    /// no text has, so that text which only spells it is another.
    pub fn spell_apart(&self, id: u32, out: &mut Vec<u8>) {
        if self.is_special(id) {
            // No text has this byte.
            out.push(0xff);
            out.extend_from_slice(self.token_bytes(id));
        } else {
            out.extend_from_slice(self.token_bytes(id));
        }
    }

    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.index.find(&self.texts, text.as_bytes())
    }

    pub fn n_vocab(&self) -> usize {
        self.types.len()
    }

    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// The token that ends a turn of a chat.
    pub fn eot(&self) -> Option<u32> {
        self.roles.eot
    }

    pub fn unknown(&self) -> Option<u32> {
        self.roles.unknown
    }

    pub fn padding(&self) -> Option<u32> {
        self.roles.padding
    }

    pub fn fim(&self) -> Fim {
        self.roles.fim
    }

    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Does this token end an answer: EOS, end of turn, and their like.
    pub fn is_end(&self, id: u32) -> bool {
        self.roles.ends.binary_search(&id).is_ok()
    }

    /// Every token that ends an answer, in rising order.
    pub fn ends(&self) -> &[u32] {
        &self.roles.ends
    }

    /// A control or unknown token: it has a name, but no text of its own.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.types.get(id as usize), Some(TokenType::Control | TokenType::Unknown))
    }
}

impl Family {
    /// Appends the bytes that a token stands for.
    fn spell(&self, text: &str, kind: TokenType, out: &mut Vec<u8>) {
        match kind {
            TokenType::Unused => {}
            TokenType::Control | TokenType::Unknown | TokenType::UserDefined => out.extend_from_slice(text.as_bytes()),
            TokenType::Byte => match byte_token(text) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(text.as_bytes()),
            },
            TokenType::Normal => match self {
                Self::Bpe { .. } => {
                    for char in text.chars() {
                        match bpe::char_byte(char) {
                            Some(byte) => out.push(byte),
                            None => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
                        }
                    }
                }
                Self::Spm { .. } => {
                    for (at, part) in text.split(spm::SPACE).enumerate() {
                        if at > 0 {
                            out.push(b' ');
                        }
                        out.extend_from_slice(part.as_bytes());
                    }
                }
            },
        }
    }
}

/// `<0x41>` is the byte 0x41.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}
