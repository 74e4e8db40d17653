//! A mixture of experts wherever its experts lie: hits run on the GPUs that hold them, misses on the CPU, at once.
//!
//! Of a layer the home GPU (that of its other steps) gets two submissions: all up to the router, and the hits, which it finds
//! through the slot map in its own memory, with no read-back. Meanwhile the ids come to the host; the CPU computes the
//! misses from where they lie, other GPUs their hits, and the sums are added once, by the next submission. A layer whose
//! experts are all at home is read back at the end of the token or, when nothing can change there, never. Between two
//! tokens the pager says what should move; a thread a GPU uploads it, and it counts when it has arrived. Before a run the
//! cache may take memory from the slots, or give it back (`elastic`). Of a prompt's misses those that are worth it pass
//! through the home GPU meanwhile (`prompts`), and nothing that is resident makes way for them. A layer whose other steps run
//! on the CPU sends its hits to the GPUs that hold them, and nothing when there are none.

mod elastic;
mod layout;
mod moves;
mod options;
mod prompts;
mod stages;
mod start;
mod uploads;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub use layout::{Rooms, SlotPlan, Stage, WaveRoom};
pub use options::{CacheReport, ExpertChoice, ExpertOptions, ExpertReport, Passing, Probe, Prompts, RivalProbe};
pub use stages::sizes;
pub use start::page_experts;

use self::prompts::Waves;
use self::uploads::Uploads;
use super::heat::save;
use crate::backend::{Backend, BackendError, ELSEWHERE, Env, Phase, PickLog};
use crate::cpu::Cpu;
use crate::experts::tier::Tier;
use crate::experts::{Guard, Heat, Pager, Place, Verdict};
use crate::gpu::{Gpu, NO_SLOT};
use crate::plan::{Experts, Mixture, Plan, Slot, WeightId};
use crate::weights::Weights;

/// Staging buffers of a GPU: uploads on their way at once.
pub const IN_FLIGHT: usize = 4;
/// Generated tokens before the guard begins to measure: a cold cache is no judge.
const WARM_UP: u64 = 16;
/// Uploads that wait, in tokens' worth of picks, before the pager is asked for more.
const BACKLOG: usize = 2;

#[derive(Clone, Copy)]
struct Layer {
    step: usize,
    /// The GPU of its other steps; `None`: they run on the CPU.
    home: Option<usize>,
    op: Experts,
    router: WeightId,
    /// Of x and out.
    widths: [usize; 2],
}

impl Layer {
    /// Gate, up and down.
    fn tensors(&self) -> [WeightId; 3] {
        [self.op.gate, self.op.up, self.op.down]
    }
}

/// A layer's turn in a run: who computes, and what.
pub struct LayerRun<'a> {
    pub cpu: &'a mut Cpu,
    pub gpus: &'a mut [Gpu],
    pub env: &'a Env<'a>,
    /// The first step that did not run yet.
    pub from: usize,
    /// Whether somebody wants to know the picks.
    pub logged: bool,
}

/// Residency and the threads that change it.
pub struct Hybrid {
    pager: Pager,
    layers: Vec<Option<Layer>>, // by mixture layer; None when it stays on the CPU
    at: Vec<(usize, usize)>,    // by the pager's pool: GPU, pool there
    maps: Vec<Vec<Vec<u32>>>,   // (GPUs, layers, experts), as on the devices
    held: Vec<Vec<usize>>,      // (GPUs, layers): experts in the map
    stale: Vec<(usize, usize)>, // (GPU, layer) whose map is to be written
    uploads: Vec<Uploads>,
    /// Where the CPU's experts lie, when they are not computed from the mapping.
    tier: Option<Arc<Tier>>,
    options: ExpertOptions,
    guards: BTreeMap<usize, Guard>, // by generated tokens of a run
    /// The guard's last word, when it has one.
    verdict: Option<Verdict>,
    with_cache: bool,
    /// When the run before began and how many tokens it generated, if it read no prompt.
    began: Option<(Instant, usize)>,
    had_prompt: bool,
    failed: u64,
    token: u64,
    heat: Option<(PathBuf, Heat)>,
    stages: Vec<Stage>,
    stage: usize, // of `stages`
    slots_at_start: usize,
    cache: CacheReport,
    waves: Waves,
    // ---- of the current run ----
    picked: Vec<Vec<u32>>, // by layer: (t, used); empty when it was not read
    late: Vec<usize>,      // layers whose picks are read at the end
    weights: Vec<f32>,     // of the layer that was read last: (t, used)
    masked: Vec<u32>,      // ids that are left to the CPU: (t, used)
    x: Vec<f32>,           // (t, k)
    sum: Vec<f32>,         // (t, n)
    part: Vec<f32>,        // (t, n)
}

