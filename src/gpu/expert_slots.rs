//! Expert slots: room on a device for some experts of some layers, filled while the model runs.
//!
//! A pool has slots of one layout (formats and shapes of gate, up and down), and any expert of its layers fits any of them.
//! A slot map in GPU memory says which expert lies where; the kernels skip picks that have no slot, so a layer runs
//! without a read-back and its result is a partial sum. Experts come in through staging buffers that an `ExpertUploader`
//! owns; it may live on a thread of its own, and nothing ever waits for it.
//!
//! The queue runs submissions in order, hence what a caller must keep: take an expert out of the map before its slot is
//! given to another, put the new one in when its ticket is done, and leave the map alone between the submission of a
//! layer's router and that of its experts, or the other sides compute other misses than this one skips.
//!
//! A pool can give up its last slots, down to one of its cuts, and take them again: memory that caches need meanwhile. No
//! upload may be on its way then, and no map may name a slot that goes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::device::Device;
use super::error::GpuError;
use super::layout::Layout;
use super::matrix::{Matrix, Rows};
use super::slots::values_bytes;
use crate::plan::{Op, Plan, WeightId};

/// In a slot map: the expert has no slot here.
pub const NO_SLOT: u32 = u32::MAX;

/// Which steps take their experts from slots, and how many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotPool {
    /// `Op::Experts` steps of the plan, all of one layout.
    pub steps: Vec<usize>,
    pub slots: usize,
    /// Numbers of slots that the pool may be cut down to, in any order.
    pub cuts: Vec<usize>,
    /// Experts of a wave (see `waves`), for which there is room twice; 0 where none will pass.
    pub wave: usize,
}

/// A pool on a device.
pub(super) struct Pool {
    matrices: Mutex<Matrices>,
    pub map: wgpu::Buffer, // (steps, experts)
    pub experts: usize,
    pub halves: Vec<Half>,          // two, or none
    rows_of: HashMap<usize, usize>, // step -> row of the map
    layouts: [&'static Layout; 2],  // of up, of down
    nothing: wgpu::Buffer,          // bound in place of slots that are gone
}

/// The slots of a pool as they are now.
#[derive(Clone)]
pub(super) struct Matrices {
    pub up: Arc<Matrix>, // gate and up rows in turn
    pub down: Arc<Matrix>,
}

impl Matrices {
    pub(super) fn each(&self) -> [&Matrix; 2] {
        [&self.up, &self.down]
    }

    /// Number of slots.
    pub(super) fn slots(&self) -> usize {
        self.up.experts
    }

