//! A stage of the sampler that leaves only the tokens with which the text can still become what a grammar describes.
//!
//! The grammars are those of the `llguidance` crate: JSON schemas, regular expressions and Lark; GBNF is translated. The
//! mask of a step is made of the text so far and depends on nothing else. When the grammar is complete, only tokens that
//! end the answer are left.

use super::SamplerError;
use super::gbnf;
use crate::tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    JsonSchema(Json),
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// Lark, with llguidance's extensions.
    Lark(String),
    /// llama.cpp's grammars.
    Gbnf(String),
}

/// A vocabulary as grammars see it: made once a model, then shared.
#[derive(Clone)]
pub struct Constraints {
    factory: Arc<ParserFactory>,
}

/// One answer in the making.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
}

impl Constraints {
    /// For logits of `n_logits` tokens: what lies behind the vocabulary is never chosen.
    pub fn new(tokenizer: &Tokenizer, n_logits: usize) -> Result<Constraints, SamplerError> {
        let words: Vec<Vec<u8>> = (0..n_logits as u32)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id);
                let control = tokenizer.is_special(id) && !bytes.is_empty();
                // A control token is no text: it is only met by its name.
                if control { [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat() } else { bytes.to_vec() }
            })
            .collect();
        let ends: Vec<u32> = tokenizer.ends().iter().copied().filter(|&id| (id as usize) < n_logits).collect();
        let Some(&end) = ends.first() else { return Err(SamplerError::NoEnd) };
        let trie = TokTrie::from(&TokRxInfo::new(n_logits as u32, end), &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(refused)?;
        factory.quiet();
        Ok(Constraints { factory: Arc::new(factory) })
    }

    /// Reads a grammar; what is wrong with it is told with its place.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, SamplerError> {
        let grammar = match grammar {
            Grammar::JsonObject => TopLevelGrammar::from_json_schema(json!({"type": "object"})),
            Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Grammar::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
            Grammar::Gbnf(text) => TopLevelGrammar::from_lark(gbnf::to_lark(text)?),
        };
        let parser = self.factory.create_parser(grammar).map_err(refused)?;
        let mut matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(why) => Err(SamplerError::Grammar { why }),
            None => {
                // A grammar without any text is found here, not after the prompt.
                matcher.compute_mask_or_eos().map_err(refused)?;
                Ok(Constraint { matcher })
            }
        }
    }
}

impl Constraint {
    /// Forbids in `logits` what the grammar does not take next.
    pub fn apply(&mut self, logits: &mut [f32]) -> Result<(), SamplerError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(refused)?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= mask.len() || !mask.is_allowed(id as u32) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes the token that was chosen.
    pub fn accept(&mut self, id: u32) -> Result<(), SamplerError> {
        if self.matcher.is_stopped() {
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(refused)
    }

    /// Whether the answer may end here.
    pub fn is_complete(&mut self) -> bool {
        self.matcher.is_stopped() || self.matcher.is_accepting().unwrap_or(false)
    }
}

fn refused(why: impl std::fmt::Display) -> SamplerError {
    SamplerError::Grammar { why: why.to_string() }
}
