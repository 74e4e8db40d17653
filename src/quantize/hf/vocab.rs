//! The tokenizer's files as GGUF's `tokenizer.*` keys.
//!
//! Byte-pair vocabularies come from `tokenizer.json`; SentencePiece ones from `tokenizer.model`, whose scores nothing
//! else keeps. How text is split before pairs are merged is a name in GGUF and a regular expression in the checkpoint:
//! it is found by the expression, and one that is not known is refused, for every id would be in doubt.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value as Json;

use super::super::QuantizeError;
use super::config::Config;
use super::{json, problem, sentencepiece};
use crate::gguf::{Array, Value};

/// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Split expressions and their names.
const SPLITS: [(&str, &str); 2] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
];

/// Special tokens: the name in the checkpoint's files and in GGUF's keys.
const SPECIAL: [(&str, &str); 6] =
    [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("sep", "seperator"), ("pad", "padding"), ("mask", "mask")];

/// A vocabulary in the making, by id.
pub struct Tokens {
    pub texts: Vec<String>,
    pub types: Vec<i32>,
    pub scores: Vec<f32>, // empty for byte pairs
}

/// The `tokenizer.*` keys.
pub fn metadata(folder: &Path, config: &Config) -> Result<Vec<(String, Value)>, QuantizeError> {
    let path = folder.join("tokenizer.json");
    let settings = json(&folder.join("tokenizer_config.json"))?.unwrap_or(Json::Null);
    let tokenizer = json(&path)?;
    let size = config.number("vocab_size")? as usize;
    let mut keys: Vec<(String, Value)> = vec![];
    let mut set = |key: &str, value: Value| keys.push((format!("tokenizer.ggml.{key}"), value));

    let model = folder.join("tokenizer.model");
    let tokens = if model.is_file() {
        set("model", "llama".into());
        set("pre", "default".into());
        sentencepiece::read(&model, size, &settings)?
    } else {
        let Some(tokenizer) = &tokenizer else {
            return Err(problem(folder, "there is neither tokenizer.json nor tokenizer.model; download them too"));
        };
        set("model", "gpt2".into());
        set("pre", pre_tokenizer(&path, tokenizer)?.into());
        byte_pairs(&path, tokenizer, size)?
    };
    set("tokens", Array::of_strings(&tokens.texts).into());
    if !tokens.scores.is_empty() {
        set("scores", Array::from(&tokens.scores[..]).into());
    }
    set("token_type", Array::from(&tokens.types[..]).into());
    if tokens.scores.is_empty() {
        let merges = merges(tokenizer.as_ref().unwrap_or(&Json::Null));
        let merges =
            merges.ok_or_else(|| problem(&path, "the list of merges is missing or damaged; download it again"))?;
        set("merges", Array::of_strings(merges).into());
    }
    let ids: HashMap<&str, usize> = tokens.texts.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
    for (hf, key) in SPECIAL {
        let token = &settings[format!("{hf}_token")];
        let named = token.as_str().or(token["content"].as_str()).and_then(|text| ids.get(text).copied());
        let listed = &config.json[format!("{hf}_token_id")];
        let listed = listed.as_u64().or(listed[0].as_u64()).map(|id| id as usize).filter(|&id| id < size);
        if let Some(id) = named.or(listed) {
            set(&format!("{key}_token_id"), (id as u32).into());
        }
    }
    for (hf, adds) in added(tokenizer.as_ref().unwrap_or(&Json::Null), &settings) {
        set(&format!("add_{hf}_token"), adds.into());
    }
    if let Some(prefix) = settings["add_prefix_space"].as_bool().filter(|_| config.architecture == "llama") {
        set("add_space_prefix", prefix.into());
    }
    if let Some(template) = template(folder, &settings)? {
        keys.push(("tokenizer.chat_template".into(), template.into()));
    }
    Ok(keys)
}

