//! A loaded model (`Engine`) and one timeline of tokens in it (`Session`).
//!
//! The engine owns the file, the plan, the backend and the pool of cache pages; a session owns its ids and pages. Only
//! what differs from what a session already holds is computed: `Session::sync` keeps the longest common prefix, so
//! edits, regenerations and the turns of a chat cost their new tokens only.

mod record;
mod session;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use record::{expert_header, router_key};
pub use session::{Session, Span, Wanted, advance};

use self::record::Recorder;
use crate::backend::{Backend, BackendError, Env, KvFormat, PickLog, Token};
use crate::cpu::{Cpu, CpuConfig, InputSums};
use crate::experts::rates;
use crate::experts::store::Counters;
use crate::experts::tier::{Tier, TierError, Tiers};
use crate::gguf::{Gguf, GgufError};
use crate::models::{self, RopeOverride};
use crate::plan::{PAGE_TOKENS, Plan, PlanError, Slot};
use crate::weights::Weights;

/// Why a model can not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Tier(#[from] TierError),
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    #[error("{tokens} tokens do not fit the context of {context}; shorten the prompt or raise it with -c")]
    ContextFull { tokens: usize, context: usize },
    #[error("no cache pages are left for another session; raise the context with -c")]
    NoPages,
    #[error("{tokens} tokens are more than one run of {batch} holds; raise it with -b")]
    BatchFull { tokens: usize, batch: usize },
    #[error("can not write the trace {path}: {cause}")]
    Trace { path: PathBuf, cause: std::io::Error },
    #[error("{file}: the model has no experts, so there is nothing to trace; leave --trace out")]
    NothingToTrace { file: PathBuf },
    #[error("interrupted")]
    Interrupted,
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Worker threads; `None` is the number of physical cores.
    pub threads: Option<usize>,
    /// Tokens of context; `None` is the smaller of the model's and `DEFAULT_CONTEXT`.
    pub context: Option<usize>,
    /// Tokens of one prefill run.
    pub batch: usize,
    pub kv: KvFormat,
    /// f32 activations and cache, weights widened to f32.
    pub exact: bool,
    pub rope: RopeOverride,
    /// Timelines that may be full at once.
    pub sessions: usize,
    /// Sum up the squared inputs of all matrices, for an importance matrix.
    pub observe_inputs: bool,
    /// A memory budget: experts beyond it stay on disk and are read when they are picked.
    pub tiers: Option<Tiers>,
    /// Write what the routers pick to this file.
    pub trace: Option<PathBuf>,
}

/// Context when neither the user nor a smaller model says otherwise.
pub const DEFAULT_CONTEXT: usize = 32_768;

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            threads: None,
            context: None,
            batch: 512,
            kv: KvFormat::default(),
            exact: false,
            rope: RopeOverride::default(),
            sessions: 1,
            observe_inputs: false,
            tiers: None,
            trace: None,
        }
    }
}

/// A loaded model.
pub struct Engine {
    gguf: Gguf,
    plan: Arc<Plan>,
    backend: Box<dyn Backend>,
    free_pages: Vec<u32>,
    context: usize,
    batch: usize,
    threads: usize,
    logits: Vec<f32>, // (r, vocab) of the last run
    input_sums: Option<Arc<InputSums>>,
    tier: Option<Arc<Tier>>,
    recorder: Option<Recorder>,
}

impl Engine {
    /// Opens a model file (any shard of a split one) and prepares to run it.
    pub fn load(path: &Path, config: &EngineConfig) -> Result<Engine, EngineError> {
        Engine::new(Gguf::open(path)?, config)
    }