impl Hybrid {
    /// Threads for the GPUs; what `start` knows of the experts is brought to their slots. `heat` is saved at the end.
    pub fn new(
        slots: &SlotPlan,
        weights: &Weights,
        gpus: &mut [Gpu],
        tier: Option<&Arc<Tier>>,
        options: &ExpertOptions,
        heat: Option<(PathBuf, Heat)>,
        start: Option<&Heat>,
    ) -> Result<Hybrid, BackendError> {
        let plan = weights.plan();
        let layers = layers(plan, slots);
        let mut pager = Pager::new(slots.grid.clone(), &slots.pools, options.policy);
        if let Some(heat) = start {
            heat.seed(pager.scores_mut(), options.policy.half_life);
        }
        let uploads = gpus
            .iter()
            .map(|gpu| {
                let uploader = gpu.expert_uploader(IN_FLIGHT)?;
                Uploads::start(uploader, weights.clone(), tier.cloned(), options.probe.fail_every)
            })
            .collect::<Result<_, BackendError>>()?;
        let (count, experts) = (slots.layers.len(), slots.grid.experts);
        let mut hybrid = Hybrid {
            pager,
            layers,
            at: slots.at.clone(),
            maps: vec![vec![vec![NO_SLOT; experts]; count]; gpus.len()],
            held: vec![vec![0; count]; gpus.len()],
            stale: vec![],
            uploads,
            tier: tier.cloned(),
            options: options.clone(),
            guards: BTreeMap::new(),
            verdict: None,
            with_cache: true,
            began: None,
            had_prompt: false,
            failed: 0,
            token: 0,
            heat,
            stages: slots.stages.clone(),
            stage: 0,
            slots_at_start: slots.slots(),
            cache: CacheReport::new(slots),
            waves: Waves::new(weights, slots, tier, options),
            picked: vec![vec![]; count],
            late: vec![],
            weights: vec![],
            masked: vec![],
            x: vec![],
            sum: vec![],
            part: vec![],
        };
        // Nobody waits for a token yet.
        let scores = hybrid.pager.scores().clone();
        let promotions = match options.probe.random_fill {
            Some(seed) => hybrid.pager.fill(|entry| 1.0 + (entry as u64 + 1).wrapping_mul(seed | 1) as f64),
            None => hybrid.pager.fill(|entry| scores.crf(entry)),
        };
        if let (Some(part), Some(_)) = (options.pin, &options.profile) {
            hybrid.pager.pin_hottest(part);
        }
        hybrid.send(promotions);
        hybrid.receive(true);
        hybrid.write_maps(gpus)?;
        Ok(hybrid)
    }

    /// The mixture layers among these steps that run here, in order.
    pub fn layers_in(&self, steps: &Range<usize>) -> Vec<usize> {
        let here = |layer: &usize| self.layers[*layer].is_some_and(|layer| steps.contains(&layer.step));
        (0..self.layers.len()).filter(here).collect()
    }

    /// The step of a layer that runs here.
    pub fn step(&self, layer: usize) -> Option<usize> {
        self.layers[layer].map(|layer| layer.step)
    }

    /// Before a run from the first step on.
    pub fn begin(&mut self, gpus: &mut [Gpu], env: &Env) -> Result<(), BackendError> {
        let (tokens, prompt) = (env.tokens.len(), env.prompt_tokens());
        let now = Instant::now();
        // Only runs of as many generated tokens are alike.
        let before = std::mem::replace(&mut self.began, (prompt == 0).then_some((now, tokens)));
        if let Some((began, _)) = before.filter(|(_, generated)| prompt == 0 && *generated == tokens) {
            self.judge((now - began).as_secs_f64(), tokens);
        }
        if self.guarded() {
            self.with_cache = prompt > 0 || self.guards.get(&tokens).is_none_or(Guard::wants_cache);
        }
        if prompt < tokens && self.had_prompt {
            // What the prompt used goes into slots that are still empty.
            let scores = self.pager.scores().clone();
            let promotions = self.pager.fill(|entry| scores.crf(entry));
            self.send(promotions);
        }
        self.had_prompt = prompt > 0;
        self.receive(self.options.probe.wait);
        self.write_maps(gpus)?;
        self.picked.iter_mut().for_each(Vec::clear);
        self.late.clear();
        Ok(())
    }

