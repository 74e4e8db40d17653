//! A model ready to chat: engine, tokenizer, template, and what the catalog says of it.
//!
//! A file without a template gets the built-in one that its catalog entry names, or ChatML where its vocabulary has
//! ChatML's tokens; either is told. What looks like a base model is refused with the commands that suit it.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::super::load::{self, EngineFlags};
use super::super::obtain;
use crate::catalog::{self, Catalog, Entry};
use crate::chat::Template;
use crate::engine::Engine;
use crate::gguf::Gguf;
use crate::sampler::SamplerConfig;
use crate::tokenizer::Tokenizer;

/// Where models come from.
pub struct Source {
    /// None where the system has no home for one; then only paths are understood.
    pub catalog: Option<Catalog>,
    /// Fetch without asking.
    pub yes: bool,
    /// The name of a built-in template, instead of the model's own.
    pub template: Option<String>,
    /// Let messages spell special tokens.
    pub parse_special: bool,
}

/// A model and how to talk to it.
pub struct Model {
    /// As the user would write it.
    pub name: String,
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    pub template: Template,
    /// Whether messages may spell special tokens.
    pub parse_special: bool,
    /// The catalog's recommendation over rynd's defaults.
    pub sampling: SamplerConfig,
    /// The catalog's system prompt, where the user gives none.
    pub system: Option<String>,
    /// Worth telling once, such as a template that was lent.
    pub note: Option<String>,
}

impl Source {
    /// The user's catalog. Without a home directory only paths can be opened.
    pub fn new(yes: bool, template: Option<String>, parse_special: bool) -> Result<Source> {
        let catalog = match Catalog::open() {
            Err(catalog::Error::NoHome { .. }) => None,
            other => Some(other?),
        };
        Ok(Source { catalog, yes, template, parse_special })
    }

    /// The model that is meant where none is named.
    pub fn default_name(&self) -> Result<String> {
        let catalog = self.catalog.as_ref().context("no model is named; give the path of a .gguf file")?;
        Ok(catalog.default_model().to_owned())
    }

    /// Opens the model, after fetching it if need be.
    pub fn load(&self, name: &str, flags: &EngineFlags) -> Result<Model> {
        let (path, entry) = match &self.catalog {
            Some(catalog) => {
                let found = obtain::obtain(catalog, name, self.yes)?;
                (found.path().to_owned(), found.entry)
            }
            None => (Path::new(name).to_owned(), None),
        };
        let entry = entry.as_ref();
        let gguf = Gguf::open(&path)?;
        if let Some(base) = entry.filter(|entry| !entry.chat.instruct && self.template.is_none()) {
            bail!("{}", base_model(name, &format!("{} is a base model", base.name)));
        }
        // The two slow parts of a start, side by side.
        let (tokenizer, engine) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| load::tokenizer(&gguf));
            let engine = load::start(gguf.clone(), &flags.config());
            (tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), engine)
        });
        let (tokenizer, mut engine) = (tokenizer?, engine?);
        flags.keep_on_disk(&mut engine, &tokenizer);
        let (template, note) = self.template(name, &gguf, &tokenizer, entry)?;
        Ok(Model {
            name: name.to_owned(),
            parse_special: self.parse_special,
            sampling: sampling(entry),
            system: entry.and_then(|entry| entry.chat.system.clone()),
            engine,
            tokenizer,
            template,
            note,
        })
    }

    fn template(
        &self,
        name: &str,
        gguf: &Gguf,
        tokenizer: &Tokenizer,
        entry: Option<&Entry>,
    ) -> Result<(Template, Option<String>)> {
        if let Some(builtin) = &self.template {
            return Ok((Template::builtin(builtin)?, None));
        }
        if let Some(template) = load::chat_template(gguf)? {
            return Ok((template, None));
        }
        let hint = entry.and_then(|entry| entry.chat.template.as_deref());
        let fallback = hint.or_else(|| tokenizer.token_id("<|im_start|>").map(|_| "chatml"));
        let Some(fallback) = fallback else {
            let why = format!(
                "{} has no chat template and no token <|im_start|>, so it is most likely a base model",
                gguf.path().display()
            );
            bail!("{}; if it does chat, name a template, as in --template chatml", base_model(name, &why));
        };
        Ok((
            Template::builtin(fallback)?,
            Some(format!("the file has no chat template; '{fallback}' (built in) is used")),
        ))
    }
}

fn base_model(name: &str, why: &str) -> String {
    format!(
        "{why}: it continues text but does not answer. Use 'rynd run {name} --raw -p TEXT' or 'rynd complete {name}', \
         or chat with another model ('rynd list')"
    )
}

fn sampling(entry: Option<&Entry>) -> SamplerConfig {
    let own = SamplerConfig::default();
    let Some(hints) = entry.map(|entry| entry.sampler) else { return own };
    SamplerConfig {
        temperature: hints.temp.unwrap_or(own.temperature),
        top_p: hints.top_p.unwrap_or(own.top_p),
        top_k: hints.top_k.map_or(own.top_k, |k| k as usize),
        min_p: hints.min_p.unwrap_or(own.min_p),
        repetition_penalty: hints.repeat_penalty.unwrap_or(own.repetition_penalty),
        ..own
    }
}