    fn slot_bytes(&self) -> u64 {
        self.each().map(Matrix::slot_bytes).iter().sum()
    }
}

/// Room for one wave of experts that pass through.
pub(super) struct Half {
    pub matrices: Matrices,
    pub map: wgpu::Buffer, // (experts), of the layer that passes
}

/// The tensors of a mixture's experts.
fn tensors(plan: &Plan, step: usize) -> Result<[WeightId; 3], GpuError> {
    let Some(Op::Experts(op)) = plan.steps.get(step).map(|step| &step.op) else {
        return Err(unsupported(step, "it is no mixture of experts".to_owned()));
    };
    Ok([op.gate, op.up, op.down])
}

fn unsupported(step: usize, why: String) -> GpuError {
    GpuError::Unsupported { what: format!("expert slots for step {step}"), why }
}

/// Layouts of gate and up together, and of down.
fn layouts(plan: &Plan, step: usize) -> Result<[&'static Layout; 2], GpuError> {
    let [gate, up, down] = tensors(plan, step)?;
    let problem = Rows::Paired(gate, up).problem(plan).or_else(|| Rows::Stacked(vec![down]).problem(plan));
    match (Layout::of(plan.weight(gate).format), Layout::of(plan.weight(down).format), problem) {
        (Some(up), Some(down), None) => Ok([up, down]),
        (_, _, problem) => Err(unsupported(step, problem.unwrap_or_else(|| "unknown format".to_owned()))),
    }
}

/// Bytes of GPU memory that one expert of this `Op::Experts` step takes.
pub fn expert_slot_bytes(plan: &Plan, step: usize) -> Result<u64, GpuError> {
    let [up_layout, down_layout] = layouts(plan, step)?;
    let [gate, _, down] = tensors(plan, step)?.map(|id| plan.weight(id));
    Ok((2 * gate.rows * up_layout.row_bytes(gate.k) + down.rows * down_layout.row_bytes(down.k)) as u64)
}

impl Pool {
    /// Empty slots, within the device's budget.
    pub(super) fn new(device: &Device, plan: &Plan, pool: &SlotPool) -> Result<Pool, GpuError> {
        let Some(&first) = pool.steps.first() else {
            return Err(unsupported(0, "the pool names no step".to_owned()));
        };
        let layouts = layouts(plan, first)?;
        let shape = |step: usize| -> Result<_, GpuError> {
            Ok(tensors(plan, step)?.map(|id| plan.weight(id)).map(|w| (w.format, w.k, w.rows, w.experts)))
        };
        let shapes = shape(first)?;
        for &step in &pool.steps {
            if shape(step)? != shapes {
                return Err(unsupported(step, format!("its experts differ from those of step {first}")));
            }
        }
        let [(_, k, ff, experts), _, (_, hidden, n, _)] = shapes;
        let mut cuts: Vec<usize> =
            pool.cuts.iter().copied().chain([pool.slots]).filter(|&cut| cut <= pool.slots).collect();
        cuts.sort_unstable();
        let words = pool.steps.len() * experts;
        let map = device.storage("expert slot maps", values_bytes(words), "leave layers on the CPU")?;
        device.queue().write_buffer(&map, 0, bytemuck::cast_slice(&vec![NO_SLOT; words]));
        let nothing = device.storage("expert slots", 0, "use fewer expert slots")?;
        let matrices = |cuts: &[usize]| -> Result<Matrices, GpuError> {
            let up = Arc::new(Matrix::slots(device, layouts[0], [2 * ff, k], cuts, &nothing)?);
            Ok(Matrices { up, down: Arc::new(Matrix::slots(device, layouts[1], [n, hidden], cuts, &nothing)?) })
        };
        let halves = (0..if pool.wave > 0 { 2 } else { 0 })
            .map(|_| {
                let map = device.storage("the slot map of a wave", values_bytes(experts), "leave layers on the CPU")?;
                Ok(Half { matrices: matrices(&[pool.wave])?, map })
            })
            .collect::<Result<_, GpuError>>()?;
        Ok(Pool {
            matrices: Mutex::new(matrices(&cuts)?),
            nothing,
            map,
            experts,
            halves,
            rows_of: pool.steps.iter().enumerate().map(|(row, &step)| (step, row)).collect(),
            layouts,
        })
    }

    /// Slots of no step: gate and up of (ff, k), down of (k, ff), all of one format. For measuring uploads.
    pub(super) fn loose(
        device: &Device,
        layout: &'static Layout,
        [ff, k]: [usize; 2],
        slots: usize,
    ) -> Result<Pool, GpuError> {
        let nothing = device.storage("expert slots", 0, "use fewer expert slots")?;
        let up = Arc::new(Matrix::slots(device, layout, [2 * ff, k], &[slots], &nothing)?);
        let down = Arc::new(Matrix::slots(device, layout, [k, ff], &[slots], &nothing)?);
        Ok(Pool {
            matrices: Mutex::new(Matrices { up, down }),
            nothing,
            map: device.storage("expert slot maps", values_bytes(1), "leave layers on the CPU")?,
            experts: 1,
            halves: vec![],
            rows_of: HashMap::new(),
            layouts: [layout, layout],
        })
    }

    /// Where the step's part of the map starts; `None` when the step is of another pool.
    pub(super) fn map_at(&self, step: usize) -> Option<u32> {
        self.rows_of.get(&step).map(|row| (row * self.experts) as u32)
    }

    /// Writes the step's part of the map: the slot of each expert, or `NO_SLOT`. It counts from the next submission on.
    pub(super) fn set(&self, device: &Device, at: u32, slots: &[u32]) {
        assert_eq!(slots.len(), self.experts, "one slot an expert");
        let all = self.matrices().slots();
        let there = |slot: &u32| *slot == NO_SLOT || (*slot as usize) < all;
        assert!(slots.iter().all(there), "the pool has {all} slots");
        device.queue().write_buffer(&self.map, u64::from(at) * 4, bytemuck::cast_slice(slots));
    }

    /// The steps whose experts lie here.
    pub(super) fn steps(&self) -> impl Iterator<Item = usize> {
        self.rows_of.keys().copied()
    }