    /// Whether the guard still has to say something.
    fn guarded(&self) -> bool {
        self.options.guard && self.verdict.is_none()
    }

    /// Tells the guard of runs of so many generated tokens how long one took. The first guard that has a verdict settles it.
    fn judge(&mut self, seconds: f64, tokens: usize) {
        if !self.guarded() || self.token < WARM_UP || self.pager.filled().0 == 0 {
            return;
        }
        let guard = self.guards.entry(tokens).or_default();
        guard.record(seconds / tokens as f64);
        let verdict = guard.verdict();
        if verdict != Verdict::Undecided {
            self.verdict = Some(verdict);
            self.with_cache = guard.wants_cache();
            self.settle_tiers();
            (self.options.notice)(&verdict.to_string());
        }
    }

    /// Runs a layer's experts, and before them its home's steps from `run.from` on. Returns when all but the home GPU are
    /// done.
    pub fn run_layer(&mut self, layer: usize, run: &mut LayerRun) -> Result<(), BackendError> {
        match self.layers[layer] {
            Some(info @ Layer { home: Some(home), .. }) => self.run_gpu_layer((layer, info), home, run),
            Some(info) => self.run_cpu_layer((layer, info), run),
            None => Ok(()),
        }
    }

    /// Of a layer whose other steps run on the CPU: hits run on the GPUs that hold them, and what they add comes back.
    fn run_cpu_layer(&mut self, (layer, info): (usize, Layer), run: &mut LayerRun) -> Result<(), BackendError> {
        let Layer { step, op, widths, .. } = info;
        let LayerRun { cpu, gpus, env, from, .. } = run;
        let (env, t) = (*env, env.tokens.len());
        cpu.run(*from..step, env)?;
        self.read_picks(layer, t, *cpu, true)?;
        let (others, misses) = self.mask(layer, info, self.with_cache, &[], env);
        if others.is_empty() {
            return cpu.run(step..step + 1, env);
        }
        self.x.resize(t * widths[0], 0.0);
        cpu.read(op.x, &mut self.x)?;
        self.submit_hits((layer, info), &others, t, gpus)?;
        if misses > 0 {
            cpu.write_u32(op.ids, &self.masked)?;
            cpu.run(step..step + 1, env)?;
        }
        self.sum.resize(t * widths[1], 0.0);
        cpu.read(op.out, &mut self.sum)?;
        self.add_hits(info, &others, gpus)?;
        cpu.write(op.out, &self.sum)
    }

    /// Of a layer whose other steps run on a GPU.
    fn run_gpu_layer(
        &mut self,
        (layer, info): (usize, Layer),
        home: usize,
        run: &mut LayerRun,
    ) -> Result<(), BackendError> {
        let Layer { step, op, widths, .. } = info;
        let LayerRun { cpu, gpus, env, from, logged } = run;
        let (env, from, x) = (*env, *from, op.x);
        let (t, experts) = (env.tokens.len(), self.pager.grid().experts);
        let prompt = env.prompt_tokens();
        // A prompt's token that is alone in its run would wait for a wave of its own.
        let passes = prompt > 1 && gpus[home].wave_slots(step) > 0;
        // The guard judges generated tokens; where a prompt streams, what need not be brought is used.
        let with_cache = self.with_cache || passes;
        if with_cache && self.held[home][layer] == experts {
            self.waves.counted.picks += (prompt * op.used) as u64;
            let settled = !*logged && self.pager.is_settled(layer);
            let wanted: &[Slot] = match (settled, *logged) {
                (true, _) => &[],
                (false, true) => &[op.ids, op.weights],
                (false, false) => &[op.ids],
            };
            gpus[home].submit(from..step + 1, wanted)?;
            if !settled {
                self.late.push(layer);
            }
            return Ok(());
        }
        gpus[home].submit(from..step, &[op.ids, op.weights, x])?;
        let hits = with_cache && self.held[home][layer] > 0;
        if hits {
            gpus[home].submit(step..step + 1, &[])?;
        }
        if passes {
            self.upload_ahead(layer, t, (home, &mut gpus[home]));
        }
        self.read_picks(layer, t, &mut gpus[home], true)?;
        let passing = if passes { self.passing(layer) } else { vec![] };

        let (others, misses) = self.mask(layer, info, with_cache, &passing, env);
        let elsewhere = misses > 0 || !others.is_empty();
        if elsewhere {
            self.x.resize(t * widths[0], 0.0);
            gpus[home].read(x, &mut self.x)?;
        }
        self.sum.clear();
        self.sum.resize(t * widths[1], 0.0);
        self.submit_hits((layer, info), &others, t, gpus)?;
        if misses > 0 {
            cpu.write(x, &self.x)?;
            cpu.write_u32(op.ids, &self.masked)?;
            cpu.write(op.weights, &self.weights)?;
            cpu.write(op.out, &self.sum)?;
        }
        let mut run = || if misses > 0 { cpu.run(step..step + 1, env) } else { Ok(()) };
        let failed = if passing.is_empty() {
            run()?;
            vec![]
        } else {
            // The CPU's threads compute while this one feeds the GPU.
            std::thread::scope(|scope| {
                let running = scope.spawn(run);
                let failed = self.stream(layer, &passing, hits, (home, &mut gpus[home]));
                running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                failed
            })?
        };
        if misses > 0 {
            cpu.read(op.out, &mut self.sum)?;
        }
        if !failed.is_empty() {
            if !elsewhere {
                self.x.resize(t * widths[0], 0.0);
                gpus[home].read(x, &mut self.x)?;
            }
            self.run_failed(layer, &failed, cpu, env)?;
        }
        self.add_hits(info, &others, gpus)?;
        if elsewhere || !failed.is_empty() { gpus[home].add(op.out, &self.sum) } else { Ok(()) }
    }

