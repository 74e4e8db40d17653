//! A run: one environment buffer written, command buffers recorded and submitted, values read back.
//!
//! Everything of a submission lies in one pass; wgpu puts barriers where a dispatch reads what an earlier one wrote.
//! Slots that are wanted on the host are copied to mapped memory by the submission that writes them, and `submit` never
//! waits: a token that ends here is one submit and one read-back, and the host may work on values of one submission
//! while the next one runs.

use std::ops::Range;
use std::sync::mpsc::{Receiver, channel};

use bytemuck::Pod;

use super::Gpu;
use super::device::Device;
use super::error::GpuError;
use super::ops::RunShape;
use super::pipelines::Recorder;
use super::slots::View;
use crate::backend::{BackendError, Env, NO_PAGE};
use crate::plan::{Op, PAGE_TOKENS, Plan, Slot};

/// Words of a token in the environment buffer.
const TOKEN_WORDS: usize = 4;
/// Words from one page table to the next, at least.
const LEAST_STRIDE: usize = 16;
/// Sequences of a run whose page tables can all be as long as the caches; more fit while their contexts are shorter.
const LONG_SEQUENCES: usize = 64;

/// Words of the environment buffer before the page tables, and with them.
pub(super) fn env_words(plan: &Plan, batch: usize, tile_words: usize, pages: usize) -> (usize, usize) {
    let tables_at = (TOKEN_WORDS + 1) * batch + tile_words;
    let table = pages.next_power_of_two().max(LEAST_STRIDE);
    (tables_at, tables_at + batch.min(LONG_SEQUENCES) * plan.groups.len() * table)
}

/// Host buffers that are kept for the next read-back.
const SPARE_BUFFERS: usize = 8;

/// What a run prepared on the host; kept so that nothing is allocated per token.
#[derive(Default)]
pub(super) struct Scratchpad {
    env: Vec<u32>,
    tokens: usize,
    rows: usize,
    rows_at: u32,
    tiles: Vec<(u32, usize)>,
    tables: Vec<u32>,  // (sequences, groups, stride), as the device has them
    changed: Vec<u32>, // as it shall have them
    stride: usize,     // words from one table to the next
    angles: Vec<[f32; 2]>,
    angles_at: Vec<u32>, // per rope
    pages: usize,
    run_tokens: usize,
    padded: Vec<u32>,
}

impl Scratchpad {
    /// Tokens of the run.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }
}

/// Slots' rows on their way to the host: all that one submission writes lie in one buffer.
pub(super) struct ReadBack {
    /// Those that were not asked for yet.
    pieces: Vec<Piece>,
    host: wgpu::Buffer,
    submission: wgpu::SubmissionIndex,
    /// `None` once it was waited for.
    mapped: Option<Receiver<Result<(), wgpu::BufferAsyncError>>>,
}

/// One slot's rows in a host buffer.
#[derive(Clone, Copy)]
struct Piece {
    slot: Slot,
    rows: usize,
    at: u64,
    bytes: u64,
}

impl Gpu {
    /// Takes over what all submissions of a run share: its tokens, rows, page tables and rotary angles.
    pub fn begin(&mut self, env: &Env) -> Result<(), BackendError> {
        assert!(env.tokens.len() <= self.batch && env.rows.len() <= self.batch, "the engine cuts batches to size");
        if let Some(token) = env.tokens.iter().find(|token| token.id as usize >= self.plan.vocab) {
            return Err(BackendError::UnknownToken { id: token.id, vocab: self.plan.vocab });
        }
        self.device.check()?;
        Ok(self.write_env(env)?)
    }

    /// Submits those of the steps that this side has, without waiting for them. The `wanted` slots, as they are after
    /// the steps, are copied to the host in the same submission: `read` waits for them.
    pub fn submit(&mut self, steps: Range<usize>, wanted: &[Slot]) -> Result<(), BackendError> {
        self.submit_all(steps, wanted, false)
    }

    /// The same for steps that end in logits, of which only each row's largest is wanted: `read_best` waits for them.
    pub fn submit_best(&mut self, steps: Range<usize>, wanted: &[Slot]) -> Result<(), BackendError> {
        self.submit_all(steps, wanted, true)
    }

