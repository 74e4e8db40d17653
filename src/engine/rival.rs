//! Whole layers on GPUs in place of paged experts: predicted when the guard has chosen, tried once when that says so.
//!
//! A trial replaces all executors: the pager's memory is given back first, then the layers that fit are uploaded, and
//! sessions compute anew what they had cached. So it begins between two generated tokens, and not while much is cached.
//! Whole layers stay when they are faster; else the pager comes back with its verdict and what it had counted.

use std::sync::Arc;
use std::time::Instant;

use super::gpus::Outline;
use super::hybrid::{ExpertChoice, ExpertOptions, Hybrid};
use super::{Engine, EngineConfig, EngineError, GpuChoice, kept_gpu_rates};
use crate::experts::rates::GpuRates;
use crate::experts::{GpuWork, Verdict, Work, predict};
use crate::gpu::{AdapterReport, Gpu, GpuError, dispatches};
use crate::plan::{PAGE_TOKENS, Plan, Side, Stage, stages};

/// Cached tokens that a trial may make the model compute again.
const MOST_CACHED: usize = 2048;

impl Engine {
    /// Before a run of one generated token; `cached` tokens are in the caches, of all sequences.
    fn weigh(&mut self, cached: usize) -> Result<(), EngineError> {
        let now = Instant::now();
        // Without a token before this one there is nothing to weigh, and this may be the end of a prompt.
        let Some(began) = self.began.replace(now) else { return Ok(()) };
        let seconds = self.config.experts.probe.rival.map_or((now - began).as_secs_f64(), |probe| probe.measured);
        match self.rival.record(seconds) {
            Some(true) => self.tell_rival(),
            Some(false) => {
                self.tell_rival();
                self.page_again()?;
            }
            None => {}
        }
        if self.rival.standing().is_some() || cached > MOST_CACHED {
            return Ok(());
        }
        let Some(verdict) = self.backend.as_ref().and_then(|split| split.hybrid()).and_then(Hybrid::verdict) else {
            return Ok(());
        };
        if let Some(predicted) = self.predicted(&verdict, cached)
            && self.rival.consider(&verdict, predicted)
        {
            self.try_whole_layers()?;
        }
        Ok(())
    }

    /// Before new tokens are computed: `alone` says that there is one, which was generated. While others wait there is no
    /// trial, which would make all of them wait for what it computes again.
    pub(super) fn before(&mut self, alone: bool) -> Result<(), EngineError> {
        if alone && !self.busy {
            return self.weigh(self.memory.held_tokens());
        }
        self.began = None;
        Ok(())
    }

    /// Says whether requests wait beside the one that runs.
    pub fn set_busy(&mut self, busy: bool) {
        self.busy = busy;
    }

    fn tell_rival(&self) {
        if let Some(standing) = self.rival.standing() {
            (self.config.notice)(&standing.to_string());
        }
    }

    /// The configuration that puts whole layers on GPUs.
    fn whole_layers(&self) -> EngineConfig {
        let experts = ExpertOptions { choice: ExpertChoice::Off, ..self.config.experts.clone() };
        EngineConfig { experts, ..self.config.clone() }
    }

    /// Seconds of a token with whole layers; `None` where no layer fits or a GPU's rates are unknown.
    fn predicted(&self, verdict: &Verdict, cached: usize) -> Option<f64> {
        if let Some(probe) = self.config.experts.probe.rival {
            return Some(probe.predicted);
        }
        let (Verdict::Keeps { without, .. } | Verdict::SwitchedOff { without, .. }) = verdict else { return None };
        let home = self.config.rates.as_ref()?;
        let whole = Outline::new(&self.unplaced, &self.whole_layers()).ok()?;
        let here: Vec<AdapterReport> = self.gpus().iter().map(|gpu: &Gpu| gpu.device().report().clone()).collect();
        let rates = |adapters: &[AdapterReport]| -> Option<Vec<GpuRates>> {
            adapters.iter().map(|adapter| kept_gpu_rates(adapter, home)).collect()
        };
        let value = self.config.cache_format().bytes_per_value();
        let work = |plan: &Plan, adapters: &[AdapterReport], on_cpu| work(plan, adapters, on_cpu, cached, value);
        Some(predict(
            &work(&whole.plan, &whole.adapters, false),
            &rates(&whole.adapters)?,
            &work(&self.plan, &here, true),
            &rates(&here)?,
            *without,
        ))
    }

    fn try_whole_layers(&mut self) -> Result<(), EngineError> {
        self.tell_rival();
        self.paged = self.expert_report();
        let fails = self.config.experts.probe.rival.is_some_and(|probe| probe.fails);
        let outline = match fails {
            true => Err(GpuError::NoAdapter { why: "a fault was injected".to_owned() }.into()),
            false => Outline::new(&self.unplaced, &self.whole_layers()),
        };
        if let Err(e) = outline.and_then(|outline| self.replace(outline)) {
            self.rival.fail();
            self.tell_rival();
            (self.config.notice)(&format!("the expert cache goes on: {e}"));
            self.page_again()?;
        }
        Ok(())
    }

    /// Goes back to paged experts, as they were before the trial.
    fn page_again(&mut self) -> Result<(), EngineError> {
        let paged = self.paged.take();
        match Outline::new(&self.unplaced, &self.config).and_then(|outline| self.replace(outline)) {
            Err(e) if self.config.gpu.choice == GpuChoice::Auto && e.is_of_gpu() => {
                (self.config.notice)(&format!("going on with the CPU: {e}"));
                self.replace(Outline::cpu(Arc::clone(&self.unplaced)))?;
            }
            result => result?,
        }
        let hybrid = self.backend.as_mut().and_then(|split| split.hybrid_mut());
        if let (Some(hybrid), Some(report)) = (hybrid, &paged) {
            hybrid.resume(report);
        }
        Ok(())
    }
}

/// What a token asks of a placed plan, `cached` tokens deep; `on_cpu`: with all experts on the CPU, wherever they are placed.
fn work(plan: &Plan, adapters: &[AdapterReport], on_cpu: bool, cached: usize, bytes_per_value: f64) -> Work {
    let mut work = Work { gpus: vec![GpuWork::default(); adapters.len()], ..Work::default() };
    for step in &plan.steps {
        let bytes = plan.step_bytes(&step.op) as u64 + (step.op.cache_reads(cached) as f64 * bytes_per_value) as u64;
        match step.side {
            Side::Gpu(_) if on_cpu && step.op.is_experts() => {
                work.cpu_bytes += bytes;
                work.hops += 1;
            }
            Side::Gpu(gpu) => {
                let adapter = &adapters[gpu as usize];
                let pages = cached.div_ceil(PAGE_TOKENS).max(1);
                let at = &mut work.gpus[gpu as usize];
                at.bytes += bytes;
                at.dispatches += dispatches(plan, &step.op, adapter.bank_bytes(), pages) as u64;
            }
            Side::Cpu => work.cpu_bytes += bytes,
        }
    }
    let from_gpu = |stage: &&Stage| matches!(stage, Stage::Move { from: Side::Gpu(_), .. });
    work.hops += stages(plan).iter().filter(from_gpu).count() as u64;
    // The logits.
    work.hops += u64::from(plan.steps.last().is_some_and(|step| step.side != Side::Cpu));
    work
}
