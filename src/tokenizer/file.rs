//! The vocabulary out of a model file's `tokenizer.ggml.*` keys, borrowed from its mapping.

use super::{Fim, TokenType, Vocab};
use crate::gguf::{Gguf, GgufError};

impl<'a> Vocab<'a> {
    /// Reads the keys; whether they make sense together is for `Tokenizer::new` to say.
    pub fn from_gguf(gguf: &'a Gguf) -> Result<Vocab<'a>, GgufError> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        // Converters write -1 for a token that the model does not have, signed or not.
        let id = |name: &str| {
            let id = gguf.opt_i64(&key(name))?;
            Ok::<_, GgufError>(id.and_then(|id| u32::try_from(id).ok()).filter(|&id| id != u32::MAX))
        };
        let renamed = |name: &str, before: &str| Ok::<_, GgufError>(id(name)?.or(id(before)?));
        let types = gguf.opt_i32s(&key("token_type"))?.unwrap_or_default();
        Ok(Vocab {
            model: gguf.str(&key("model"))?,
            pre: gguf.opt_str(&key("pre"))?,
            tokens: gguf.strs(&key("tokens"))?,
            types: types.into_iter().map(|kind| TokenType::from_gguf(kind.into())).collect(),
            scores: gguf.opt_f32s(&key("scores"))?.unwrap_or_default(),
            merges: gguf.opt_strs(&key("merges"))?.unwrap_or_default(),
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            eot: id("eot_token_id")?,
            eom: id("eom_token_id")?,
            unknown: id("unknown_token_id")?,
            padding: id("padding_token_id")?,
            fim: Fim {
                prefix: renamed("fim_pre_token_id", "prefix_token_id")?,
                suffix: renamed("fim_suf_token_id", "suffix_token_id")?,
                middle: renamed("fim_mid_token_id", "middle_token_id")?,
                pad: id("fim_pad_token_id")?,
                repo: id("fim_rep_token_id")?,
                file_sep: id("fim_sep_token_id")?,
            },
            add_bos: gguf.opt_bool(&key("add_bos_token"))?,
            add_eos: gguf.opt_bool(&key("add_eos_token"))?,
            add_space_prefix: gguf.opt_bool(&key("add_space_prefix"))?,
        })
    }
}
