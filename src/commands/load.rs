//! The model argument and the flags that every command shares: how the model is loaded and computed.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::builder::RangedU64ValueParser;
use serde_json::{Map, Value as Json};

use super::budget::{self, BudgetFlags};
use super::gpu::{self, GpuFlags};
use super::obtain;
use super::terminal;
use crate::backend::KvFormat;
use crate::catalog::{Catalog, Home};
use crate::chat::{ChatError, Message, Template};
use crate::cores;
use crate::engine::{DEFAULT_BATCH, DiskOptions, Engine, EngineConfig};
use crate::experts::rates;
use crate::gguf::Gguf;
use crate::models::RopeOverride;
use crate::sizes;
use crate::tokenizer::{Prompt, Tokenizer, Vocab};

/// Which model.
#[derive(Debug, clap::Args)]
pub struct ModelArg {
    /// A GGUF file (of a split model any part), a short name of 'rynd list', or hf:owner/repo[:QUANT or FILE]
    #[arg(value_name = "MODEL")]
    model: String,
    /// Fetch a model that is not here without asking
    #[arg(long)]
    yes: bool,
}

impl ModelArg {
    /// As the user wrote it.
    pub fn name(&self) -> &str {
        &self.model
    }

    /// Opens the file without preparing to run it. What is no path is looked up in the catalog, and fetched after a yes.
    pub fn open(&self) -> Result<Gguf> {
        let path = Path::new(&self.model);
        if path.is_file() {
            return Ok(Gguf::open(path)?);
        }
        let resolved = obtain::obtain(&Catalog::open()?, &self.model, self.yes)?;
        Ok(Gguf::open(resolved.path())?)
    }

    /// Opens the file and prepares to run it.
    pub fn load(&self, config: &EngineConfig) -> Result<Engine> {
        start(self.open()?, config)
    }
}

/// Which model, for commands that have a default.
#[derive(Debug, clap::Args)]
pub struct ModelOrDefault {
    /// A GGUF file, a short name of 'rynd list', or hf:owner/repo[:QUANT or FILE] [default: the catalog's default model]
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// Fetch a model that is not here without asking
    #[arg(long)]
    yes: bool,
}

impl ModelOrDefault {
    /// The model that the user named, or the catalog's.
    pub fn get(&self) -> Result<ModelArg> {
        let model = match &self.model {
            Some(model) => model.clone(),
            None => Catalog::open()?.default_model().to_owned(),
        };
        Ok(ModelArg { model, yes: self.yes })
    }
}

/// Prepares to run the model in an open file.
pub fn start(gguf: Gguf, config: &EngineConfig) -> Result<Engine> {
    let mut config = config.clone();
    budget::prepare(&gguf, &mut config);
    let engine = Engine::new(gguf, &config)?;
    gpu::tell(&engine);
    budget::tell_speed(&engine, &config);
    let trained = engine.plan().context;
    if engine.context() > trained {
        // A lost warning is no reason to fail.
        let _ = writeln!(
            terminal::stderr(),
            "rynd: warning: the model was made for {trained} tokens; beyond them its answers get worse \
             (--rope-scaling yarn stretches it)"
        );
    }
    Ok(engine)
}

/// The tokenizer of an open model.
pub fn tokenizer(gguf: &Gguf) -> Result<Tokenizer> {
    let vocab = Vocab::from_gguf(gguf)?;
    if vocab.model == "gpt2" && vocab.pre.is_none() {
        // A lost warning is no reason to fail.
        let _ = writeln!(
            terminal::stderr(),
            "rynd: warning: {} does not say how its text is cut into words (tokenizer.ggml.pre); the old default is used, \
             and answers may be worse: convert the model again",
            gguf.path().display()
        );
    }
    Tokenizer::new(vocab).with_context(|| gguf.path().display().to_string())
}

/// The file's chat template, if it has one.
pub fn chat_template(gguf: &Gguf) -> Result<Option<Template>> {
    let Some(source) = gguf.opt_str("tokenizer.chat_template")? else { return Ok(None) };
    Ok(Some(Template::new(source, &gguf.path().display().to_string())?))
}

/// What templates expect to know of the vocabulary.
fn template_variables(tokenizer: &Tokenizer) -> Map<String, Json> {
    let text = |id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
    let tokens = [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())];
    tokens.into_iter().filter_map(|(name, id)| Some((name.to_owned(), Json::from(text(id?))))).collect()
}

/// The prompt that asks for the next message. What messages spell is text, unless `parse_special`.
pub fn prompt(
    template: &Template,
    tokenizer: &Tokenizer,
    messages: &[Message],
    parse_special: bool,
) -> Result<Prompt, ChatError> {
    let variables = template_variables(tokenizer);
    if parse_special {
        return Ok(template.render(messages, None, true, &variables)?.into());
    }
    template.prompt(tokenizer, messages, None, true, &variables)
}

