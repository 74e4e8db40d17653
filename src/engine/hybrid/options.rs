//! How experts are placed, and what came of it.

use std::path::PathBuf;

use super::{SlotPlan, Stage};
use crate::experts::waves::WaveRates;
use crate::experts::{Counters, Policy, Standing, Verdict};
use crate::plan::PAGE_TOKENS;

/// Where experts go when a GPU is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpertChoice {
    /// With their layers where all fits; else those that are picked most go to GPUs, one by one.
    #[default]
    Auto,
    /// As `Auto`, whatever the comparison of the first tokens would say.
    Always,
    /// With their layers, as many as fit.
    Off,
    /// On the CPU.
    Cpu,
}

impl std::str::FromStr for ExpertChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<ExpertChoice, String> {
        match text {
            "auto" => Ok(ExpertChoice::Auto),
            "always" => Ok(ExpertChoice::Always),
            "off" => Ok(ExpertChoice::Off),
            "cpu" => Ok(ExpertChoice::Cpu),
            _ => Err(format!("'{text}' is no way to place experts; known: auto, always, off, cpu")),
        }
    }
}

/// How experts are paged.
#[derive(Clone, Debug)]
pub struct ExpertOptions {
    pub choice: ExpertChoice,
    pub policy: Policy,
    /// The folder where what was learned is kept between runs; `None` keeps nothing.
    pub heat: Option<PathBuf>,
    /// What to start from in place of it; it is only read.
    pub profile: Option<PathBuf>,
    /// The part of the slots, 0 to 1, that the hottest experts of `profile` keep for good.
    pub pin: Option<f64>,
    /// Compare with experts on the CPU during the first tokens, and switch the cache off when it loses.
    pub guard: bool,
    pub probe: Probe,
    /// Hears what the user should know.
    pub notice: fn(&str),
}

impl Default for ExpertOptions {
    fn default() -> ExpertOptions {
        ExpertOptions {
            choice: ExpertChoice::default(),
            policy: Policy::default(),
            heat: None,
            profile: None,
            pin: None,
            guard: true,
            probe: Probe::default(),
            notice: |_| {},
        }
    }
}

/// What tests ask for and users do not.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    /// Slots of each GPU, in place of what its memory holds.
    pub slots: Option<Vec<usize>>,
    /// Wait for uploads, so that a run can be repeated.
    pub wait: bool,
    /// Other experts after every token.
    pub churn: bool,
    /// Start with experts at random.
    pub random_fill: Option<u64>,
    /// Every nth upload fails.
    pub fail_every: Option<usize>,
    /// The cache grows by so many pages at a time, from as many on.
    pub cache_step: Option<usize>,
    /// What whole layers take, in place of what is predicted and measured.
    pub rival: Option<RivalProbe>,
    /// By what it is decided which missing experts of a prompt pass through VRAM, in place of measured rates.
    pub rates: Option<WaveRates>,
    /// Which of them pass, whatever the rates and the kind of memory.
    pub passing: Option<Passing>,
    /// Experts of a wave, in place of what there is room for.
    pub wave: Option<usize>,
}

/// Seconds of a token with whole layers.
#[derive(Clone, Copy, Debug)]
pub struct RivalProbe {
    pub predicted: f64,
    pub measured: f64,
    /// The executors of whole layers can not be made.
    pub fails: bool,
}

/// Which of a layer's missing experts pass through VRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    All,
    /// Every second one.
    Half,
}

/// What prompts took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompts {
    /// Picks of all prompt tokens in all layers.
    pub picks: u64,
    /// Those that the CPU computed.
    pub cpu_picks: u64,
    /// Experts that passed through VRAM, and their bytes as in the file.
    pub streamed: u64,
    pub streamed_bytes: u64,
    /// Those that could not, and were computed on the CPU.
    pub failed: u64,
}

/// What the cache of experts did so far.
#[derive(Clone, Copy, Debug)]
pub struct ExpertReport {
    pub slots: usize,
    pub filled: usize,
    /// Of them, those that stay for good.
    pub pinned: usize,
    pub experts: usize,
    pub counters: Counters,
    /// Uploads that failed.
    pub failed: u64,
    pub prompts: Prompts,
    pub verdict: Option<Verdict>,
    pub guarded: bool,
    /// `None` when the whole cache was allocated at load.
    pub cache: Option<CacheReport>,
    /// How whole layers on GPUs compare.
    pub rival: Option<Standing>,
}

/// What the cache of keys and values took from the experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// Tokens, over all timelines, that it has room for now.
    pub tokens: usize,
    /// Tokens of the whole context, over all timelines.
    pub most_tokens: usize,
    /// Slots that are left when it has room for them.
    pub least_slots: usize,
    /// Slots that there are less than at the start.
    pub given_up: usize,
    pub grew: u64,
    pub shrank: u64,
}

impl CacheReport {
    /// At the start.
    pub(super) fn new(slots: &SlotPlan) -> CacheReport {
        let tokens = |stage: Option<&Stage>| stage.map_or(0, |stage| stage.pages * PAGE_TOKENS);
        CacheReport {
            tokens: tokens(slots.stages.first()),
            most_tokens: tokens(slots.stages.last()),
            least_slots: slots.slots_at_full_context(),
            ..CacheReport::default()
        }
    }
}

impl std::fmt::Display for ExpertReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = &self.counters;
        if let Some(standing @ Standing::Won { .. }) = &self.rival {
            // What the pager held is gone.
            return write!(f, "{standing}");
        }
        write!(f, "{} of {} experts on GPUs ({} slots", self.filled, self.experts, self.slots)?;
        if self.pinned > 0 {
            write!(f, ", {} pinned", self.pinned)?;
        }
        if let Some(cache) = &self.cache {
            write!(f, ", {} when all {} tokens of the context are used", cache.least_slots, cache.most_tokens)?;
        }
        write!(f, ")")?;
        if c.tokens > 0 {
            let (hits, uploads) = (100.0 * c.hits as f64 / c.picks.max(1) as f64, c.uploads as f64 / c.tokens as f64);
            write!(f, ", {hits:.1}% of the picks there, {uploads:.1} uploads a token")?;
        }
        if self.failed > 0 {
            write!(f, ", {} uploads failed", self.failed)?;
        }
        if self.prompts.picks > 0 {
            write!(f, "; {}", self.prompts)?;
        }
        if let Some(verdict) = &self.verdict {
            write!(f, "; {verdict}")?;
        }
        if let Some(cache) = self.cache.filter(|cache| cache.grew > 0) {
            let CacheReport { tokens, given_up, grew, shrank, .. } = cache;
            write!(f, "; KV has room for {tokens} tokens, {given_up} slots given up (grew {grew}x, shrank {shrank}x)")?;
        }
        if let Some(standing) = &self.rival {
            write!(f, "; {standing}")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Prompts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cpu = 100.0 * self.cpu_picks as f64 / self.picks.max(1) as f64;
        write!(f, "prompts: {cpu:.1}% of the picks on the CPU")?;
        if self.streamed > 0 {
            let gigabytes = self.streamed_bytes as f64 / 1e9;
            write!(f, ", {} experts ({gigabytes:.2} GB) passed through GPUs", self.streamed)?;
        }
        if self.failed > 0 {
            write!(f, ", {} could not", self.failed)?;
        }
        Ok(())
    }
}
