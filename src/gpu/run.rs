//! A run: one environment buffer written, one command buffer recorded, the logits read back.
//!
//! Everything of a run lies in one pass; wgpu puts barriers where a dispatch reads what an earlier one wrote. When the
//! run ends in logits, their copy to mapped memory is part of the same submission: a token is one submit and one
//! read-back.

use std::ops::Range;
use std::sync::mpsc::{Receiver, channel};

use super::Gpu;
use super::device::GpuError;
use super::ops::RunShape;
use super::pipelines::Recorder;
use super::slots::View;
use crate::backend::{BackendError, Env};
use crate::plan::{PAGE_TOKENS, Slot};

/// Words of a token in the environment buffer.
const TOKEN_WORDS: usize = 4;

/// What a run prepared on the host; kept so that nothing is allocated per token.
#[derive(Default)]
pub(super) struct Scratchpad {
    env: Vec<u32>,
    rows_at: u32,
    tiles: Vec<(u32, usize)>,
    tables: Vec<u32>, // per sequence, where its page table starts
    angles: Vec<[f32; 2]>,
    angles_at: Vec<u32>, // per rope
    pages: usize,
    run_tokens: usize,
}

/// Logits on their way to the host.
pub(super) struct Pending {
    slot: Slot,
    rows: usize,
    submission: wgpu::SubmissionIndex,
    mapped: Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Gpu {
    /// Runs those of the steps that this side has.
    pub(super) fn run_steps(&mut self, steps: Range<usize>, env: &Env) -> Result<(), BackendError> {
        assert!(env.tokens.len() <= self.batch && env.rows.len() <= self.batch, "the engine cuts batches to size");
        if let Some(token) = env.tokens.iter().find(|token| token.id as usize >= self.plan.vocab) {
            return Err(BackendError::UnknownToken { id: token.id, vocab: self.plan.vocab });
        }
        let here = |step: &usize| self.steps[*step].is_some();
        if env.tokens.is_empty() || !steps.clone().any(|step| here(&step)) {
            return Ok(());
        }
        self.device.check()?;
        let tail = steps.clone().find(|step| here(step) && is_taken(&self.plan, *step)).unwrap_or(steps.end);
        let logits = self.plan.logits;
        let ends_in_logits =
            (tail..steps.end).rfind(here).is_some_and(|step| self.plan.steps[step].op.writes().contains(&logits));
        let most = self.slots.taken_rows;
        if env.rows.len() > most && !(ends_in_logits && tail > steps.start) {
            let message = format!("the logits of {} rows do not fit at once; ask for {most}", env.rows.len());
            return Err(BackendError::Device(message));
        }
        self.write_env(env)?;
        self.finish_pending()?;
        self.reserve_logits(if ends_in_logits { env.rows.len() } else { 0 })?;

        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut first = 0;
        loop {
            let rows = (env.rows.len() - first).min(most);
            let shape = RunShape {
                tokens: env.tokens.len(),
                rows,
                rows_at: self.pad.rows_at + first as u32,
                pages: self.pad.pages,
                run_tokens: self.pad.run_tokens,
                tiles: &self.pad.tiles,
                angles: &self.pad.angles_at,
            };
            let pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime();
            let mut recorder = Recorder { pass, counters: &mut self.counters };
            // The body goes with the first rows.
            let start = if first == 0 { steps.start } else { tail };
            let end = if rows == 0 { tail } else { steps.end };
            for step in start..end {
                if let Some(prepared) = &self.steps[step] {
                    prepared.record(&mut recorder, &shape, is_taken(&self.plan, step));
                }
            }
            drop(recorder);
            self.counters.passes += 1;
            if let (Some(host), true) = (&self.logits, ends_in_logits && rows > 0) {
                let (view, buffer) = self.slots.of(logits);
                let row_bytes = (view.stride * 4) as u64;
                encoder.copy_buffer_to_buffer(buffer, 0, host, row_bytes * first as u64, row_bytes * rows as u64);
            }
            first += rows;
            if first >= env.rows.len() {
                break;
            }
        }
        let mapped = if ends_in_logits && !env.rows.is_empty() { Some(self.map_logits(&encoder)) } else { None };
        let submission = self.device.queue().submit([encoder.finish()]);
        self.counters.submits += 1;
        if let Some(mapped) = mapped {
            self.pending = Some(Pending { slot: self.plan.logits, rows: env.rows.len(), submission, mapped });
        }
        self.device.check()?;
        Ok(())
    }

    /// Makes the mapped buffer large enough for these rows of logits; it only grows.
    fn reserve_logits(&mut self, rows: usize) -> Result<(), GpuError> {
        let Some((view, _)) = self.slots.get(self.plan.logits).filter(|_| rows > 0) else { return Ok(()) };
        let needed = (view.stride * rows * 4) as u64;
        if self.logits.as_ref().is_none_or(|buffer| buffer.size() < needed) {
            if let Some(old) = self.logits.take() {
                self.device.forget(&old);
            }
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            self.logits = Some(self.device.buffer("logits on the host", needed, usage, false)?);
        }
        Ok(())
    }

    fn map_logits(&mut self, encoder: &wgpu::CommandEncoder) -> Receiver<Result<(), wgpu::BufferAsyncError>> {
        let (send, mapped) = channel();
        if let Some(host) = &self.logits {
            encoder.map_buffer_on_submit(host, wgpu::MapMode::Read, .., move |result| {
                // Nobody listens when the logits are not read.
                let _ = send.send(result);
            });
        }
        mapped
    }

    /// Logits that nobody read are given up: their buffer is wanted again.
    fn finish_pending(&mut self) -> Result<(), GpuError> {
        if let Some(pending) = self.pending.take() {
            self.device.wait_for(pending.submission)?;
            if let Some(host) = &self.logits {
                host.unmap();
            }
        }
        Ok(())
    }

    /// Copies the first rows of a slot to the host.
    pub(super) fn read_slot(&mut self, slot: Slot, out: &mut [f32]) -> Result<(), GpuError> {
        let Some((view, buffer)) = self.slots.get(slot) else { return Err(self.not_here(slot)) };
        let rows = out.len() / view.width.max(1);
        self.counters.read_backs += 1;
        self.counters.read_back_bytes += (rows * view.stride * 4) as u64;
        let pending = self.pending.take_if(|pending| pending.slot == slot && pending.rows >= rows);
        let (host, pending) = match (pending, &self.logits) {
            (Some(pending), Some(host)) => (host.clone(), pending),
            _ => {
                let bytes = (rows * view.stride * 4) as u64;
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                let host = self.device.buffer("a slot on the host", bytes, usage, false)?;
                self.device.forget(&host);
                let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                encoder.copy_buffer_to_buffer(buffer, 0, &host, 0, bytes);
                let (send, mapped) = channel();
                encoder.map_buffer_on_submit(&host, wgpu::MapMode::Read, .., move |result| {
                    // The receiver below outlives the submission.
                    let _ = send.send(result);
                });
                let submission = self.device.queue().submit([encoder.finish()]);
                self.counters.submits += 1;
                (host, Pending { slot, rows, submission, mapped })
            }
        };
        self.device.wait_for(pending.submission)?;
        let lost = |e: &dyn std::fmt::Display| self.device.lost(e.to_string());
        pending.mapped.recv().map_err(|e| lost(&e))?.map_err(|e| lost(&e))?;
        let bytes = host.get_mapped_range(..).map_err(|e| lost(&e))?;
        copy_rows(bytemuck::cast_slice(&bytes), view, out);
        drop(bytes);
        host.unmap();
        Ok(())
    }

    /// Overwrites the first rows of a slot.
    pub(super) fn write_slot(&mut self, slot: Slot, rows: &[f32]) -> Result<(), GpuError> {
        let Some((view, buffer)) = self.slots.get(slot) else { return Err(self.not_here(slot)) };
        if view.stride == view.width {
            self.device.queue().write_buffer(buffer, 0, bytemuck::cast_slice(rows));
        } else {
            for (i, row) in rows.chunks_exact(view.width).enumerate() {
                let at = ((i * view.stride + view.at) * 4) as u64;
                self.device.queue().write_buffer(buffer, at, bytemuck::cast_slice(row));
            }
        }
        self.counters.env_bytes += (rows.len() * 4) as u64;
        self.device.check()
    }

    fn not_here(&self, slot: Slot) -> GpuError {
        let why = "no step of this GPU touches it".to_owned();
        GpuError::Unsupported { what: format!("slot {}", slot.0), why }
    }

    /// Writes what changes between runs, once: see shaders/lib/env.wgsl.
    fn write_env(&mut self, env: &Env) -> Result<(), GpuError> {
        let pad = &mut self.pad;
        pad.env.clear();
        pad.env.resize(env.tokens.len() * TOKEN_WORDS, 0);
        pad.rows_at = pad.env.len() as u32;
        pad.env.extend_from_slice(env.rows);
        self.tile_sets.fill(env.tokens, &mut pad.env, &mut pad.tiles);
        pad.tables.clear();
        pad.tables.resize(env.pages.len(), u32::MAX);
        pad.pages = 0;
        (pad.run_tokens, _) = env.tokens.iter().fold((0, (u32::MAX, 0)), |(most, (seq, n)), token| {
            let n = if token.seq == seq { n + 1 } else { 1 };
            (most.max(n), (token.seq, n))
        });
        for (i, token) in env.tokens.iter().enumerate().rev() {
            // From the last token of a sequence back: it sees the most pages.
            let seq = token.seq as usize;
            if pad.tables[seq] == u32::MAX {
                let pages = token.pos as usize / PAGE_TOKENS + 1;
                pad.tables[seq] = pad.env.len() as u32;
                pad.env.extend_from_slice(&env.pages[seq][..pages]);
                pad.pages = pad.pages.max(pages);
            }
            let at = i * TOKEN_WORDS;
            pad.env[at..at + TOKEN_WORDS].copy_from_slice(&[token.id, token.pos, pad.tables[seq], 0]);
        }
        if (pad.env.len() * 4) as u64 > self.env.size() {
            return Err(GpuError::TooLarge {
                adapter: self.device.report().name.clone(),
                what: "the page tables of all sequences of one run".to_owned(),
                bytes: (pad.env.len() * 4) as u64,
                limit: self.env.size(),
                advice: "run fewer sequences at once",
            });
        }
        pad.angles.clear();
        pad.angles_at.clear();
        for (rope, used) in self.plan.ropes.iter().zip(&self.ropes_used) {
            pad.angles_at.push(pad.angles.len() as u32);
            for token in env.tokens.iter().filter(|_| *used) {
                for f in &rope.inv_freq {
                    // As the CPU does it: the product in f32, its sine in f64.
                    let (sin, cos) = f64::from(token.pos as f32 * f).sin_cos();
                    pad.angles.push([cos as f32 * rope.magnitude, sin as f32 * rope.magnitude]);
                }
            }
        }
        let queue = self.device.queue();
        queue.write_buffer(&self.env, 0, bytemuck::cast_slice(&pad.env));
        if !pad.angles.is_empty() {
            queue.write_buffer(&self.angles, 0, bytemuck::cast_slice(&pad.angles));
        }
        self.counters.env_bytes += (pad.env.len() * 4 + pad.angles.len() * 8) as u64;
        Ok(())
    }

    /// Copies a page of every cache here.
    pub(super) fn copy_cache_page(&mut self, from: u32, to: u32) -> Result<(), GpuError> {
        if from == to {
            return Ok(());
        }
        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for kv in self.kv.iter().flatten() {
            for (buffer, bytes) in [(&kv.keys, kv.key_page_bytes), (&kv.values, kv.value_page_bytes)] {
                // A buffer can not be copied to itself: each page goes through scratch memory.
                encoder.copy_buffer_to_buffer(buffer, u64::from(from) * bytes, &self.page, 0, bytes);
                encoder.copy_buffer_to_buffer(&self.page, 0, buffer, u64::from(to) * bytes, bytes);
            }
        }
        self.device.queue().submit([encoder.finish()]);
        self.counters.submits += 1;
        self.device.check()
    }
}

/// Whether a step runs on the wanted rows only.
fn is_taken(plan: &crate::plan::Plan, step: usize) -> bool {
    plan.steps[step].op.writes().first().is_some_and(|slot| plan.slot(*slot).taken)
}

/// A slot's columns out of its rows.
fn copy_rows(values: &[f32], view: View, out: &mut [f32]) {
    for (out, row) in out.chunks_exact_mut(view.width.max(1)).zip(values.chunks(view.stride.max(1))) {
        out.copy_from_slice(&row[view.at..view.at + view.width]);
    }
}