fn byte_pairs(path: &Path, tokenizer: &Json, size: usize) -> Result<Tokens, QuantizeError> {
    let damaged = |what: &str| problem(path, format!("{what}; download it again"));
    let model = &tokenizer["model"];
    if model["type"].as_str() != Some("BPE") || model["byte_fallback"].as_bool() == Some(true) {
        let text = "this tokenizer is not byte-level BPE; rynd needs its tokenizer.model beside it";
        return Err(problem(path, text));
    }
    let vocab = model["vocab"].as_object().ok_or_else(|| damaged("the vocabulary is missing"))?;
    let mut tokens =
        Tokens { texts: (0..size).map(|id| format!("[PAD{id}]")).collect(), types: vec![UNUSED; size], scores: vec![] };
    let mut put = |id: Option<u64>, text: &str, kind: i32| {
        let id = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < size);
        let id = id.ok_or_else(|| damaged(&format!("token {text:?} has no id below the vocabulary's size {size}")))?;
        tokens.texts[id] = text.to_owned();
        tokens.types[id] = kind;
        Ok::<(), QuantizeError>(())
    };
    vocab.iter().try_for_each(|(text, id)| put(id.as_u64(), text, NORMAL))?;
    for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let text = token["content"].as_str().ok_or_else(|| damaged("an added token has no text"))?;
        let control = token["special"].as_bool() == Some(true) || looks_special(text);
        put(token["id"].as_u64(), text, if control { CONTROL } else { USER_DEFINED })?;
    }
    Ok(tokens)
}

/// Tokens that are control tokens by their looks, whatever the checkpoint says.
pub fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// The name of the expression that splits the text.
fn pre_tokenizer(path: &Path, tokenizer: &Json) -> Result<&'static str, QuantizeError> {
    let pre = &tokenizer["pre_tokenizer"];
    let steps: Vec<&Json> = match pre["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![pre],
    };
    let kinds: Vec<&str> = steps.iter().filter_map(|step| step["type"].as_str()).collect();
    let patterns: Vec<&str> = steps.iter().filter_map(|step| step["pattern"]["Regex"].as_str()).collect();
    let by_pattern = |pattern: &str| SPLITS.iter().find(|(known, _)| *known == pattern).map(|(_, name)| *name);
    let name = match (&kinds[..], &patterns[..]) {
        (["Split", "ByteLevel"], [pattern]) => by_pattern(pattern),
        (["ByteLevel"], []) => Some("gpt-2"),
        (["Digits", "ByteLevel"], []) => Some("smollm"),
        _ => None,
    };
    name.ok_or_else(|| {
        let text = format!(
            "this way of splitting text ({}: {}) is not one that rynd knows; get the model as GGUF",
            kinds.join(", "),
            patterns.join(" and then "),
        );
        problem(path, text)
    })
}

/// "left right", in the order of the merges. A space within a part is written as the byte alphabet writes it.
fn merges(tokenizer: &Json) -> Option<Vec<String>> {
    let part = |part: &Json| Some(part.as_str()?.replace(' ', "\u{120}"));
    let merge = |merge: &Json| match merge {
        Json::String(both) => Some(both.clone()),
        pair => Some(format!("{} {}", part(&pair[0])?, part(&pair[1])?)),
    };
    tokenizer["model"]["merges"].as_array()?.iter().map(merge).collect()
}

/// Which of BOS and EOS the tokenizer puts around a text, where it says so.
fn added(tokenizer: &Json, settings: &Json) -> Vec<(&'static str, bool)> {
    let post = &tokenizer["post_processor"];
    let steps: Vec<&Json> = match post["processors"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![post],
    };
    let text = |key: &str| settings[key].as_str().or(settings[key]["content"].as_str());
    let template = steps.iter().find(|step| step["type"] == "TemplateProcessing").map(|step| &step["single"]);
    let byte_level = steps.iter().any(|step| step["type"] == "ByteLevel");
    let by_template = |first: bool, token: &str| {
        let single = template?.as_array().filter(|single| single.len() > 1)?;
        let step = if first { single.first()? } else { single.last()? };
        Some(step["SpecialToken"]["id"].as_str()? == text(token)?)
    };
    let adds = |name: &'static str, first: bool| {
        let by_settings = settings[format!("add_{name}_token")].as_bool();
        let adds = by_template(first, &format!("{name}_token")).or(byte_level.then_some(false)).or(by_settings)?;
        Some((name, adds))
    };
    [adds("bos", true), adds("eos", false)].into_iter().flatten().collect()
}

/// The chat template: in the tokenizer's settings or in a file of its own.
fn template(folder: &Path, settings: &Json) -> Result<Option<String>, QuantizeError> {
    let setting = &settings["chat_template"];
    // A list of named templates: the default one is the model's.
    let default = setting.as_array().and_then(|all| all.iter().find(|one| one["name"] == "default"));
    if let Some(text) = setting.as_str().or(default.and_then(|one| one["template"].as_str())) {
        return Ok(Some(text.to_owned()));
    }
    let path = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(QuantizeError::Read { path, cause }),
    }
}