    /// The slots as they are now.
    pub(super) fn matrices(&self) -> Matrices {
        self.matrices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of one slot.
    pub(super) fn slot_bytes(&self) -> u64 {
        self.matrices().slot_bytes()
    }

    /// Has so many slots from now on: `bind` puts the new buffers where the old ones were, which are destroyed then.
    pub(super) fn resize(
        &self,
        device: &Device,
        slots: usize,
        bind: impl FnOnce(&Matrices) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let before = self.matrices();
        let up = before.up.resized(device, slots, &self.nothing)?;
        let down = match before.down.resized(device, slots, &self.nothing) {
            Ok(down) => down,
            Err(e) => {
                up.gone(&before.up).for_each(|buffer| device.destroy(buffer));
                return Err(e);
            }
        };
        let now = Matrices { up: Arc::new(up), down: Arc::new(down) };
        *self.matrices.lock().unwrap_or_else(PoisonError::into_inner) = now.clone();
        bind(&now)?;
        let gone = before.up.gone(&now.up).chain(before.down.gone(&now.down));
        gone.for_each(|buffer| device.destroy(buffer));
        device.wait()
    }

    /// Copies experts from slot to slot, (from, to) each, in the order of the queue. Both lie in different banks.
    pub(super) fn move_slots(&self, device: &Device, moves: &[(usize, usize)]) -> Result<(), GpuError> {
        let mut encoder = device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for matrix in self.matrices().each() {
            for &(from, to) in moves {
                let (Some((source, from)), Some((target, to))) = (matrix.slot_at(from), matrix.slot_at(to)) else {
                    continue;
                };
                encoder.copy_buffer_to_buffer(source, from, target, to, matrix.slot_bytes());
            }
        }
        device.queue().submit([encoder.finish()]);
        device.check()
    }

    /// What an expert's gate, up and down matrices are packed into: gate and up rows in turn, and down's.
    pub(super) fn parts<'a>(&self, [gate, up, down]: [&'a [u8]; 3]) -> [Part<'a>; 2] {
        let matrices = self.matrices();
        [(&matrices.up, self.layouts[0], vec![gate, up]), (&matrices.down, self.layouts[1], vec![down])].map(
            |(matrix, layout, sources)| {
                let expected = layout.format.row_bytes(matrix.k).unwrap_or(0) * matrix.rows / sources.len();
                assert!(sources.iter().all(|source| source.len() == expected), "bytes of one expert's matrix");
                Part { layout, k: matrix.k, rows: matrix.rows, row_bytes: matrix.row_bytes, sources }
            },
        )
    }
}

/// One matrix of an expert, as it goes to a slot.
pub(super) struct Part<'a> {
    layout: &'static Layout,
    k: usize,
    rows: usize,
    row_bytes: usize,
    sources: Vec<&'a [u8]>, // whose rows alternate
}

impl Part<'_> {
    pub(super) fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }

    /// Its rows in pieces that stay in cache until they are copied to staging memory.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let (rows, rows_a_piece) = (self.rows, (PIECE_BYTES / self.row_bytes).max(1));
        (0..rows).step_by(rows_a_piece).map(move |first| first..(first + rows_a_piece).min(rows))
    }

    /// Packs these rows; they begin at the returned byte of the slot's matrix.
    pub(super) fn pack(&self, rows: Range<usize>, to: &mut Vec<u8>) -> usize {
        let at = rows.start * self.row_bytes;
        let source_bytes = self.sources[0].len() * self.sources.len() / self.rows;
        to.resize(rows.len() * self.row_bytes, 0);
        for (row, to) in rows.zip(to.chunks_exact_mut(self.row_bytes)) {
            let begin = row / self.sources.len() * source_bytes;
            let source = &self.sources[row % self.sources.len()][begin..begin + source_bytes];
            self.layout.pack(self.k, source, to);
        }
        at
    }
}

/// Copies a slot's matrix from staging memory.
pub(super) fn copy_to_slot(
    encoder: &mut wgpu::CommandEncoder,
    (staging, from): (&wgpu::Buffer, usize),
    matrix: &Matrix,
    slot: usize,
) {
    if let Some((bank, to)) = matrix.slot_at(slot) {
        encoder.copy_buffer_to_buffer(staging, from as u64, bank, to, matrix.slot_bytes());
    }
}

/// Bytes that are packed at a time.
const PIECE_BYTES: usize = 256 << 10;

