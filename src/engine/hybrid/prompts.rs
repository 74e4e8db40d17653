//! A prompt's misses: some pass through the home GPU in waves, the others are computed on the CPU at the same time.
//!
//! Which of them pass is decided by layer, when the picks are known (`experts::waves`). A wave is packed, copied and computed
//! on the GPU, and the next one is packed meanwhile. Where all experts will pass, whatever is picked, the first wave
//! is brought while the layer's attention is computed. The pager hears of none of it: what is resident stays.

use super::{ExpertOptions, Hybrid, Layer, Passing, Prompts, SlotPlan};
use crate::backend::{Backend, BackendError, ELSEWHERE, Env};
use crate::cpu::Cpu;
use crate::experts::waves::{Expert, WaveRates, share, share_evenly, touched};
use crate::experts::{Grid, Place};
use crate::gpu::Gpu;
use crate::plan::WeightId;
use crate::weights::Weights;

/// Part of a layer's experts that a batch must pick before some are brought unasked: what nobody picks is brought in vain.
const SURE: f64 = 0.9;

/// What brings experts to the GPUs for the time of one layer.
pub(super) struct Waves {
    weights: Weights,
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
    pub(super) fn new(weights: &Weights, slots: &SlotPlan, options: &ExpertOptions) -> Waves {
        Waves {
            weights: weights.clone(),
            rates: slots.waves.clone(),
            forced: options.probe.passing,
            turns: vec![0; slots.on_gpu.len()],
            ahead: None,
            attempts: 0,
            fail_every: options.probe.fail_every,
            counted: Prompts::default(),
        }
    }

    /// Brings experts of a layer to the half whose turn it is, and returns that; an error when they are not there.
    fn upload(
        &mut self,
        layer: Layer,
        (home, gpu): (usize, &mut Gpu),
        experts: &[usize],
        bytes: u64,
    ) -> Result<usize, String> {
        let half = self.turns[home] % 2;
        let parts = |expert: usize| layer.tensors.map(|id| self.weights.expert(id, expert));
        let parts: Vec<[&[u8]; 3]> = experts.iter().map(|&expert| parts(expert)).collect();
        gpu.upload_wave(layer.step, half, &parts).map_err(|e| e.to_string())?;
        self.turns[home] += 1;
        self.counted.streamed += experts.len() as u64;
        self.counted.streamed_bytes += experts.len() as u64 * bytes;
        Ok(half)
    }

    /// Whether the next upload is one that fails.
    fn fails(&mut self) -> bool {
        self.attempts += 1;
        self.fail_every.is_some_and(|n| self.attempts.is_multiple_of(n))
    }

    fn expert(&self, grid: &Grid, layer: usize, tensors: [WeightId; 3]) -> Expert {
        let weights = tensors.map(|id| self.weights.plan().weight(id)).map(|weight| (weight.rows * weight.k) as u64);
        Expert { bytes: grid.bytes(layer), weights: weights.iter().sum() }
    }
}

impl Hybrid {
    /// While the home GPU computes what comes before a layer's experts: brings a first wave of those that will surely pass.
    pub(super) fn upload_ahead(&mut self, layer: usize, t: usize, (home, gpu): (usize, &mut Gpu)) {
        self.waves.ahead = None;
        let Some(info) = self.layers[layer] else { return };
        let (grid, wave) = (self.pager.grid(), gpu.wave_slots(info.step));
        let sure = match (self.waves.forced, &self.waves.rates[home]) {
            (Some(_), _) => true,
            (None, Some(rates)) => {
                let (expert, [experts, used]) =
                    (self.waves.expert(grid, layer, info.tensors), [grid.experts, info.used]);
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
        let mut experts: Vec<usize> = (0..grid.experts).filter(|&expert| self.is_missing(layer, expert)).collect();
        experts.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        experts.truncate(wave);
        let bytes = grid.bytes(layer);
        experts.retain(|_| !self.waves.fails());
        if experts.is_empty() {
            return;
        }
        match self.waves.upload(info, (home, gpu), &experts, bytes) {
            Ok(half) => self.waves.ahead = Some(Ahead { half, experts }),
            // They are asked for again when the picks are known.
            Err(why) => self.could_not_pass(&experts, &why),
        }
    }

    /// Of a layer whose picks were read: the missing experts that pass through its home GPU, in order. What was brought ahead
    /// passes in any case.
    pub(super) fn passing(&self, layer: usize) -> Vec<usize> {
        let Some(Layer { tensors, home: Some(home), .. }) = self.layers[layer] else { return vec![] };
        let grid = self.pager.grid();
        let mut tokens = vec![0_u32; grid.experts];
        self.picked[layer].iter().for_each(|&id| tokens[id as usize] += 1);
        let ahead = self.waves.ahead.as_ref().map_or(&[][..], |ahead| &ahead.experts);
        let mut passing: Vec<usize> = ahead.iter().copied().filter(|&expert| tokens[expert] > 0).collect();
        let mut missing: Vec<(usize, u32)> = (0..grid.experts)
            .filter(|expert| tokens[*expert] > 0 && self.is_missing(layer, *expert) && !ahead.contains(expert))
            .map(|expert| (expert, tokens[expert]))
            .collect();
        let more = match (self.waves.forced, &self.waves.rates[home]) {
            (Some(Passing::All), _) => missing.iter().map(|(expert, _)| *expert).collect(),
            (Some(Passing::Half), _) => {
                missing.sort_by_key(|(_, tokens)| std::cmp::Reverse(*tokens));
                missing.iter().step_by(2).map(|(expert, _)| *expert).collect()
            }
            (None, Some(rates)) => {
                let on_gpu = (0..grid.experts).filter(|e| !self.is_missing(layer, *e) || ahead.contains(e));
                let resident = on_gpu.map(|expert| u64::from(tokens[expert])).sum();
                share(rates, self.waves.expert(grid, layer, tensors), &missing, resident).streamed
            }
            (None, None) => vec![],
        };
        passing.extend(more);
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
                Ok(half) => {
                    gpu.submit_wave(info.step, half, &wave, grouped)?;
                    grouped = true;
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
        let Some(Layer { step, x, picks, out, used, .. }) = self.layers[layer] else { return Ok(()) };
        self.masked.clear();
        self.masked.extend_from_slice(&self.rows);
        for id in self.masked.chunks_exact_mut(2 * used).flat_map(|row| &mut row[..used]) {
            if failed.contains(&(id.to_bits() as usize)) {
                self.waves.counted.cpu_picks += 1;
            } else {
                *id = f32::from_bits(ELSEWHERE);
            }
        }
        cpu.write(x, &self.x)?;
        cpu.write(picks, &self.masked)?;
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