    fn submit_all(&mut self, steps: Range<usize>, wanted: &[Slot], best: bool) -> Result<(), BackendError> {
        let here = |step: &usize| self.steps[*step].is_some();
        let nothing = !steps.clone().any(|step| here(&step)) && wanted.is_empty() && self.adds.is_empty();
        if self.pad.tokens == 0 || nothing {
            return Ok(());
        }
        self.device.check()?;
        let rows = self.pad.rows;
        let tail = steps.clone().find(|step| here(step) && is_taken(&self.plan, *step)).unwrap_or(steps.end);
        // The logits of a whole batch may not fit one buffer: then the last steps run in several rounds.
        let most = self.slots.taken_rows;
        let rounds = if tail < steps.end { rows.div_ceil(most).max(1) } else { 1 };
        if rounds > 1 && !matches!(self.plan.steps[tail].op, Op::TakeRows(_)) {
            let message = format!("the logits of {rows} rows do not fit at once; ask for {most}");
            return Err(BackendError::Device(message));
        }
        for step in steps.clone().filter(here) {
            for slot in self.plan.steps[step].op.writes() {
                forget(&mut self.pending, slot, &self.device)?;
            }
        }
        let mut pieces: Vec<Piece> = vec![];
        let mut at = 0;
        for &slot in wanted {
            let rows = if self.plan.slot(slot).taken { rows } else { self.pad.tokens };
            if rows > 0 {
                let bytes = (rows * self.slot(slot)?.0.stride * 4) as u64;
                pieces.push(Piece { slot, rows, at, bytes });
                // Where a mapped range may begin.
                at += bytes.next_multiple_of(wgpu::MAP_ALIGNMENT);
            }
        }
        let host = if pieces.is_empty() { None } else { Some(self.host_buffer(at)?) };

        let best = self.best.as_ref().filter(|_| best && rows > 0).map(|step| step.ids.clone());
        let best = best.map(|ids| Ok::<_, GpuError>((ids, self.host_buffer(rows as u64 * 4)?))).transpose()?;
        if let Some(mut old) = self.best_pending.take() {
            old.wait(&self.device)?;
            self.keep(old.host);
        }

        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for round in 0..rounds {
            let first = round * most;
            let rows = (rows - first).min(most);
            let shape = RunShape {
                tokens: self.pad.tokens,
                rows,
                rows_at: self.pad.rows_at + first as u32,
                pages: self.pad.pages,
                run_tokens: self.pad.run_tokens,
                tiles: &self.pad.tiles,
                angles: &self.pad.angles_at,
            };
            let mut recorder = Recorder::new(&mut encoder, &mut self.counters, self.timer.as_mut());
            for slot in self.adds.drain(..) {
                self.adders[&slot].record(&mut recorder, self.pad.tokens);
            }
            // The body goes with the first rows.
            let start = if round == 0 { steps.start } else { tail };
            let end = if rows == 0 { tail } else { steps.end };
            for step in start..end {
                if let Some(prepared) = &self.steps[step] {
                    prepared.record(&mut recorder, &shape, is_taken(&self.plan, step));
                }
            }
            if let (Some(_), Some(step)) = (&best, &self.best) {
                step.record(&mut recorder, first, rows);
            }
            drop(recorder);
            for piece in &pieces {
                let (view, buffer) = self.slots.of(piece.slot);
                let (row_bytes, from) = ((view.stride * 4) as u64, (view.base * 4) as u64);
                let Some(host) = &host else { continue };
                if self.plan.slot(piece.slot).taken {
                    let (skipped, bytes) = (row_bytes * first as u64, row_bytes * rows as u64);
                    encoder.copy_buffer_to_buffer(buffer, from, host, piece.at + skipped, bytes);
                } else if round == 0 {
                    encoder.copy_buffer_to_buffer(buffer, from, host, piece.at, piece.bytes);
                }
            }
        }
        if let Some(timer) = &mut self.timer {
            timer.resolve(&mut encoder);
        }
        let host = host.map(|host| (map_on_submit(&encoder, &host), host));
        let best = best.map(|(ids, host)| {
            encoder.copy_buffer_to_buffer(&ids, 0, &host, 0, rows as u64 * 4);
            (map_on_submit(&encoder, &host), host)
        });
        let submission = self.device.queue().submit([encoder.finish()]);
        self.counters.submits += 1;
        self.best_pending = best.map(|(mapped, host)| {
            let piece = Piece { slot: self.plan.logits, rows, at: 0, bytes: rows as u64 * 4 };
            ReadBack { pieces: vec![piece], host, submission: submission.clone(), mapped: Some(mapped) }
        });
        if let Some((mapped, host)) = host {
            self.pending.push(ReadBack { pieces, host, submission: submission.clone(), mapped: Some(mapped) });
        }
        if let Some(timer) = &mut self.timer {
            timer.collect(&self.device, submission)?;
        }
        self.device.check()?;
        Ok(())
    }

