//! The rates of an open device, measured with the kernels and the paths that do the work.
//!
//! A token's products are timed over a matrix that no cache holds, a batch's over one that some do; uploads go through
//! expert slots. Each figure is the best of what a tenth of a second has room for, by the host's clock, because whatever
//! else runs only takes away. Every measurement begins with a piece that a software renderer does in milliseconds, and
//! grows only where that was quick. The driver may keep what was allocated here: open a device for this alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rynd_quant::Format;

use super::device::{Counters, Device};
use super::error::GpuError;
use super::expert_slots::{ExpertUploader, Pool};
use super::layout::Layout;
use super::matrix::Matrix;
use super::ops::Product;
use super::pipelines::Recorder;
use super::slots::{padded, values_bytes};
use crate::experts::rates::GpuRates;

/// k of the matrices, a usual width of models.
const WIDTH: usize = 2048;
const BATCH_TOKENS: usize = 64;
/// Rows of the first piece, about 8 MiB; the matrix has so many such pieces that no cache holds it.
const PIECE_ROWS: usize = 7168;
const MOST_PIECES: usize = 48;
/// Rows of the batch's matrix: for a start, and where that is quick.
const BATCH_ROWS: [usize; 2] = [512, 16_384];
/// What a piece may take before it has to do.
const QUICK: f64 = 0.1;
/// A submission that takes this long says enough.
const ENOUGH: f64 = 0.015;
/// Of each measurement, the last submission not counted.
const TIME: Duration = Duration::from_millis(100);
const MOST_TIMES: usize = 4096;
/// Experts of the upload: gate and up of (ff, WIDTH), 2.7 MB each with down.
const FF: usize = 768;
const EXPERTS: usize = 8;
const IN_FLIGHT: usize = 4;
/// Dispatches of the two submissions whose difference counts.
const DISPATCHES: [usize; 2] = [32, 544];
const ROUNDS: usize = 12;
/// No figure is below this, so that none divides by nothing.
const LEAST: f64 = 1e-9;

/// Measures a device in about half a second; on a slow one in about as long.
pub fn measure(device: &Device) -> Result<GpuRates, GpuError> {
    let Some(layout) = Layout::of(Format::Q4_K) else {
        let (what, why) = ("Q4_K".to_owned(), "no kernel decodes it".to_owned());
        return Err(GpuError::Unsupported { what, why });
    };
    let bench = Bench {
        device,
        layout,
        x: device.storage("activations", values_bytes(BATCH_TOKENS * WIDTH), "lower -b")?,
        vectors: device.storage("norms and biases", values_bytes(1), "lower -b")?,
        pattern: device.storage("a pattern", PATTERN_BYTES, "lower -b")?,
    };
    device.queue().write_buffer(&bench.x, 0, bytemuck::cast_slice(&[0.5_f32; BATCH_TOKENS * WIDTH]));
    // Bytes without meaning are as fast as any, but zeros may be faster.
    device.queue().write_buffer(&bench.pattern, 0, &[0x11; PATTERN_BYTES as usize]);
    Ok(GpuRates {
        vram_bytes_per_second: significant(bench.vram()?),
        batch_ops_per_second: significant(bench.batch()?),
        bus_bytes_per_second: significant(bench.bus()?),
        dispatch_seconds: significant(bench.dispatch()?),
        read_back_seconds: significant(bench.read_back()?),
    })
}

/// The figure to four digits: more would be noise, and so few come back from a file as they went.
fn significant(figure: f64) -> f64 {
    format!("{figure:.3e}").parse().unwrap_or(figure)
}

const PATTERN_BYTES: u64 = 1 << 20;

struct Bench<'a> {
    device: &'a Device,
    layout: &'static Layout,
    x: wgpu::Buffer,       // (BATCH_TOKENS, WIDTH)
    vectors: wgpu::Buffer, // nothing: no norm, no bias
    pattern: wgpu::Buffer,
}

/// A product and what it writes.
struct Timed {
    device: Device,
    product: Product,
    tokens: usize,
    bytes: u64,
    out: wgpu::Buffer,
    /// Of the matrix.
    banks: Vec<wgpu::Buffer>,
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.banks.iter().chain([&self.out]).for_each(|buffer| self.device.forget(buffer));
    }
}

