//! A prompt's misses: some pass through the home GPU in waves, the others are computed on the CPU at the same time.
//!
//! Which of them pass is decided by layer, when the picks are known (`experts::waves`). A wave is packed, copied and computed
//! on the GPU, and the next one is packed meanwhile. Where all experts will pass, whatever is picked, the first wave
//! is brought while the layer's attention is computed. The pager hears of none of it: what is resident stays. With a RAM tier
//! only what lies in it passes; the CPU reads the rest from disk meanwhile.

use std::sync::Arc;

use super::{ExpertOptions, Hybrid, Layer, Passing, Prompts, SlotPlan};
use crate::backend::{Backend, BackendError, ELSEWHERE, Env};
use crate::cpu::Cpu;
use crate::experts::store::{Loan, SCORED_TOKENS};
use crate::experts::tier::Tier;
use crate::experts::waves::{Expert, Settled, WaveRates, share, share_evenly, touched};
use crate::experts::{Grid, Place};
use crate::gpu::Gpu;
use crate::plan::{Experts, WeightId};
use crate::weights::Weights;

/// Part of a layer's experts that a batch must pick before some are brought unasked: what nobody picks is brought in vain.
const SURE: f64 = 0.9;

/// What brings experts to the GPUs for the time of one layer.
pub(super) struct Waves {
    weights: Weights,
    tier: Option<Arc<Tier>>,
    rates: Vec<Option<WaveRates>>, // by GPU
    forced: Option<Passing>,
    turns: Vec<usize>, // by GPU: waves so far
    ahead: Option<Ahead>,
    /// Uploads so far, and which of them fail.
    attempts: usize,
    fail_every: Option<usize>,
    pub counted: Prompts,
}

/// A wave that was brought before the picks were known.
struct Ahead {
    half: usize,
    experts: Vec<usize>,
}

impl Waves {
    pub(super) fn new(weights: &Weights, slots: &SlotPlan, tier: Option<&Arc<Tier>>, options: &ExpertOptions) -> Waves {
        Waves {
            weights: weights.clone(),
            tier: tier.cloned(),
            rates: slots.waves.clone(),
            forced: options.probe.passing,
            turns: vec![0; slots.on_gpu.len()],
            ahead: None,
            attempts: 0,
            fail_every: options.probe.fail_every,
            counted: Prompts::default(),
        }
    }

    /// Brings experts of a layer to the half whose turn it is, and returns that and those that are there. With a RAM tier an
    /// expert may have lost its slot since it was chosen: it is left out.
    fn upload(
        &mut self,
        layer: Layer,
        (home, gpu): (usize, &mut Gpu),
        experts: &[usize],
        bytes: u64,
    ) -> Result<(usize, Vec<usize>), String> {
        let half = self.turns[home] % 2;
        let in_tier = self.tier.as_ref().and_then(|tier| Some((tier, tier.place(layer.op.gate)?.0)));
        let lend = |&expert: &usize| in_tier.and_then(|(tier, at)| Some((expert, tier.store.lend(at, expert)?)));
        let loans: Vec<(usize, Loan)> = experts.iter().filter_map(lend).collect();
        let (experts, parts): (Vec<usize>, Vec<[&[u8]; 3]>) = match in_tier {
            Some(_) => loans.iter().map(|(expert, loan)| (*expert, loan.parts())).unzip(),
            None => {
                let parts = |expert: usize| layer.tensors().map(|id| self.weights.expert(id, expert));
                experts.iter().map(|&expert| (expert, parts(expert))).unzip()
            }
        };
        if experts.is_empty() {
            return Ok((half, experts));
        }
        gpu.upload_wave(layer.step, half, &parts).map_err(|e| e.to_string())?;
        drop(loans);
        self.turns[home] += 1;
        self.counted.streamed += experts.len() as u64;
        self.counted.streamed_bytes += experts.len() as u64 * bytes;
        Ok((half, experts))
    }

    /// What is not in RAM is read from disk at this rate, in bytes a second.
    fn reads_at(&mut self, rate: f64) {
        self.rates.iter_mut().flatten().for_each(|rates| rates.disk = rate);
    }

    /// Whether the next upload is one that fails.
    fn fails(&mut self) -> bool {
        self.attempts += 1;
        self.fail_every.is_some_and(|n| self.attempts.is_multiple_of(n))
    }