    /// Prepares to run the model in an open file.
    pub fn new(gguf: Gguf, config: &EngineConfig) -> Result<Engine, EngineError> {
        let plan = Arc::new(models::plan(&gguf, &config.rope)?);
        let context = config.context.unwrap_or(plan.context.min(DEFAULT_CONTEXT)).max(1);
        let threads = config.threads.unwrap_or_else(num_cpus::get_physical).max(1);
        let batch = config.batch.clamp(1, context);
        let pages = context.div_ceil(PAGE_TOKENS) * config.sessions.max(1);
        let weights = Weights::new(gguf.clone(), Arc::clone(&plan));
        let mut cpu =
            Cpu::new(weights.clone(), &CpuConfig { threads, batch, pages, kv: config.kv, exact: config.exact })?;
        let tier = match &config.tiers {
            // Vocabulary and the like come after this and are small.
            Some(tiers) => Tier::open(&weights, tiers, cpu.buffer_bytes() + rates::own_bytes())?.map(Arc::new),
            None => None,
        };
        if let Some(tier) = &tier {
            cpu.set_tier(Arc::clone(tier));
        }
        let input_sums = config.observe_inputs.then(|| Arc::new(InputSums::new(&plan)));
        if let Some(sums) = &input_sums {
            cpu.observe(Arc::clone(sums));
        }
        let recorder = match &config.trace {
            Some(path) => {
                let log = Arc::new(PickLog::new(&plan));
                cpu.log_picks(Arc::clone(&log));
                Some(Recorder::create(path, &gguf, &plan, log)?)
            }
            None => None,
        };
        Ok(Engine {
            gguf,
            plan,
            backend: Box::new(cpu),
            free_pages: (0..pages as u32).rev().collect(),
            context,
            batch,
            threads,
            logits: vec![],
            input_sums,
            tier,
            recorder,
        })
    }

    /// What the RAM tier did so far; `None` when all weights are computed from the mapping.
    pub fn tier_counters(&self) -> Option<Counters> {
        self.tier.as_ref().map(|tier| tier.store.counters())
    }

    /// The model file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The forward pass.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The squared inputs of all matrices so far, if the configuration asks for them.
    pub fn input_sums(&self) -> Option<&InputSums> {
        self.input_sums.as_deref()
    }

    /// Tokens of one timeline, at most.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of one prefill run, at most.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs the whole plan for these tokens; returns the logits of `env.rows`: (r, vocab).
    fn forward(&mut self, env: &Env) -> Result<&[f32], EngineError> {
        self.backend.run(0..self.plan.steps.len(), env)?;
        if let Some(recorder) = &mut self.recorder {
            recorder.run(env.tokens)?;
        }
        self.logits.resize(env.rows.len() * self.plan.vocab, 0.0);
        if !env.rows.is_empty() {
            self.backend.read(self.plan.logits, &mut self.logits)?;
        }
        Ok(&self.logits)
    }

    /// Runs one batch step by step on a fresh timeline; `see` gets each step's index and the rows of every slot that it
    /// wrote. For finding the first step at which two implementations part.
    pub fn trace(
        &mut self,
        ids: &[u32],
        mut see: impl FnMut(usize, Slot, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        if ids.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if ids.len() > self.batch {
            return Err(EngineError::ContextFull { tokens: ids.len(), context: self.batch });
        }
        let needed = ids.len().div_ceil(PAGE_TOKENS);
        let pages = self.take_pages(needed)?;
        let tokens: Vec<Token> =
            ids.iter().enumerate().map(|(pos, &id)| Token { id, seq: 0, pos: pos as u32 }).collect();
        let rows: Vec<u32> = (0..ids.len() as u32).collect();
        let env = Env { tokens: &tokens, rows: &rows, pages: &[&pages] };
        let mut result = Ok(());
        let mut values = vec![];
        'steps: for at in 0..self.plan.steps.len() {
            if let Err(e) = self.backend.run(at..at + 1, &env) {
                result = Err(e.into());
                break;
            }
            for slot in self.plan.steps[at].op.writes() {
                values.resize(ids.len() * self.plan.slot(slot).width, 0.0);
                if let Err(e) = self.backend.read(slot, &mut values) {
                    result = Err(e.into());
                    break 'steps;
                }
                if see(at, slot, &values).is_break() {
                    break 'steps;
                }
            }
        }
        self.free_pages.extend(pages);
        result
    }

    /// Gives the trace file its name. Dropping the engine does the same, but can not say what went wrong.
    pub fn finish_trace(&mut self) -> Result<(), EngineError> {
        self.recorder.take().map_or(Ok(()), Recorder::finish)
    }

    fn take_pages(&mut self, n: usize) -> Result<Vec<u32>, EngineError> {
        if self.free_pages.len() < n {
            return Err(EngineError::NoPages);
        }
        Ok(self.free_pages.split_off(self.free_pages.len() - n))
    }
}