    /// A buffer for reading back so many bytes: one that is free and large enough, or a new one.
    pub(super) fn host_buffer(&mut self, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        let fits = self.spare.iter().enumerate().filter(|(_, buffer)| buffer.size() >= bytes);
        if let Some((at, _)) = fits.min_by_key(|(_, buffer)| buffer.size()) {
            return Ok(self.spare.swap_remove(at));
        }
        self.device.host_buffer(bytes)
    }

    /// Keeps a host buffer for the next time; of too many, the smallest goes.
    pub(super) fn keep(&mut self, host: wgpu::Buffer) {
        host.unmap();
        self.spare.push(host);
        if self.spare.len() > SPARE_BUFFERS
            && let Some(at) = (0..self.spare.len()).min_by_key(|&i| self.spare[i].size())
        {
            self.spare.swap_remove(at);
        }
    }

    /// Copies the first rows of a slot to the host; waits only for the submission that wrote them.
    pub(super) fn read_slot<T: Pod>(&mut self, slot: Slot, out: &mut [T]) -> Result<(), GpuError> {
        let (view, buffer) = self.slot(slot)?;
        let rows = out.len() / view.width.max(1);
        let bytes = (rows * view.stride * 4) as u64;
        let from = (view.base * 4) as u64;
        let serves = |piece: &Piece| piece.slot == slot && piece.rows >= rows;
        let known = self.pending.iter().position(|known| known.pieces.iter().any(serves));
        if known.is_none() && from + bytes > buffer.size() {
            let why = format!("only {} of {rows} rows are kept", buffer.size() / (view.stride * 4) as u64);
            return Err(GpuError::Unsupported { what: format!("reading slot {}", slot.0), why });
        }
        let mut read_back = match known {
            Some(at) => self.pending.swap_remove(at),
            None => {
                let buffer = buffer.clone();
                let host = self.host_buffer(bytes)?;
                let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                encoder.copy_buffer_to_buffer(&buffer, from, &host, 0, bytes);
                let mapped = Some(map_on_submit(&encoder, &host));
                let submission = self.device.queue().submit([encoder.finish()]);
                self.counters.submits += 1;
                ReadBack { pieces: vec![Piece { slot, rows, at: 0, bytes }], host, submission, mapped }
            }
        };
        self.counters.read_backs += u64::from(read_back.mapped.is_some());
        self.counters.read_back_bytes += bytes;
        read_back.wait(&self.device)?;
        let ReadBack { pieces, host, .. } = &mut read_back;
        if let Some(at) = pieces.iter().position(serves) {
            let piece = pieces.swap_remove(at);
            let range = piece.at..piece.at + piece.bytes;
            let rows = host.get_mapped_range(range).map_err(|e| self.device.lost(e.to_string()))?;
            copy_rows(bytemuck::cast_slice(&rows), view, out);
        }
        if read_back.pieces.is_empty() {
            self.keep(read_back.host);
        } else {
            self.pending.push(read_back);
        }
        Ok(())
    }

    /// The id of the largest logit of each wanted row of the last submission, ties to the lower one; `None` where a logit
    /// is not finite.
    pub fn read_best(&mut self, best: &mut [Option<u32>]) -> Result<(), BackendError> {
        if best.is_empty() {
            return Ok(());
        }
        let wanted = best.len();
        let is_wanted = |pending: &mut ReadBack| pending.pieces.iter().all(|piece| piece.rows == wanted);
        let Some(mut read_back) = self.best_pending.take_if(is_wanted) else {
            return Err(self.not_here(self.plan.logits).into());
        };
        self.counters.read_backs += 1;
        self.counters.read_back_bytes += best.len() as u64 * 4;
        read_back.wait(&self.device)?;
        let bytes = read_back.host.get_mapped_range(..).map_err(|e| self.device.lost(e.to_string()))?;
        for (best, &id) in best.iter_mut().zip(bytemuck::cast_slice::<u8, u32>(&bytes)) {
            *best = (id != u32::MAX).then_some(id);
        }
        drop(bytes);
        self.keep(read_back.host);
        Ok(())
    }

