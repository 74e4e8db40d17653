//! The sampling flags, once for every command that generates.
//!
//! Flags that are not given keep the defaults of `SamplerConfig`. `--temp 0` starts from greedy instead: whoever asks for
//! the likeliest token means the model's, so the default penalties are off there, and on again when given.

use anyhow::{Context, Result, bail};

use crate::sampler::{Sampler, SamplerConfig};

/// How the next token is chosen.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling options")]
pub struct SamplingFlags {
    /// Temperature; 0 always takes the likeliest token, as 'complete' does by default [default: 0.7]
    #[arg(long, value_name = "T")]
    pub(super) temp: Option<f32>,
    /// Choose among this many of the likeliest tokens, 0: all [default: 20]
    #[arg(long, value_name = "K")]
    pub(super) top_k: Option<usize>,
    /// Choose among the likeliest tokens up to this probability, 1: all [default: 0.8]
    #[arg(long, value_name = "P")]
    pub(super) top_p: Option<f32>,
    /// Choose among tokens of at least this share of the likeliest one's probability [default: 0]
    #[arg(long, value_name = "P")]
    pub(super) min_p: Option<f32>,
    /// Choose among the tokens nearest to the expected surprise, up to this probability, 1: off [default: 1]
    #[arg(long, value_name = "P")]
    pub(super) typical_p: Option<f32>,
    /// Divide the logits of tokens seen before, 1: off [default: 1.05]
    #[arg(long, value_name = "R")]
    pub(super) repeat_penalty: Option<f32>,
    /// Take this from the logits of tokens seen before [default: 0]
    #[arg(long, value_name = "A", allow_negative_numbers = true)]
    pub(super) presence_penalty: Option<f32>,
    /// Take this from a logit for each time its token was seen [default: 0]
    #[arg(long, value_name = "A", allow_negative_numbers = true)]
    pub(super) frequency_penalty: Option<f32>,
    /// Tokens that the penalties look back on [default: 64]
    #[arg(long, value_name = "TOKENS")]
    pub(super) repeat_last: Option<usize>,
    /// Add to a token's logit; may be given several times ('-inf' forbids the token)
    #[arg(long, value_name = "ID=BIAS")]
    pub(super) logit_bias: Vec<String>,
    /// The same seed gives the same text [default: a new one each time]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
}

impl SamplingFlags {
    /// As `config`, but the likeliest token when no temperature is given: for code at a cursor.
    pub fn config_or_greedy(&self) -> Result<SamplerConfig> {
        let mut config = self.config()?;
        if self.temp.is_none() {
            config = SamplerConfig { seed: config.seed, logit_bias: config.logit_bias, ..SamplerConfig::greedy() };
        }
        Ok(config)
    }

    /// The settings, over the defaults.
    pub fn config(&self) -> Result<SamplerConfig> {
        self.config_over(SamplerConfig::default())
    }

    /// The settings, over a model's own defaults.
    pub fn config_over(&self, defaults: SamplerConfig) -> Result<SamplerConfig> {
        let base = if self.temp == Some(0.0) {
            SamplerConfig { penalty_tokens: defaults.penalty_tokens, ..SamplerConfig::greedy() }
        } else {
            defaults
        };
        Ok(SamplerConfig {
            temperature: self.temp.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            typical_p: self.typical_p.unwrap_or(base.typical_p),
            repetition_penalty: self.repeat_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            penalty_tokens: self.repeat_last.unwrap_or(base.penalty_tokens),
            logit_bias: self.logit_bias.iter().map(|text| bias(text)).collect::<Result<_>>()?,
            seed: self.seed,
        })
    }

    /// A sampler for a model of `vocab` tokens.
    pub fn sampler(&self, vocab: usize) -> Result<Sampler> {
        let config = self.config()?;
        if let Some((id, _)) = config.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            bail!("--logit-bias names token {id}, but the model has only {vocab} tokens");
        }
        Ok(Sampler::new(config)?)
    }
}

fn bias(text: &str) -> Result<(u32, f32)> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    parsed.with_context(|| format!("--logit-bias '{text}' is not ID=BIAS, as in 1234=-5 or 1234=-inf"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        sampling: SamplingFlags,
    }

    fn config(arguments: &[&str]) -> Result<SamplerConfig> {
        Only::try_parse_from([&["rynd"], arguments].concat()).unwrap().sampling.config()
    }

    #[test]
    fn flags_not_given_keep_the_defaults() {
        assert_eq!(config(&[]).unwrap(), SamplerConfig::default());
        let given = config(&["--temp", "1.5", "--seed", "7"]).unwrap();
        assert_eq!(given, SamplerConfig { temperature: 1.5, seed: Some(7), ..SamplerConfig::default() });
    }

    #[test]
    fn temperature_zero_turns_the_default_penalty_off_but_not_a_given_one() {
        assert_eq!(config(&["--temp", "0"]).unwrap().repetition_penalty, 1.0);
        let given = config(&["--temp", "0", "--repeat-penalty", "1.1"]).unwrap();
        assert_eq!((given.repetition_penalty, given.penalty_tokens), (1.1, 64));
    }

    #[test]
    fn biases_are_read_and_bad_ones_named() {
        assert_eq!(config(&["--logit-bias", "5=-inf"]).unwrap().logit_bias, [(5, f32::NEG_INFINITY)]);
        assert!(config(&["--logit-bias", "5:1"]).unwrap_err().to_string().contains("'5:1'"));
    }
}