    /// Whether an expert lies where it can be copied from.
    fn is_at_hand(&self, tensors: [WeightId; 3], expert: usize) -> bool {
        let place = |tier: &Arc<Tier>| Some(tier.store.is_ready(tier.place(tensors[0])?.0, expert));
        self.tier.as_ref().is_none_or(|tier| place(tier).unwrap_or(true))
    }

    fn expert(&self, grid: &Grid, layer: usize, tensors: [WeightId; 3]) -> Expert {
        let weights = tensors.map(|id| self.weights.plan().weight(id)).map(|weight| (weight.rows * weight.k) as u64);
        Expert { bytes: grid.bytes(layer), weights: weights.iter().sum() }
    }
}

impl Hybrid {
    /// What is not in RAM is read from disk at this rate, in bytes a second.
    pub(super) fn reads_at(&mut self, rate: f64) {
        self.waves.reads_at(rate);
    }

    /// While the home GPU computes what comes before a layer's experts: brings a first wave of those that will surely pass.
    pub(super) fn upload_ahead(&mut self, layer: usize, t: usize, (home, gpu): (usize, &mut Gpu)) {
        self.waves.ahead = None;
        let Some(info) = self.layers[layer] else { return };
        let (grid, wave) = (self.pager.grid(), gpu.wave_slots(info.step));
        let sure = match (self.waves.forced, &self.waves.rates[home]) {
            (Some(_), _) => true,
            (None, Some(rates)) => {
                let (expert, [experts, used]) =
                    (self.waves.expert(grid, layer, info.tensors()), [grid.experts, info.op.used]);
                touched(experts as f64, used as f64, t as f64) >= SURE * experts as f64
                    && share_evenly(rates, expert, [experts, used], t).streamed.len() >= wave
            }
            (None, None) => false,
        };
        if !sure {
            return;
        }
        let scores = self.pager.scores();
        let score = |expert: usize| scores.crf(grid.entry(layer, expert));
        let may_pass = |&e: &usize| self.is_missing(layer, e) && self.waves.is_at_hand(info.tensors(), e);
        let mut experts: Vec<usize> = (0..grid.experts).filter(may_pass).collect();
        experts.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        experts.truncate(wave);
        let bytes = grid.bytes(layer);
        experts.retain(|_| !self.waves.fails());
        if experts.is_empty() {
            return;
        }
        match self.waves.upload(info, (home, gpu), &experts, bytes) {
            Ok((_, experts)) if experts.is_empty() => {}
            Ok((half, experts)) => self.waves.ahead = Some(Ahead { half, experts }),
            // They are asked for again when the picks are known.
            Err(why) => self.could_not_pass(&experts, &why),
        }
    }

    /// Of a layer whose picks were read: the missing experts that pass through its home GPU, in order. What was brought ahead
    /// passes in any case.
    pub(super) fn passing(&self, layer: usize) -> Vec<usize> {
        let Some(info @ Layer { home: Some(home), op: Experts { used, .. }, .. }) = self.layers[layer] else {
            return vec![];
        };
        let tensors = info.tensors();
        let grid = self.pager.grid();
        let mut tokens = vec![0_u32; grid.experts];
        self.picked[layer].iter().for_each(|&id| tokens[id as usize] += 1);
        let ahead = self.waves.ahead.as_ref().map_or(&[][..], |ahead| &ahead.experts);
        let mut passing: Vec<usize> = ahead.iter().copied().filter(|&expert| tokens[expert] > 0).collect();
        let missing = (0..grid.experts)
            .filter(|expert| tokens[*expert] > 0 && self.is_missing(layer, *expert) && !ahead.contains(expert))
            .map(|expert| (expert, tokens[expert]));
        let (mut missing, on_disk) =
            missing.partition::<Vec<_>, _>(|(expert, _)| self.waves.is_at_hand(tensors, *expert));
        let more = match (self.waves.forced, &self.waves.rates[home]) {
            (Some(Passing::All), _) => missing.iter().map(|(expert, _)| *expert).collect(),
            (Some(Passing::Half), _) => {
                missing.sort_by_key(|(_, tokens)| std::cmp::Reverse(*tokens));
                missing.iter().step_by(2).map(|(expert, _)| *expert).collect()
            }
            (None, Some(rates)) => {
                let on_gpu = (0..grid.experts).filter(|e| !self.is_missing(layer, *e) || ahead.contains(e));
                let resident = on_gpu.map(|expert| u64::from(tokens[expert])).sum();
                let expert = self.waves.expert(grid, layer, tensors);
                let read = |(_, tokens): &(usize, u32)| rates.read(expert.work(f64::from(*tokens)));
                let settled = Settled { resident, cpu_seconds: on_disk.iter().map(read).sum() };
                share(rates, expert, &missing, settled).streamed
            }
            (None, None) => vec![],
        };
        passing.extend(more);
        if let Some(tier) = &self.waves.tier
            && let Some((at, _)) = tier.place(tensors[0])
        {
            // The CPU tells the tier of what it computes; what passes is as worth keeping.
            let rows = self.picked[layer].chunks_exact(used).rev().take(SCORED_TOKENS);
            tier.store.picked(at, rows.flatten().map(|id| *id as usize).filter(|id| passing.contains(id)));
        }
        passing
    }