const COPYING: u8 = 0;
const DONE: u8 = 1;
const FAILED: u8 = 2;

/// An upload on its way.
#[derive(Clone, Debug)]
pub struct Ticket(Arc<AtomicU8>);

/// Copies experts into slots, from any thread.
pub struct ExpertUploader {
    device: Device,
    pools: Arc<[Pool]>,
    stages: Vec<Stage>,
    piece: Vec<u8>,
}

/// A staging buffer of one expert; it is mapped unless its ticket says that it is being copied.
struct Stage {
    buffer: wgpu::Buffer,
    ticket: Ticket,
}

impl ExpertUploader {
    /// An uploader with so many staging buffers: uploads that may be on their way at once.
    pub(super) fn new(device: &Device, pools: &Arc<[Pool]>, in_flight: usize) -> Result<ExpertUploader, GpuError> {
        let bytes = pools.iter().map(Pool::slot_bytes).max().unwrap_or(0);
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let stages = (0..in_flight.max(1))
            .map(|_| {
                let buffer = device.buffer("staging memory of experts", bytes, usage, true)?;
                Ok(Stage { buffer, ticket: Ticket(Arc::new(AtomicU8::new(DONE))) })
            })
            .collect::<Result<_, GpuError>>()?;
        Ok(ExpertUploader { device: device.clone(), pools: Arc::clone(pools), stages, piece: vec![] })
    }

    /// Starts to copy an expert into a slot of a pool: its gate, up and down matrices as in the file. Returns when the bytes
    /// are in staging memory; `None`, at once, when all staging buffers are on their way.
    pub fn start(&mut self, pool: usize, slot: usize, bytes: [&[u8]; 3]) -> Result<Option<Ticket>, GpuError> {
        self.poll()?;
        let free = |stage: &Stage| stage.ticket.0.load(Ordering::Acquire) != COPYING;
        let Some(at) = self.stages.iter().position(free) else { return Ok(None) };
        if self.stages[at].ticket.0.load(Ordering::Acquire) == FAILED {
            return Err(self.device.lost("a staging buffer could not be mapped again".to_owned()));
        }
        let pools = Arc::clone(&self.pools);
        let pool = &pools[pool];
        let matrices = pool.matrices();
        assert!(slot < matrices.slots(), "the pool has {} slots", matrices.slots());
        let buffer = self.stages[at].buffer.clone();
        let lost = |e: &dyn std::fmt::Display| self.device.lost(e.to_string());
        let mut view = buffer.get_mapped_range_mut(..).map_err(|e| lost(&e))?;
        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut staged = 0;
        for (part, matrix) in pool.parts(bytes).iter().zip(matrices.each()) {
            for rows in part.pieces() {
                let at = staged + part.pack(rows, &mut self.piece);
                view.slice(at..at + self.piece.len()).copy_from_slice(&self.piece);
            }
            copy_to_slot(&mut encoder, (&buffer, staged), matrix, slot);
            staged += part.bytes();
        }
        drop(view);
        buffer.unmap();
        self.device.queue().submit([encoder.finish()]);
        let ticket = Ticket(Arc::new(AtomicU8::new(COPYING)));
        let news = Arc::clone(&ticket.0);
        // The buffer can be mapped again when the copy is done.
        buffer.map_async(wgpu::MapMode::Write, .., move |result| {
            news.store(if result.is_ok() { DONE } else { FAILED }, Ordering::Release);
        });
        self.stages[at].ticket = ticket.clone();
        self.device.check()?;
        Ok(Some(ticket))
    }

    /// Whether the expert lies in its slot; never waits.
    pub fn is_done(&self, ticket: &Ticket) -> Result<bool, GpuError> {
        self.poll()?;
        match ticket.0.load(Ordering::Acquire) {
            FAILED => Err(self.device.lost("an expert could not be copied to its slot".to_owned())),
            state => Ok(state == DONE),
        }
    }

    /// Waits for all uploads: for a pool that is filled before a run.
    pub fn finish(&self) -> Result<(), GpuError> {
        self.device.wait()
    }

    fn poll(&self) -> Result<(), GpuError> {
        self.device.wgpu().poll(wgpu::PollType::Poll).map_err(|e| self.device.lost(e.to_string()))?;
        self.device.check()
    }
}

impl Drop for ExpertUploader {
    fn drop(&mut self) {
        for stage in &self.stages {
            self.device.forget(&stage.buffer);
        }
    }
}
