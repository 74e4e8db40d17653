//! Waves: experts that pass through a device's memory for one batch of a prompt.
//!
//! A pool may have room for two waves beside its slots. While the GPU computes with what lies in one half, the host packs the
//! next wave, with all its threads, into staging memory and has it copied to the other half. The queue runs submissions
//! in order: a half is overwritten after the last wave in it was computed, so nothing is waited for but staging memory.
//! A wave adds to a layer's output as a resident expert does; slots and their maps know nothing of it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use rayon::prelude::*;

use super::Gpu;
use super::device::Device;
use super::error::GpuError;
use super::expert_slots::{NO_SLOT, Part, Pool, copy_to_slot};
use super::ops::{ExpertWeights, Experts, Setup};
use super::pipelines::Recorder;
use crate::backend::BackendError;
use crate::plan::Op;

/// Bytes of a staging buffer, or of one expert where that is more.
const STAGE_BYTES: u64 = 32 << 20;
/// One is packed, one is copied, one waits for its turn.
const STAGES: usize = 3;

/// What a device needs for waves.
pub(super) struct Waves {
    /// The steps of all pools that have room for waves, once for either half.
    steps: HashMap<usize, [Experts; 2]>,
    uploader: WaveUploader,
}

impl Waves {
    /// Host memory that waves pass through.
    pub(super) fn staging_bytes(&self) -> u64 {
        self.uploader.stages.iter().map(|stage| stage.buffer.size()).sum()
    }
}

/// `None` when no pool has room for waves.
pub(super) fn prepare(setup: &mut Setup, pools: &Arc<[Pool]>) -> Result<Option<Waves>, GpuError> {
    let plan = setup.plan;
    let mut steps = HashMap::new();
    for (at, step) in plan.steps.iter().enumerate() {
        let pool = pools.iter().find(|pool| pool.map_at(at).is_some());
        if let (Op::Experts(op), Some(pool)) = (&step.op, pool)
            && let [ping, pong] = &pool.halves[..]
        {
            let mut of = |half| Experts::new(setup, op, ExpertWeights::passing(pool, half));
            steps.insert(at, [of(ping)?, of(pong)?]);
        }
    }
    let waves = || Ok(Waves { uploader: WaveUploader::new(setup.device, pools)?, steps });
    if pools.iter().all(|pool| pool.halves.is_empty()) { Ok(None) } else { waves().map(Some) }
}

/// Brings experts to the halves.
struct WaveUploader {
    device: Device,
    stages: Vec<Stage>,
    next: usize,
}

/// A staging buffer; mapped when its last copy is done.
struct Stage {
    buffer: wgpu::Buffer,
    copied: Option<(wgpu::SubmissionIndex, Receiver<Result<(), wgpu::BufferAsyncError>>)>,
}

/// Rows of one expert's matrix, and where they begin in the staging buffer.
struct Piece<'a> {
    part: &'a Part<'a>,
    rows: Range<usize>,
    from: usize,
}

impl WaveUploader {
    fn new(device: &Device, pools: &[Pool]) -> Result<WaveUploader, GpuError> {
        let bytes = pools.iter().filter(|pool| !pool.halves.is_empty()).map(Pool::slot_bytes).max().unwrap_or(0);
        let stages = (0..STAGES)
            .map(|_| Ok(Stage { buffer: device.staging_buffer(bytes.max(STAGE_BYTES))?, copied: None }))
            .collect::<Result<_, GpuError>>()?;
        Ok(WaveUploader { device: device.clone(), stages, next: 0 })
    }

    /// Copies experts to the first slots of a half. Returns when their bytes are in staging memory.
    fn upload(&mut self, pool: &Pool, half: usize, experts: &[[&[u8]; 3]]) -> Result<(), GpuError> {
        let slots = pool.halves[half].matrices.slots();
        assert!(experts.len() <= slots, "a wave of {slots} experts");
        let at_once = ((self.stages[0].buffer.size() / pool.slot_bytes()) as usize).max(1);
        for (i, experts) in experts.chunks(at_once).enumerate() {
            self.upload_stage(pool, half, i * at_once, experts)?;
        }
        Ok(())
    }