impl Bench<'_> {
    /// A matrix of `pieces` times (rows, k) for so many tokens.
    fn product(&self, [rows, k]: [usize; 2], pieces: usize, tokens: usize) -> Result<Timed, GpuError> {
        // No bank goes, so what would stand in for one is never bound.
        let matrix = Arc::new(Matrix::slots(self.device, self.layout, [rows, k], &[pieces], &self.vectors)?);
        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for bank in &matrix.banks {
            let size = (bank.rows * matrix.row_bytes) as u64;
            for at in (0..size).step_by(PATTERN_BYTES as usize) {
                let bytes = PATTERN_BYTES.min(size - at);
                encoder.copy_buffer_to_buffer(&self.pattern, 0, &bank.buffer, at, bytes);
            }
        }
        let submission = self.device.queue().submit([encoder.finish()]);
        self.device.wait_for(submission)?;
        let all = rows * pieces;
        let out = self.device.storage("activations", values_bytes(tokens * padded(all)), "lower -b")?;
        let bytes = (all * matrix.row_bytes) as u64;
        let banks = matrix.banks.iter().map(|bank| bank.buffer.clone()).collect();
        let product = Product::alone(self.device, matrix, [&self.x, &self.vectors, &out], tokens)?;
        let timed = Timed { device: self.device.clone(), product, tokens, bytes, out, banks };
        // Drivers finish a pipeline at its first use.
        self.seconds(&timed, 1)?;
        Ok(timed)
    }

    /// Seconds of one submission that computes a product so many times.
    fn seconds(&self, timed: &Timed, times: usize) -> Result<f64, GpuError> {
        let start = Instant::now();
        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.record(timed, times, &mut encoder);
        let submission = self.device.queue().submit([encoder.finish()]);
        self.device.wait_for(submission)?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn record(&self, timed: &Timed, times: usize, encoder: &mut wgpu::CommandEncoder) {
        let mut counters = Counters::default();
        let mut recorder = Recorder::new(encoder, &mut counters, None);
        (0..times).for_each(|_| timed.product.record(&mut recorder, timed.tokens));
    }

    /// Seconds of one product, in submissions long enough that their own cost is small.
    fn best(&self, timed: &Timed) -> Result<f64, GpuError> {
        let (start, mut times, mut best) = (Instant::now(), 1, f64::INFINITY);
        loop {
            let took = self.seconds(timed, times)?;
            best = best.min(took / times as f64);
            if start.elapsed() >= TIME {
                return Ok(best.max(LEAST));
            }
            if took < ENOUGH {
                times = (2 * times).min(MOST_TIMES);
            }
        }
    }

    /// Bytes of weights a second, one token at a time.
    fn vram(&self) -> Result<f64, GpuError> {
        let piece = self.product([PIECE_ROWS, WIDTH], 1, 1)?;
        let took = self.seconds(&piece, 1)?;
        if took > QUICK {
            return Ok(piece.bytes as f64 / took);
        }
        // A third of a token's time on a slow adapter is as good as all of it; a budget must not be exceeded.
        let room = self.device.left_bytes().map_or(u64::MAX, |left| left / 2);
        let pieces = ((0.3 * QUICK / took.max(LEAST)) as usize).clamp(4, MOST_PIECES);
        let pieces = pieces.min((room / piece.bytes) as usize);
        if pieces < 2 {
            return Ok(piece.bytes as f64 / self.best(&piece)?);
        }
        drop(piece);
        let large = self.product([PIECE_ROWS, WIDTH], pieces, 1)?;
        Ok(large.bytes as f64 / self.best(&large)?)
    }

    /// Multiplications and additions a second in a batch.
    fn batch(&self) -> Result<f64, GpuError> {
        let [few, many] = BATCH_ROWS;
        let ops = |rows: usize| 2.0 * (rows * WIDTH * BATCH_TOKENS) as f64;
        let small = self.product([few, WIDTH], 1, BATCH_TOKENS)?;
        let took = self.seconds(&small, 1)?;
        if took * (many / few) as f64 > QUICK {
            return Ok(ops(few) / self.best(&small)?);
        }
        drop(small);
        Ok(ops(many) / self.best(&self.product([many, WIDTH], 1, BATCH_TOKENS)?)?)
    }

    /// Bytes a second from host memory into expert slots.
    fn bus(&self) -> Result<f64, GpuError> {
        let row_bytes = self.layout.format.row_bytes(WIDTH).unwrap_or(0);
        let matrix = FF * row_bytes;
        let source = vec![0x11_u8; EXPERTS * 3 * matrix];
        let pools: Arc<[Pool]> = [Pool::loose(self.device, self.layout, [FF, WIDTH], EXPERTS)?].into();
        let mut uploader = ExpertUploader::new(self.device, &pools, IN_FLIGHT)?;
        // The first round touches fresh memory everywhere.
        self.upload(&mut uploader, &source, Duration::ZERO)?;
        self.upload(&mut uploader, &source, TIME)
    }

    /// Uploads every expert in turn, once at least and for this long.
    fn upload(&self, uploader: &mut ExpertUploader, source: &[u8], time: Duration) -> Result<f64, GpuError> {
        let bytes = source.len() / EXPERTS;
        let (start, mut uploads) = (Instant::now(), 0);
        while uploads < EXPERTS || start.elapsed() < time {
            // Past the limit, what was uploaded has to do.
            if uploads > 0 && start.elapsed().as_secs_f64() > 2.0 * QUICK {
                break;
            }
            let slot = uploads % EXPERTS;
            let expert = &source[slot * bytes..(slot + 1) * bytes];
            let (gate, rest) = expert.split_at(bytes / 3);
            let (up, down) = rest.split_at(bytes / 3);
            match uploader.start(0, slot, [gate, up, down])? {
                Some(_) => uploads += 1,
                None => std::thread::yield_now(),
            }
        }
        uploader.finish()?;
        Ok((uploads * bytes) as f64 / start.elapsed().as_secs_f64().max(LEAST))
    }

    /// Seconds that one more dispatch takes in a submission; each waits for the one before it, as in a token.
    fn dispatch(&self) -> Result<f64, GpuError> {
        let tiny = self.tiny()?;
        let [few, many] = DISPATCHES;
        let mut best = [f64::INFINITY; 2];
        let start = Instant::now();
        for round in 0..ROUNDS {
            for (best, times) in best.iter_mut().zip(DISPATCHES) {
                *best = best.min(self.seconds(&tiny, times)?);
            }
            if round > 0 && start.elapsed() >= TIME {
                break;
            }
        }
        Ok(((best[1] - best[0]) / (many - few) as f64).max(LEAST))
    }

    fn tiny(&self) -> Result<Timed, GpuError> {
        self.product([8, 256], 1, 1)
    }

    /// Seconds from a submission to its values on the host.
    fn read_back(&self) -> Result<f64, GpuError> {
        let tiny = self.tiny()?;
        let host = self.device.host_buffer(16)?;
        let lost = |e: &dyn std::fmt::Display| self.device.lost(e.to_string());
        let mut best = f64::INFINITY;
        let begin = Instant::now();
        for round in 0..ROUNDS {
            let start = Instant::now();
            let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            self.record(&tiny, 1, &mut encoder);
            encoder.copy_buffer_to_buffer(&tiny.out, 0, &host, 0, 16);
            let (send, mapped) = std::sync::mpsc::channel();
            encoder.map_buffer_on_submit(&host, wgpu::MapMode::Read, .., move |result| {
                // The receiver below outlives the map.
                let _ = send.send(result);
            });
            let submission = self.device.queue().submit([encoder.finish()]);
            self.device.wait_for(submission)?;
            mapped.recv().map_err(|e| lost(&e))?.map_err(|e| lost(&e))?;
            let view = host.get_mapped_range(..).map_err(|e| lost(&e))?;
            std::hint::black_box(view[0]);
            drop(view);
            best = best.min(start.elapsed().as_secs_f64());
            host.unmap();
            if round > 0 && begin.elapsed() >= TIME {
                break;
            }
        }
        Ok(best.max(LEAST))
    }
}