    /// Overwrites the first rows of a slot, before the next submission.
    pub(super) fn write_slot<T: Pod>(&mut self, slot: Slot, rows: &[T]) -> Result<(), GpuError> {
        forget(&mut self.pending, slot, &self.device)?;
        let (view, buffer) = self.slot(slot)?;
        let buffer = buffer.clone();
        self.write_rows(&buffer, view, rows)
    }

    /// Adds rows from the host to the slot's, as the first thing that the next submission does.
    pub fn add(&mut self, slot: Slot, rows: &[f32]) -> Result<(), BackendError> {
        forget(&mut self.pending, slot, &self.device)?;
        let (view, _) = self.slot(slot)?;
        if !self.adds.is_empty() {
            // The host's rows have one buffer: what is in it goes first.
            self.submit(0..0, &[])?;
        }
        let Some(adder) = self.adders.get(&slot) else { return Err(self.not_here(slot).into()) };
        let from = adder.from.clone();
        self.write_rows(&from, View::alone(view.width), rows)?;
        self.adds.push(slot);
        Ok(())
    }

    /// Rows of a slot's width into columns of a buffer.
    fn write_rows<T: Pod>(&mut self, buffer: &wgpu::Buffer, view: View, rows: &[T]) -> Result<(), GpuError> {
        let queue = self.device.queue();
        let from = view.base + view.at;
        if view.stride == view.width {
            queue.write_buffer(buffer, (from * 4) as u64, bytemuck::cast_slice(rows));
        } else if view.at == 0 && view.width + 4 > view.stride {
            // What follows a row up to the next vec4 is nobody's.
            let padded = &mut self.pad.padded;
            padded.clear();
            padded.resize(rows.len() / view.width * view.stride, 0);
            for (to, row) in padded.chunks_exact_mut(view.stride).zip(rows.chunks_exact(view.width)) {
                to[..view.width].copy_from_slice(bytemuck::cast_slice(row));
            }
            queue.write_buffer(buffer, (from * 4) as u64, bytemuck::cast_slice(padded));
        } else {
            for (i, row) in rows.chunks_exact(view.width).enumerate() {
                queue.write_buffer(buffer, ((i * view.stride + from) * 4) as u64, bytemuck::cast_slice(row));
            }
        }
        self.counters.written_bytes += (rows.len() * 4) as u64;
        self.device.check()
    }

    /// Whether a step here touches the slot.
    pub fn has(&self, slot: Slot) -> bool {
        self.slots.get(slot).is_some()
    }

    fn slot(&self, slot: Slot) -> Result<(View, &wgpu::Buffer), GpuError> {
        self.slots.get(slot).ok_or_else(|| self.not_here(slot))
    }

    fn not_here(&self, slot: Slot) -> GpuError {
        let why = "no step of this GPU touches it".to_owned();
        GpuError::Unsupported { what: format!("slot {}", slot.0), why }
    }

