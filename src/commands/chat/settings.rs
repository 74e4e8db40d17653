//! `/set`: the sampler's settings by name, as the flags call them.
//!
//! A value is checked before it is taken; an empty one goes back to the model's default.

use anyhow::{Context, Result, bail};

use super::session::Chat;
use crate::sampler::Sampler;

/// Names and what they do, in the order in which they are shown.
pub const KEYS: &[(&str, &str)] = &[
    ("temp", "temperature; 0 always takes the likeliest token"),
    ("top_k", "keep this many of the likeliest, 0: all"),
    ("top_p", "keep the likeliest up to this probability, 1: all"),
    ("min_p", "least share of the likeliest one's probability"),
    ("typical_p", "keep those of expected surprise, 1: off"),
    ("repeat_penalty", "divide logits of tokens seen before, 1: off"),
    ("presence_penalty", "take from logits of tokens seen before"),
    ("frequency_penalty", "take from logits for each time seen"),
    ("repeat_last", "tokens the penalties look back on"),
    ("logit_bias", "ID=BIAS, added to a logit; -inf forbids the token"),
    ("seed", "the same seed gives the same text"),
    ("tokens", "tokens of an answer, at most"),
];

/// Takes `key=value` pairs, separated by spaces; either all or none of them.
pub fn set(chat: &mut Chat, text: &str) -> Result<()> {
    let (sampling, tokens) = (chat.sampling.clone(), chat.answer_tokens);
    let result = pairs(text).and_then(|pairs| {
        pairs.iter().try_for_each(|(key, value)| set_one(chat, key, value))?;
        let config = chat.config()?;
        let vocab = chat.model.tokenizer.n_vocab();
        if let Some((id, _)) = config.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            bail!("logit_bias names token {id}, but the model has only {vocab} tokens");
        }
        Sampler::new(config)?;
        Ok(())
    });
    if result.is_err() {
        (chat.sampling, chat.answer_tokens) = (sampling, tokens);
    }
    result
}

fn pairs(text: &str) -> Result<Vec<(&str, &str)>> {
    // `temp 0.2` is what a hand types that was not thinking.
    if let Some((key, value)) = text.split_once(char::is_whitespace)
        && !text.contains('=')
        && !value.trim().contains(char::is_whitespace)
    {
        return Ok(vec![(key, value.trim())]);
    }
    let pair = |word| str::split_once(word, '=').with_context(|| format!("'{word}' is not of the form key=value"));
    text.split_whitespace().map(pair).collect()
}

fn set_one(chat: &mut Chat, key: &str, value: &str) -> Result<()> {
    let flags = &mut chat.sampling;
    match key.replace('-', "_").as_str() {
        "temp" | "temperature" => flags.temp = number(key, value)?,
        "top_k" => flags.top_k = number(key, value)?,
        "top_p" => flags.top_p = number(key, value)?,
        "min_p" => flags.min_p = number(key, value)?,
        "typical_p" => flags.typical_p = number(key, value)?,
        "repeat_penalty" => flags.repeat_penalty = number(key, value)?,
        "presence_penalty" => flags.presence_penalty = number(key, value)?,
        "frequency_penalty" => flags.frequency_penalty = number(key, value)?,
        "repeat_last" => flags.repeat_last = number(key, value)?,
        "seed" => flags.seed = number(key, value)?,
        "logit_bias" if value.is_empty() => flags.logit_bias.clear(),
        "logit_bias" => flags.logit_bias.push(value.to_owned()),
        "tokens" => {
            chat.answer_tokens = number(key, value)?;
            if chat.answer_tokens == Some(0) {
                bail!("tokens is 0: it must be at least 1");
            }
        }
        _ => {
            let names: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
            bail!("there is no setting '{key}'; there are {}", names.join(", "));
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<Option<T>> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).ok().with_context(|| format!("'{value}' is no number that {key} can take"))
}

/// All settings with their values, one a line; what the user set is marked.
pub fn show(chat: &Chat) -> Result<String> {
    let config = chat.config()?;
    let flags = &chat.sampling;
    let bias = config.logit_bias.iter().map(|(id, bias)| format!("{id}={bias}")).collect::<Vec<_>>().join(" ");
    let or = |value: Option<String>, none: &str| value.unwrap_or_else(|| none.to_owned());
    let values = [
        (config.temperature.to_string(), flags.temp.is_some()),
        (config.top_k.to_string(), flags.top_k.is_some()),
        (config.top_p.to_string(), flags.top_p.is_some()),
        (config.min_p.to_string(), flags.min_p.is_some()),
        (config.typical_p.to_string(), flags.typical_p.is_some()),
        (config.repetition_penalty.to_string(), flags.repeat_penalty.is_some()),
        (config.presence_penalty.to_string(), flags.presence_penalty.is_some()),
        (config.frequency_penalty.to_string(), flags.frequency_penalty.is_some()),
        (config.penalty_tokens.to_string(), flags.repeat_last.is_some()),
        (if bias.is_empty() { "none".to_owned() } else { bias }, !flags.logit_bias.is_empty()),
        (or(config.seed.map(|seed| seed.to_string()), "random"), config.seed.is_some()),
        (or(chat.answer_tokens.map(|n| n.to_string()), "no limit"), chat.answer_tokens.is_some()),
    ];
    let mut out = String::new();
    for ((name, about), (value, given)) in KEYS.iter().zip(values) {
        let mark = if given { '*' } else { ' ' };
        out.push_str(&format!("{mark} {name:18}{value:10}{about}\n"));
    }
    out.push_str(
        "Marked ones (*) were set here, the others are the model's defaults.\n'/set temp=' goes back to the default.\n",
    );
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::pairs;

    #[test]
    fn the_list_fits_a_narrow_terminal() {
        assert!(super::KEYS.iter().all(|(name, about)| name.len() < 18 && 30 + about.len() < 80));
    }

    #[test]
    fn pairs_may_be_several_and_one_may_do_without_the_sign() {
        assert_eq!(pairs("temp=0.2 top_k=40").unwrap(), [("temp", "0.2"), ("top_k", "40")]);
        assert_eq!(pairs("logit_bias=5=-inf").unwrap(), [("logit_bias", "5=-inf")]);
        assert_eq!(pairs("temp 0.2").unwrap(), [("temp", "0.2")]);
        assert_eq!(pairs("temp=").unwrap(), [("temp", "")]);
        assert!(pairs("temp").is_err());
        assert!(pairs("temp 1 2").is_err());
    }
}