    /// Sends these experts of a layer through its home GPU, which adds their share, and returns those that did not get there.
    /// `grouped`: the layer's hits were submitted before.
    pub(super) fn stream(
        &mut self,
        layer: usize,
        experts: &[usize],
        mut grouped: bool,
        (home, gpu): (usize, &mut Gpu),
    ) -> Result<Vec<usize>, BackendError> {
        let Some(info) = self.layers[layer] else { return Ok(experts.to_vec()) };
        let bytes = self.pager.grid().bytes(layer);
        let mut left = experts;
        if let Some(Ahead { half, experts: ahead }) = self.waves.ahead.take() {
            // Those that were picked are the first of all.
            left = &experts[experts.iter().take_while(|expert| ahead.contains(expert)).count()..];
            if left.len() < experts.len() {
                gpu.submit_wave(info.step, half, &ahead, grouped)?;
                grouped = true;
            }
        }
        let mut failed = vec![];
        for wave in left.chunks(gpu.wave_slots(info.step).max(1)) {
            let (faulty, wave): (Vec<usize>, Vec<usize>) = wave.iter().partition(|_| self.waves.fails());
            if !faulty.is_empty() {
                self.could_not_pass(&faulty, "a fault was injected");
                failed.extend(faulty);
            }
            if wave.is_empty() {
                continue;
            }
            match self.waves.upload(info, (home, gpu), &wave, bytes) {
                Ok((half, there)) => {
                    failed.extend(wave.iter().copied().filter(|expert| !there.contains(expert)));
                    if !there.is_empty() {
                        gpu.submit_wave(info.step, half, &there, grouped)?;
                        grouped = true;
                    }
                }
                Err(why) => {
                    self.could_not_pass(&wave, &why);
                    failed.extend(wave);
                }
            }
        }
        Ok(failed)
    }

    /// Adds the share of experts that could not pass to `sum`, on the CPU.
    pub(super) fn run_failed(
        &mut self,
        layer: usize,
        failed: &[usize],
        cpu: &mut Cpu,
        env: &Env,
    ) -> Result<(), BackendError> {
        let Some(Layer { step, op, .. }) = self.layers[layer] else { return Ok(()) };
        let Experts { x, ids, weights, out, .. } = op;
        self.masked.clear();
        self.masked.extend_from_slice(&self.picked[layer]);
        for id in &mut self.masked {
            if failed.contains(&(*id as usize)) {
                self.waves.counted.cpu_picks += 1;
            } else {
                *id = ELSEWHERE;
            }
        }
        cpu.write(x, &self.x)?;
        cpu.write_u32(ids, &self.masked)?;
        cpu.write(weights, &self.weights)?;
        cpu.write(out, &self.sum)?;
        cpu.run(step..step + 1, env)?;
        cpu.read(out, &mut self.sum)
    }

    fn is_missing(&self, layer: usize, expert: usize) -> bool {
        !matches!(self.pager.place(layer, expert), Place::Resident { .. })
    }

    fn could_not_pass(&mut self, experts: &[usize], why: &str) {
        if self.waves.counted.failed == 0 {
            (self.options.notice)(&format!("an expert could not pass through a GPU and is computed on the CPU: {why}"));
        }
        self.waves.counted.failed += experts.len() as u64;
    }
}