    /// Puts into `masked` the picks that are left to the CPU when neither a GPU holds them nor they pass through one, and
    /// counts those of prompts. Returns the GPUs, other than the layer's home, that hold some, and the number of picks that
    /// are left.
    fn mask(&mut self, layer: usize, info: Layer, with_cache: bool, passing: &[usize], env: &Env) -> (Vec<usize>, u64) {
        let mut others = vec![];
        let mut misses = 0;
        let mut passes = vec![false; if passing.is_empty() { 0 } else { self.pager.grid().experts }];
        passing.iter().for_each(|&expert| passes[expert] = true);
        self.masked.clear();
        self.masked.extend_from_slice(&self.picked[layer]);
        for (token, row) in self.masked.chunks_exact_mut(info.op.used).enumerate() {
            let before = misses;
            for id in row {
                let expert = *id as usize;
                match self.pager.place(layer, expert) {
                    Place::Resident { pool, .. } if with_cache => {
                        *id = ELSEWHERE;
                        let (gpu, _) = self.at[usize::from(pool)];
                        if info.home != Some(gpu) && !others.contains(&gpu) {
                            others.push(gpu);
                        }
                    }
                    _ if passes.get(expert) == Some(&true) => *id = ELSEWHERE,
                    Place::Resident { .. } | Place::Coming { .. } | Place::Absent => misses += 1,
                }
            }
            if env.phase(token) == Phase::Prompt {
                self.waves.counted.picks += info.op.used as u64;
                self.waves.counted.cpu_picks += misses - before;
            }
        }
        (others, misses)
    }

    /// Has GPUs that are not a layer's home compute the hits that they hold, from `x`.
    fn submit_hits(
        &mut self,
        (layer, info): (usize, Layer),
        others: &[usize],
        t: usize,
        gpus: &mut [Gpu],
    ) -> Result<(), BackendError> {
        let Layer { step, op: Experts { x, ids, weights, out, .. }, widths, .. } = info;
        self.part.clear();
        self.part.resize(t * widths[1], 0.0);
        for &gpu in others {
            gpus[gpu].write(x, &self.x)?;
            gpus[gpu].write_u32(ids, &self.picked[layer])?;
            gpus[gpu].write(weights, &self.weights)?;
            gpus[gpu].write(out, &self.part)?;
            gpus[gpu].submit(step..step + 1, &[out])?;
        }
        Ok(())
    }

    /// Adds what they computed to `sum`.
    fn add_hits(&mut self, info: Layer, others: &[usize], gpus: &mut [Gpu]) -> Result<(), BackendError> {
        for &gpu in others {
            gpus[gpu].read(info.op.out, &mut self.part)?;
            self.sum.iter_mut().zip(&self.part).for_each(|(sum, part)| *sum += part);
        }
        Ok(())
    }

    /// Reads what a layer's router picked, of which not everybody wants the weights.
    fn read_picks(
        &mut self,
        layer: usize,
        t: usize,
        from: &mut dyn Backend,
        with_weights: bool,
    ) -> Result<(), BackendError> {
        let Some(Layer { op, .. }) = self.layers[layer] else { return Ok(()) };
        let ids = &mut self.picked[layer];
        ids.resize(t * op.used, 0);
        from.read_u32(op.ids, ids)?;
        if with_weights {
            self.weights.resize(t * op.used, 0.0);
            from.read(op.weights, &mut self.weights)?;
        }
        Ok(())
    }

