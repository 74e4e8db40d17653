//! Bytes from the mapped file into GPU memory, laid out for the kernels on the way.
//!
//! Rows are packed by all cores into a buffer that stays in cache. On unified memory it is copied to where the weights
//! stay, in a mapped primary buffer: no second copy exists. On a discrete GPU it goes through a ring of staging buffers
//! that live as long as the upload: a fresh staging buffer a tensor, as `write_buffer` makes, is several times slower and
//! keeps its memory until the next submit.

use std::ops::Range;
use std::sync::mpsc::{Receiver, channel};

use rayon::prelude::*;

use super::device::Device;
use super::error::GpuError;

/// Bytes of one staging buffer, and of the packing buffer.
const STAGE_BYTES: usize = 16 << 20;
const STAGES: usize = 3;

/// Copies rows into new buffers.
pub(super) struct Uploader {
    device: Device,
    packed: Vec<u8>,
    ring: Vec<Stage>,
    next: usize,
    bytes: u64,
}

/// A staging buffer and, while the GPU reads it, the news that it is mapped again.
struct Stage {
    buffer: wgpu::Buffer,
    remapped: Option<(wgpu::SubmissionIndex, Receiver<Result<(), wgpu::BufferAsyncError>>)>,
}

impl Uploader {
    pub(super) fn new(device: &Device) -> Uploader {
        Uploader { device: device.clone(), packed: vec![], ring: vec![], next: 0, bytes: 0 }
    }

    /// A buffer of these rows; `pack` fills one row of `row_bytes`.
    pub(super) fn rows(
        &mut self,
        what: &str,
        rows: Range<usize>,
        row_bytes: usize,
        pack: &(dyn Fn(usize, &mut [u8]) + Sync),
    ) -> Result<wgpu::Buffer, GpuError> {
        let total = rows.len() as u64 * row_bytes as u64;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let stages = self.device.stages();
        let usage = if stages { usage } else { usage | wgpu::BufferUsages::MAP_WRITE };
        let buffer = self.device.buffer(what, total, usage, !stages)?;
        let rows_a_stage = (STAGE_BYTES / row_bytes).max(1);
        let mut mapped = match stages {
            true => None,
            false => Some(buffer.get_mapped_range_mut(..).map_err(|e| self.device.lost(e.to_string()))?),
        };
        for first in rows.clone().step_by(rows_a_stage) {
            let last = (first + rows_a_stage).min(rows.end);
            let bytes = (last - first) * row_bytes;
            self.packed.resize(bytes, 0);
            // A few hundred kilobytes a task: small rows are not worth a task each.
            let rows_a_task = (1usize << 18).div_ceil(row_bytes);
            self.packed.par_chunks_mut(rows_a_task * row_bytes).enumerate().for_each(|(task, chunk)| {
                for (i, row) in chunk.chunks_exact_mut(row_bytes).enumerate() {
                    pack(first + task * rows_a_task + i, row);
                }
            });
            let at = (first - rows.start) as u64 * row_bytes as u64;
            match &mut mapped {
                Some(view) => view.slice(at as usize..at as usize + bytes).copy_from_slice(&self.packed),
                None => self.stage(&buffer, at)?,
            }
        }
        if mapped.take().is_some() {
            buffer.unmap();
        }
        self.bytes += total;
        self.device.check()?;
        Ok(buffer)
    }

    /// Sends the packed bytes to `at` in the buffer.
    fn stage(&mut self, to: &wgpu::Buffer, at: u64) -> Result<(), GpuError> {
        let bytes = self.packed.len() as u64;
        let slot = self.next % STAGES;
        self.next += 1;
        if self.ring.len() <= slot || self.ring[slot].buffer.size() < bytes {
            let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
            let buffer = self.device.buffer("staging", bytes.max(STAGE_BYTES as u64), usage, true)?;
            let stage = Stage { buffer, remapped: None };
            if self.ring.len() <= slot {
                self.ring.push(stage);
            } else {
                let old = std::mem::replace(&mut self.ring[slot], stage);
                self.device.forget(&old.buffer);
            }
        }
        let stage = &mut self.ring[slot];
        if let Some((copied, news)) = stage.remapped.take() {
            self.device.wait_for(copied)?;
            news.recv().map_err(|e| self.device.lost(e.to_string()))?.map_err(|e| self.device.lost(e.to_string()))?;
        }
        let mut view = stage.buffer.get_mapped_range_mut(..).map_err(|e| self.device.lost(e.to_string()))?;
        view.slice(..bytes as usize).copy_from_slice(&self.packed);
        drop(view);
        stage.buffer.unmap();
        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&stage.buffer, 0, to, at, bytes);
        let copied = self.device.queue().submit([encoder.finish()]);
        let (send, news) = channel();
        stage.buffer.map_async(wgpu::MapMode::Write, .., move |result| {
            // Nobody listens any more when the upload failed elsewhere.
            let _ = send.send(result);
        });
        stage.remapped = Some((copied, news));
        Ok(())
    }

    /// Waits for the last copies and gives the staging memory back; the bytes written in all.
    pub(super) fn finish(self) -> Result<u64, GpuError> {
        self.device.wait()?;
        for stage in &self.ring {
            self.device.forget(&stage.buffer);
        }
        Ok(self.bytes)
    }
}