/// A number that must be at least 1.
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// A number of threads. Far more than there are CPUs would only wait for one another, which looks like a hang.
pub fn thread_count(text: &str) -> Result<usize, String> {
    match (text.parse::<usize>(), cores::most()) {
        (Ok(0) | Err(_), _) => Err(format!("'{text}' is no number of threads; give 1 or more, or leave it out")),
        (Ok(n), most) if n > most => Err(format!(
            "more than {most} threads only wait for one another here; {} would be used unasked",
            cores::usable()
        )),
        (Ok(n), _) => Ok(n),
    }
}

/// How to run a model.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine options")]
pub struct EngineFlags {
    /// Worker threads [default: the cores that this process may use]
    #[arg(short, long, value_name = "N", value_parser = thread_count)]
    pub threads: Option<usize>,
    /// Tokens of context, as 8192 or 8K [default: the model's, at most 32768]
    #[arg(short, long, value_name = "TOKENS", value_parser = sizes::parse_tokens)]
    pub ctx: Option<usize>,
    /// Memory for conversations that are over, as 2G [default: an eighth of the machine's, 0 with --ram or on GPUs]
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse)]
    pub cache_ram: Option<u64>,
    /// Disk for conversations that are over, found again at the next start; 0 keeps none (see 'rynd cache')
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse, default_value = "10G")]
    pub cache_disk: u64,
    #[command(flatten)]
    pub compute: ComputeFlags,
}

impl EngineFlags {
    /// As the engine wants it.
    pub fn config(&self) -> EngineConfig {
        let compute = self.compute.config();
        let usual = if compute.tiers.is_some() { 0 } else { rates::ram_bytes().unwrap_or(0) / PAST_PART };
        let past_bytes = self.cache_ram.unwrap_or(usual);
        EngineConfig { threads: self.threads, context: self.ctx, past_bytes, ..compute }
    }

    /// From now on the engine keeps conversations on disk, unless the user wants none.
    pub fn keep_on_disk(&self, engine: &mut Engine, tokenizer: &Tokenizer) {
        // Without a home there is no place for them.
        if let Ok(home) = Home::from_env() {
            engine
                .keep_on_disk(&DiskOptions { dir: home.pages(), cap_bytes: self.cache_disk, always: false }, tokenizer);
        }
    }
}

/// Of the machine's memory, the part that sequences which are over may take.
const PAST_PART: u64 = 8;

/// Tokens of the longest run that is chosen unasked.
const MOST_BATCH: usize = 4096;

/// What is computed: the part of the engine's flags that changes numbers or memory.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine options")]
pub struct ComputeFlags {
    /// Prompt tokens computed together [default: 512, or up to 4096 where experts of a prompt pass through GPUs]
    #[arg(short, long, value_name = "TOKENS", value_parser = at_least_one())]
    batch: Option<usize>,
    /// Format of cached keys and values: f32, f16 or q8_0
    #[arg(long, value_name = "FORMAT", default_value = "f16")]
    pub kv: KvFormat,
    /// Widen weights to f32 and keep activations and cache in f32: slow, the reference
    #[arg(long)]
    pub exact: bool,
    /// Rope scaling instead of the file's
    #[arg(long, value_name = "KIND", value_parser = ["none", "linear", "yarn"])]
    pub rope_scaling: Option<String>,
    /// How many times longer the context gets by --rope-scaling
    #[arg(long, value_name = "FACTOR", alias = "rope-factor")]
    pub yarn_factor: Option<f32>,
    /// Tokens of context the model was trained with
    #[arg(long, value_name = "TOKENS")]
    pub yarn_orig_ctx: Option<u32>,
    /// Write what the routers of a mixture of experts pick to this file (see 'rynd experts')
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Base of the rotary frequencies instead of the file's
    #[arg(long, value_name = "BASE")]
    pub rope_base: Option<f32>,
    #[command(flatten)]
    pub gpu: GpuFlags,
    #[command(flatten)]
    pub budget: BudgetFlags,
}

impl ComputeFlags {
    /// As the engine wants it, threads and context left open.
    pub fn config(&self) -> EngineConfig {
        EngineConfig {
            batch: self.batch.unwrap_or(DEFAULT_BATCH),
            most_batch: self.batch.is_none().then_some(MOST_BATCH),
            kv: self.kv,
            exact: self.exact,
            rope: self.rope(),
            tiers: self.budget.tiers(),
            trace: self.trace.clone(),
            gpu: self.gpu.options(self.exact),
            experts: self.gpu.expert_options(),
            // Without a home nothing is measured.
            rates: Home::from_env().ok(),
            notice: gpu::notice,
            ..EngineConfig::default()
        }
    }

    /// The rope flags.
    pub fn rope(&self) -> RopeOverride {
        RopeOverride {
            scaling: self.rope_scaling.clone(),
            factor: self.yarn_factor,
            original_context: self.yarn_orig_ctx,
            freq_base: self.rope_base,
        }
    }

    /// The format that the cache really has.
    pub fn kv_format(&self) -> KvFormat {
        self.kv.of_run(self.exact)
    }
}