    /// After a layer ran: its picks for a log.
    pub fn log(&self, layer: usize, log: &PickLog) {
        if let (Some(Layer { router, .. }), false) = (self.layers[layer], self.picked[layer].is_empty()) {
            log.put(router, &self.picked[layer], &self.weights);
        }
    }

    /// After a run to the last step: statistics, and what moves before the next token.
    pub fn end(&mut self, gpus: &mut [Gpu], env: &Env, log: Option<&PickLog>) -> Result<(), BackendError> {
        let t = env.tokens.len();
        for layer in std::mem::take(&mut self.late) {
            let Some(Layer { home: Some(home), .. }) = self.layers[layer] else { continue };
            self.read_picks(layer, t, &mut gpus[home], log.is_some())?;
            if let Some(log) = log {
                self.log(layer, log);
            }
        }
        let mut generated = 0;
        for token in 0..t {
            let prompt = env.phase(token) == Phase::Prompt;
            generated += u64::from(!prompt);
            for (layer, found) in self.layers.iter().enumerate() {
                let Some(Layer { op: Experts { used, .. }, .. }) = found else { continue };
                let ids = self.picked[layer].get(token * used..(token + 1) * used);
                let experts = ids.unwrap_or_default().iter().map(|&id| id as usize);
                match (prompt, ids) {
                    (true, _) => self.pager.feed(layer, experts),
                    (false, Some(_)) => self.pager.pick(layer, experts),
                    (false, None) => self.pager.hit_unseen(*used as u64),
                }
                self.pager.scores_mut().end_step();
            }
            self.pager.end_token(prompt);
            if !prompt {
                self.promote();
            }
        }
        self.token += generated;
        if generated > 0 && self.options.probe.churn {
            self.churn();
        }
        Ok(())
    }

    /// Sends for what should move after a generated token.
    fn promote(&mut self) {
        let waiting: usize = self.uploads.iter().map(|uploads| uploads.open).sum();
        let a_token = self.pager.grid().layers() * self.pager.grid().used;
        if waiting <= BACKLOG * a_token && !matches!(self.verdict, Some(Verdict::SwitchedOff { .. })) {
            let promotions = self.pager.decide(u64::MAX);
            self.send(promotions);
        }
    }

    /// The guard's last word, when it has one.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    /// Goes on where another left off: with its verdict, and with what it counted.
    pub fn resume(&mut self, report: &ExpertReport) {
        self.verdict = report.verdict;
        self.with_cache = !matches!(report.verdict, Some(Verdict::SwitchedOff { .. }));
        self.failed = report.failed;
        self.pager.count_on(report.counters);
        self.waves.counted = report.prompts;
        if let Some(before) = report.cache {
            (self.cache.grew, self.cache.shrank) = (before.grew, before.shrank);
        }
    }

    /// What was counted so far.
    pub fn report(&self) -> ExpertReport {
        let (filled, slots) = self.pager.filled();
        ExpertReport {
            slots,
            filled,
            pinned: self.pager.pinned(),
            experts: self.pager.grid().entries(),
            counters: self.pager.counters(),
            failed: self.failed,
            prompts: self.waves.counted,
            verdict: self.verdict,
            guarded: self.options.guard,
            cache: self.cache_report(),
            rival: None,
        }
    }

    /// Saves what was learned about the experts.
    fn save_heat(&mut self) {
        let Some((path, heat)) = &self.heat else { return };
        let (scores, grid) = (self.pager.scores(), self.pager.grid());
        let count = |layer, expert| scores.count(grid.entry(layer, expert));
        save(path, heat, count, scores.tokens(), self.options.notice);
    }
}

impl Drop for Hybrid {
    fn drop(&mut self) {
        self.save_heat();
    }
}

/// The mixture layers of a plan that have slots.
fn layers(plan: &Plan, slots: &SlotPlan) -> Vec<Option<Layer>> {
    let layer = |(mixture, place): (&Mixture, &Option<(usize, Option<usize>)>)| {
        let (step, home) = (*place)?;
        let op = mixture.experts;
        let widths = [op.x, op.out].map(|slot| plan.slot(slot).width);
        Some(Layer { step, home, op, router: mixture.router.weight, widths })
    };
    plan.mixtures.iter().zip(&slots.layers).map(layer).collect()
}