    /// As many experts as a staging buffer holds, to the slots from `first` on.
    fn upload_stage(&mut self, pool: &Pool, half: usize, first: usize, experts: &[[&[u8]; 3]]) -> Result<(), GpuError> {
        let lost = |e: &dyn std::fmt::Display| self.device.lost(e.to_string());
        let at = self.next % STAGES;
        self.next += 1;
        if let Some((copied, mapped)) = self.stages[at].copied.take() {
            self.device.wait_for(copied)?;
            mapped.recv().map_err(|e| lost(&e))?.map_err(|e| lost(&e))?;
        }
        let buffer = &self.stages[at].buffer;
        let half = &pool.halves[half];
        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let parts: Vec<[Part; 2]> = experts.iter().map(|bytes| pool.parts(*bytes)).collect();
        let mut pieces = vec![];
        let mut from = 0;
        for (slot, parts) in (first..).zip(&parts) {
            for (part, matrix) in parts.iter().zip(half.matrices.each()) {
                pieces.extend(part.pieces().map(|rows| Piece { part, rows, from }));
                copy_to_slot(&mut encoder, (buffer, from), matrix, slot);
                from += part.bytes();
            }
        }
        pieces.into_par_iter().try_for_each_init(Vec::new, |packed, piece| {
            let at = (piece.from + piece.part.pack(piece.rows, packed)) as u64;
            let mut view = buffer.get_mapped_range_mut(at..at + packed.len() as u64).map_err(|e| lost(&e))?;
            view.copy_from_slice(packed);
            Ok::<_, GpuError>(())
        })?;
        buffer.unmap();
        let copied = self.device.queue().submit([encoder.finish()]);
        let (send, mapped) = channel();
        buffer.map_async(wgpu::MapMode::Write, .., move |result| {
            // Nobody listens when the uploader is gone.
            let _ = send.send(result);
        });
        self.stages[at].copied = Some((copied, mapped));
        self.device.check()
    }
}

fn no_room(step: usize) -> GpuError {
    let why = "it has no room for waves".to_owned();
    GpuError::Unsupported { what: format!("experts of step {step} that pass"), why }
}

impl Gpu {
    /// Experts of a wave of this step; 0 when it has no room for any.
    pub fn wave_slots(&self, step: usize) -> usize {
        let pool = self.pools.iter().find(|pool| pool.map_at(step).is_some());
        pool.and_then(|pool| pool.halves.first()).map_or(0, |half| half.matrices.slots())
    }

    /// Copies experts of a step, each its gate, up and down matrices as in the file, to the first slots of a half, after what
    /// was submitted so far. Returns when their bytes are in staging memory.
    pub fn upload_wave(&mut self, step: usize, half: usize, experts: &[[&[u8]; 3]]) -> Result<(), GpuError> {
        let pool = self.pools.iter().find(|pool| pool.map_at(step).is_some());
        let (Some(pool), Some(waves)) = (pool, &mut self.waves) else { return Err(no_room(step)) };
        waves.uploader.upload(pool, half, experts)?;
        self.counters.streamed += experts.len() as u64;
        self.counters.streamed_bytes += experts.len() as u64 * pool.slot_bytes();
        Ok(())
    }

    /// Adds the share of the experts that lie in the first slots of a half, in this order, without waiting. `grouped`: the
    /// last submission with experts here was for the same picks.
    pub fn submit_wave(
        &mut self,
        step: usize,
        half: usize,
        experts: &[usize],
        grouped: bool,
    ) -> Result<(), BackendError> {
        let pool = self.pools.iter().find(|pool| pool.map_at(step).is_some());
        let halves = self.waves.as_ref().and_then(|waves| waves.steps.get(&step));
        let (Some(pool), Some(halves)) = (pool, halves) else { return Err(no_room(step).into()) };
        let mut map = vec![NO_SLOT; pool.experts];
        experts.iter().zip(0..).for_each(|(&expert, slot)| map[expert] = slot);
        self.device.queue().write_buffer(&pool.halves[half].map, 0, bytemuck::cast_slice(&map));
        self.counters.written_bytes += map.len() as u64 * 4;

        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut recorder = Recorder::new(&mut encoder, &mut self.counters, self.timer.as_mut());
        halves[half].record_wave(&mut recorder, self.pad.tokens(), grouped);
        drop(recorder);
        if let Some(timer) = &mut self.timer {
            timer.resolve(&mut encoder);
        }
        let submission = self.device.queue().submit([encoder.finish()]);
        self.counters.submits += 1;
        if let Some(timer) = &mut self.timer {
            timer.collect(&self.device, submission)?;
        }
        Ok(self.device.check()?)
    }
}