    /// Writes what changes between runs, once: see shaders/lib/env.wgsl.
    fn write_env(&mut self, env: &Env) -> Result<(), GpuError> {
        let pad = &mut self.pad;
        (pad.tokens, pad.rows) = (env.tokens.len(), env.rows.len());
        pad.env.clear();
        pad.env.resize(env.tokens.len() * TOKEN_WORDS, 0);
        pad.rows_at = pad.env.len() as u32;
        pad.env.extend_from_slice(env.rows);
        self.tile_sets.fill(env.tokens, &mut pad.env, &mut pad.tiles);
        let groups = self.plan.groups.len();
        // From the last token of a sequence back: it sees the most pages.
        let mut pages = vec![0; env.seqs.len()];
        for token in env.tokens {
            let seen = &mut pages[token.seq as usize];
            *seen = (*seen).max(token.pos as usize / PAGE_TOKENS + 1);
        }
        pad.pages = pages.iter().copied().max().unwrap_or(0);
        (pad.run_tokens, _) = env.tokens.iter().fold((0, (u32::MAX, 0)), |(most, (seq, n)), token| {
            let n = if token.seq == seq { n + 1 } else { 1 };
            (most.max(n), (token.seq, n))
        });
        // A stride that holds while contexts grow keeps the tables where they are.
        pad.stride = pad.stride.max(pad.pages.next_power_of_two().max(LEAST_STRIDE));
        let words = env.seqs.len() * groups * pad.stride;
        let end = ((self.tables_at + words) * 4) as u64;
        if end > self.env.size() {
            return Err(GpuError::TooLarge {
                adapter: self.device.report().name.clone(),
                what: "the page tables of all sequences of one run".to_owned(),
                bytes: end,
                limit: self.env.size(),
                advice: "run fewer sequences at once",
            });
        }
        pad.changed.clear();
        pad.changed.resize(words, NO_PAGE);
        for (seq, tables) in pad.changed.chunks_exact_mut((groups * pad.stride).max(1)).enumerate() {
            for (to, table) in tables.chunks_exact_mut(pad.stride).zip(env.seqs[seq].tables) {
                to[..pages[seq]].copy_from_slice(&table[..pages[seq]]);
                let there = |page: &u32| *page == NO_PAGE || (*page as usize) < self.cache_pages;
                let here = self.kv.iter().any(Option::is_some);
                assert!(!here || to.iter().all(there), "the caches hold {} pages", self.cache_pages);
            }
        }
        for (i, token) in env.tokens.iter().enumerate() {
            let table = self.tables_at + token.seq as usize * groups * pad.stride;
            let at = i * TOKEN_WORDS;
            pad.env[at..at + TOKEN_WORDS].copy_from_slice(&[token.id, token.pos, table as u32, pad.stride as u32]);
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
        // Of the tables, what changed since the run before.
        let same = pad.changed.iter().zip(&pad.tables).take_while(|(new, old)| new == old).count();
        let end = pad.changed.iter().rposition(|&page| page != NO_PAGE).map_or(same, |last| last + 1).max(same);
        let differs = |at: &usize| pad.tables.get(*at) != Some(&pad.changed[*at]);
        if let Some(last) = (same..end).rev().find(differs) {
            let new = bytemuck::cast_slice(&pad.changed[same..=last]);
            queue.write_buffer(&self.env, ((self.tables_at + same) * 4) as u64, new);
            self.counters.written_bytes += new.len() as u64;
        }
        if pad.tables.len() < pad.changed.len() {
            pad.tables.resize(pad.changed.len(), NO_PAGE);
        }
        pad.tables[same..end].copy_from_slice(&pad.changed[same..end]);
        if !pad.angles.is_empty() {
            queue.write_buffer(&self.angles, 0, bytemuck::cast_slice(&pad.angles));
        }
        self.counters.written_bytes += (pad.env.len() * 4 + pad.angles.len() * 8) as u64;
        Ok(())
    }
}

impl ReadBack {
    /// Until the host may read; a second time costs nothing.
    fn wait(&mut self, device: &Device) -> Result<(), GpuError> {
        let Some(mapped) = self.mapped.take() else { return Ok(()) };
        device.wait_for(self.submission.clone())?;
        let lost = |e: &dyn std::fmt::Display| device.lost(e.to_string());
        mapped.recv().map_err(|e| lost(&e))?.map_err(|e| lost(&e))
    }
}

/// Gives up what is on its way of a slot that is about to change.
fn forget(pending: &mut Vec<ReadBack>, slot: Slot, device: &Device) -> Result<(), GpuError> {
    pending.iter_mut().for_each(|known| known.pieces.retain(|piece| piece.slot != slot));
    while let Some(at) = pending.iter().position(|known| known.pieces.is_empty()) {
        let mut old = pending.swap_remove(at);
        old.wait(device)?;
        old.host.unmap();
    }
    Ok(())
}

pub(super) fn map_on_submit(
    encoder: &wgpu::CommandEncoder,
    host: &wgpu::Buffer,
) -> Receiver<Result<(), wgpu::BufferAsyncError>> {
    let (send, mapped) = channel();
    encoder.map_buffer_on_submit(host, wgpu::MapMode::Read, .., move |result| {
        // Nobody listens when the values are not read.
        let _ = send.send(result);
    });
    mapped
}

/// Whether a step runs on the wanted rows only.
fn is_taken(plan: &Plan, step: usize) -> bool {
    plan.steps[step].op.writes().first().is_some_and(|slot| plan.slot(*slot).taken)
}

/// A slot's columns out of its rows.
fn copy_rows<T: Copy>(values: &[T], view: View, out: &mut [T]) {
    for (out, row) in out.chunks_exact_mut(view.width.max(1)).zip(values.chunks(view.stride.max(1))) {
        out.copy_from_slice(&row[view.at..view.at + view.width]);
    }
}
