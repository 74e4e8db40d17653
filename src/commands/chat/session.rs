//! A chat in progress: a conversation and the model that answers it.
//!
//! Every answer renders the whole conversation, of which the model computes only what it does not remember. A
//! conversation that outgrows the context loses its oldest turns, down to three quarters of the context at once: each
//! loss moves all that follows, which must be read again, so it should be rare.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::super::load::{self, EngineFlags};
use super::super::sampling::SamplingFlags;
use super::conversation::Conversation;
use super::model::{Model, Source};
use super::transcript::Transcript;
use crate::chat::Message;
use crate::commands::terminal;
use crate::generate::{Event, Finish, Limits, Summary, generate};
use crate::sampler::{Sampler, SamplerConfig};

/// Tokens kept free for an answer, at most a quarter of the context.
const ANSWER_TOKENS: usize = 1024;

/// What happens while an answer is made.
#[derive(Debug)]
pub enum Step<'a> {
    /// So many more of the oldest turns no longer fit.
    Forgot(usize),
    /// Prompt tokens computed and to compute.
    Reading { done: usize, total: usize },
    /// More of the answer.
    Text(&'a str),
}

/// A chat in progress.
pub struct Chat {
    pub model: Model,
    pub conversation: Conversation,
    /// What the user set, over the model's own defaults.
    pub sampling: SamplingFlags,
    /// Tokens of an answer, at most.
    pub answer_tokens: Option<usize>,
    /// Of the last answer.
    pub last: Option<Summary>,
    /// Written anew after every answer.
    pub files: Vec<PathBuf>,
    used: usize, // tokens of the last prompt and its answer
    answers: u64,
}

impl Chat {
    pub fn new(model: Model, sampling: SamplingFlags, answer_tokens: Option<usize>, system: Option<&str>) -> Chat {
        let system = system.map(str::to_owned).or_else(|| model.system.clone());
        let conversation = Conversation::new(system.filter(|text| !text.is_empty()), vec![]);
        Chat { model, conversation, sampling, answer_tokens, last: None, files: vec![], used: 0, answers: 0 }
    }

    /// The sampler's settings as they are now.
    pub fn config(&self) -> Result<SamplerConfig> {
        self.sampling.config_over(self.model.sampling.clone())
    }

    /// Tokens of the context that the last answer took.
    pub fn used_tokens(&self) -> usize {
        self.used
    }

    /// Goes on with another model; if it can not be loaded, nothing changes.
    pub fn switch(&mut self, source: &Source, name: &str, flags: &EngineFlags) -> Result<()> {
        self.model = source.load(name, flags)?;
        self.used = 0;
        self.conversation.remember();
        self.last = None;
        Ok(())
    }

    /// Whether the last message still waits for its answer.
    pub fn last_is_unanswered(&self) -> bool {
        self.conversation.messages().last().is_some_and(|message| message.role == "user")
    }

    /// The chat as it is saved.
    pub fn transcript(&self) -> Transcript {
        let system = self.conversation.system().map(Message::system);
        let messages = system.into_iter().chain(self.conversation.messages().iter().cloned()).collect();
        Transcript { model: Some(self.model.name.clone()), messages }
    }

    /// Goes on with a saved chat; its model is not loaded.
    pub fn take(&mut self, transcript: Transcript) {
        let mut messages = transcript.messages;
        let system = messages.first().filter(|message| message.role == "system").map(Message::text);
        if system.is_some() {
            messages.remove(0);
        }
        self.conversation = Conversation::new(system, messages);
    }

    /// Answers the user's last message. `see` may break off at any step; what was said until then is kept.
    ///
    /// # Errors
    ///
    /// The conversation is then as it was before, and still ends with the message.
    pub fn reply(&mut self, mut see: impl FnMut(Step) -> ControlFlow<()>) -> Result<Summary> {
        let forgotten = self.conversation.forgotten_turns();
        let prompt = self.fit()?;
        let more = self.conversation.forgotten_turns() - forgotten;
        if more > 0 && see(Step::Forgot(more)).is_break() {
            bail!("interrupted");
        }
        let mut config = self.config()?;
        // Asked again, the same question should get another answer, and the same whole chat the same ones.
        config.seed = config.seed.map(|seed| seed.wrapping_add(self.answers));
        self.answers += 1;
        let sampler = Sampler::new(config)?;
        let limits = Limits { tokens: self.answer_tokens, ..Limits::default() };
        let mut text = String::new();
        let model = &mut self.model;
        let tokenizer = &model.tokenizer;
        let summary = generate(&mut model.engine, tokenizer, sampler, &prompt, &limits, |event| match event {
            Event::Prefill { done, total } => see(Step::Reading { done, total }),
            Event::Token(_) => ControlFlow::Continue(()),
            Event::Text(new) => {
                text.push_str(new);
                see(Step::Text(new))
            }
        })?;
        self.used = summary.prompt_tokens + summary.generated_tokens;
        self.last = Some(summary.clone());
        if summary.finish != Finish::Interrupted || !text.is_empty() {
            self.conversation.answer(&text);
            self.save();
        }
        Ok(summary)
    }

    /// Writes the chat's files; one that can not be written is told once and left alone.
    fn save(&mut self) {
        let transcript = self.transcript();
        self.files.retain(|path| match transcript.save(path) {
            Ok(()) => true,
            Err(e) => {
                // A lost warning is no reason to fail.
                let _ = writeln!(terminal::stderr(), "rynd: warning: this chat is not kept: {e:#}");
                false
            }
        });
    }

    /// The prompt's ids, after leaving out as many of the oldest turns as it takes.
    fn fit(&mut self) -> Result<Vec<u32>> {
        let context = self.model.engine.context();
        let spare = self.answer_tokens.unwrap_or(ANSWER_TOKENS).min(ANSWER_TOKENS).min(context / 4);
        let mut ids = self.prompt()?;
        if ids.len() + spare <= context {
            return Ok(ids);
        }
        let before = self.conversation.clone();
        let wanted = (context / 4 * 3).saturating_sub(spare);
        while ids.len() > wanted && self.conversation.forget_oldest() {
            ids = self.prompt()?;
        }
        if ids.len() >= context {
            self.conversation = before;
            bail!(
                "the message makes a prompt of {} tokens even without the turns before it, and the context has {context}; \
                 shorten it, or start with a larger one (-c)",
                ids.len()
            );
        }
        Ok(ids)
    }

    fn prompt(&mut self) -> Result<Vec<u32>> {
        let messages = self.conversation.prompt();
        let prompt = load::prompt(&self.model.template, &self.model.tokenizer, &messages, self.model.parse_special);
        let prompt = prompt.with_context(|| format!("{} can not read this conversation", self.model.name))?;
        Ok(self.model.engine.encode_prompt(&self.model.tokenizer, &prompt))
    }
}
