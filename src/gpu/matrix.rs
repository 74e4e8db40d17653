//! Matrices in GPU memory: rows of one format over one or several banks, each within the binding limit.
//!
//! A matrix may be several tensors: the parts of a projection that share their input and format lie one after the
//! other and are one product; gate and up rows alternate, so that one lane team sees both and applies the activation;
//! experts lie in slots of whole experts, and a bank holds whole slots. Slots can be given back and taken again, a whole
//! bank at a time: a bank that is gone keeps its place, so that the dispatches over banks stay the same.

use rynd_quant::Format;

use super::device::Device;
use super::error::GpuError;
use super::layout::{Layout, QUAD};
use super::upload::Uploader;
use crate::plan::{Plan, Weight, WeightId};
use crate::weights::Weights;

/// Which rows a matrix is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Rows {
    /// The tensors' rows, one tensor after the other.
    Stacked(Vec<WeightId>),
    /// Row `2 i` is row i of the first tensor (gate), `2 i + 1` of the second (up); expert by expert.
    Paired(WeightId, WeightId),
}

/// A matrix in GPU memory.
#[derive(Clone)]
pub(super) struct Matrix {
    pub format: Format,
    pub k: usize,
    pub units: usize,
    pub row_bytes: usize,
    /// Rows of one expert; of the whole matrix when there is one.
    pub rows: usize,
    pub experts: usize,
    pub banks: Vec<Bank>,
}

/// Rows of a matrix that are bound at once.
#[derive(Clone)]
pub(super) struct Bank {
    pub buffer: wgpu::Buffer,
    pub first_row: usize,
    /// 0 when its memory was given back.
    pub rows: usize,
    /// Rows when it is there.
    whole: usize,
}

impl Rows {
    fn tensors(&self) -> Vec<WeightId> {
        match self {
            Rows::Stacked(ids) => ids.clone(),
            Rows::Paired(a, b) => vec![*a, *b],
        }
    }

    /// The tensors as the plan describes them, for names and shapes.
    fn weights<'a>(&self, plan: &'a Plan) -> Vec<&'a Weight> {
        self.tensors().into_iter().map(|id| plan.weight(id)).collect()
    }

    /// Rows of one expert.
    fn expert_rows(&self, plan: &Plan) -> usize {
        self.weights(plan).iter().map(|w| w.rows).sum()
    }

    /// Rows of a bank of at most so many bytes; 0 when not even one piece fits.
    fn bank_rows(&self, plan: &Plan, row_bytes: usize, bank_bytes: u64) -> usize {
        // A bank never cuts an expert, nor a (gate, up) pair.
        let granule = match self {
            _ if self.weights(plan)[0].experts > 1 => self.expert_rows(plan),
            Rows::Stacked(_) => 1,
            Rows::Paired(..) => 2,
        };
        bank_bytes as usize / row_bytes / granule * granule
    }

    /// Banks that the matrix takes.
    pub(super) fn banks(&self, plan: &Plan, bank_bytes: u64) -> usize {
        let first = self.weights(plan)[0];
        let Some(layout) = Layout::of(first.format) else { return 0 };
        let rows = self.expert_rows(plan) * first.experts;
        rows.div_ceil(self.bank_rows(plan, layout.row_bytes(first.k), bank_bytes).max(1))
    }

    /// Why these rows can not be one matrix on a GPU.
    pub(super) fn problem(&self, plan: &Plan) -> Option<String> {
        let weights = self.weights(plan);
        if let Some(unknown) = weights.iter().find(|w| Layout::of(w.format).is_none()) {
            return Some(format!("no kernel decodes {} ('{}')", unknown.format, unknown.name));
        }
        let first = weights[0];
        let differs = |w: &&&Weight| (w.format, w.k, w.experts) != (first.format, first.k, first.experts);
        weights.iter().find(differs).map(|w| {
            format!(
                "'{}' is {} and '{}' is {}: they can not share a kernel",
                first.name, first.format, w.name, w.format
            )
        })
    }
}

impl Matrix {
    /// Uploads the rows.
    pub(super) fn upload(
        device: &Device,
        uploader: &mut Uploader,
        weights: &Weights,
        rows: &Rows,
    ) -> Result<Matrix, GpuError> {
        let plan = weights.plan();
        let tensors = rows.weights(plan);
        let first = tensors[0];
        let what = tensors.iter().map(|w| w.name.as_str()).collect::<Vec<_>>().join("+");
        let unsupported = |why: String| GpuError::Unsupported { what: what.clone(), why };
        if let Some(why) = rows.problem(plan) {
            return Err(unsupported(why));
        }
        let Some(layout) = Layout::of(first.format) else { return Err(unsupported("unknown format".to_owned())) };
        let row_bytes = layout.row_bytes(first.k);
        let expert_rows = rows.expert_rows(plan);
        let all = expert_rows * first.experts;
        let most = rows.bank_rows(plan, row_bytes, device.binding_bytes());
        if most == 0 {
            return Err(too_large(device, what, expert_rows * row_bytes));
        }
        let sources: Vec<(&[u8], usize)> =
            rows.tensors().into_iter().map(|id| (weights.bytes(id), plan.weight(id).row_bytes())).collect();
        let source = |row: usize| -> &[u8] {
            let (tensor, row) = match rows {
                Rows::Stacked(_) => {
                    let mut row = row;
                    let mut tensor = 0;
                    while row >= tensors[tensor].rows * first.experts {
                        row -= tensors[tensor].rows * first.experts;
                        tensor += 1;
                    }
                    (tensor, row)
                }
                Rows::Paired(..) => (row % 2, row / 2),
            };
            let (bytes, row_bytes) = sources[tensor];
            &bytes[row * row_bytes..(row + 1) * row_bytes]
        };
        let pack = |row: usize, to: &mut [u8]| layout.pack(first.k, source(row), to);
        let mut banks = vec![];
        for first_row in (0..all).step_by(most) {
            let end = (first_row + most).min(all);
            let buffer = uploader.rows(&what, first_row..end, row_bytes, &pack)?;
            banks.push(Bank { buffer, first_row, rows: end - first_row, whole: end - first_row });
        }
        // The device has the bytes now; the file's pages need not stay in memory beside them.
        rows.tensors().into_iter().for_each(|id| weights.release(id));
        Ok(Matrix {
            format: first.format,
            k: first.k,
            units: layout.units(first.k),
            row_bytes,
            rows: expert_rows,
            experts: first.experts,
            banks,
        })
    }

    /// Room for matrices of (rows, k), one a slot, whose bytes come later. A bank ends at each of the rising `cuts`, numbers
    /// of slots, and the last cut is all of them. `nothing` is bound in place of banks that are gone.
    pub(super) fn slots(
        device: &Device,
        layout: &Layout,
        [rows, k]: [usize; 2],
        cuts: &[usize],
        nothing: &wgpu::Buffer,
    ) -> Result<Matrix, GpuError> {
        let row_bytes = layout.row_bytes(k);
        let most = device.binding_bytes() as usize / row_bytes / rows * rows;
        if most == 0 {
            return Err(too_large(device, "an expert".to_owned(), rows * row_bytes));
        }
        let bank = |first_row, whole| Bank { buffer: nothing.clone(), first_row, rows: 0, whole };
        let mut banks = vec![];
        let mut first_row = 0;
        for cut in cuts {
            while first_row < cut * rows {
                let whole = most.min(cut * rows - first_row);
                banks.push(bank(first_row, whole));
                first_row += whole;
            }
        }
        // A dispatch binds something even when there is no slot.
        if banks.is_empty() {
            banks.push(bank(0, 0));
        }
        let empty = Matrix { format: layout.format, k, units: layout.units(k), row_bytes, rows, experts: 0, banks };
        empty.resized(device, cuts.last().copied().unwrap_or(0), nothing)
    }

    /// The matrix with so many slots: banks within them that are gone come back, empty, and banks beyond are left out. Their
    /// buffers are the caller's to destroy, see `gone`.
    pub(super) fn resized(&self, device: &Device, slots: usize, nothing: &wgpu::Buffer) -> Result<Matrix, GpuError> {
        let end = slots * self.rows;
        let cut = |bank: &Bank| bank.first_row < end && end < bank.first_row + bank.whole;
        assert!(!self.banks.iter().any(cut), "{slots} slots end within a bank");
        let mut resized = Matrix { experts: slots, ..self.clone() };
        let mut made = vec![];
        for bank in &mut resized.banks {
            let rows = if bank.first_row < end { bank.whole } else { 0 };
            if rows == bank.rows {
                continue;
            }
            bank.rows = rows;
            if rows == 0 {
                bank.buffer = nothing.clone();
                continue;
            }
            let bytes = (rows * self.row_bytes) as u64;
            match device.storage("expert slots", bytes, "use fewer expert slots") {
                Ok(buffer) => {
                    made.push(buffer.clone());
                    bank.buffer = buffer;
                }
                Err(e) => {
                    made.iter().for_each(|buffer| device.destroy(buffer));
                    return Err(e);
                }
            }
        }
        Ok(resized)
    }

    /// Buffers of banks that the other form of the same matrix has no more.
    pub(super) fn gone<'a>(&'a self, now: &'a Matrix) -> impl Iterator<Item = &'a wgpu::Buffer> {
        let banks = self.banks.iter().zip(&now.banks);
        banks.filter(|(before, now)| before.rows > now.rows).map(|(before, _)| &before.buffer)
    }

    /// Where a slot lies: its bank's buffer and the first byte there.
    pub(super) fn slot_at(&self, slot: usize) -> Option<(&wgpu::Buffer, u64)> {
        let row = slot * self.rows;
        let bank = self.banks.iter().find(|bank| (bank.first_row..bank.first_row + bank.rows).contains(&row))?;
        Some((&bank.buffer, ((row - bank.first_row) * self.row_bytes) as u64))
    }

    /// Bytes of one slot.
    pub(super) fn slot_bytes(&self) -> u64 {
        (self.rows * self.row_bytes) as u64
    }

    /// vec4 of a row.
    pub(super) fn row_quads(&self) -> u32 {
        (self.row_bytes / QUAD) as u32
    }
}

/// One expert, or one row, that no binding holds.
fn too_large(device: &Device, what: String, bytes: usize) -> GpuError {
    GpuError::TooLarge {
        adapter: device.report().name.clone(),
        what,
        bytes: bytes as u64,
        limit: device.binding_bytes(),
        advice: "leave this layer on the CPU with --gpu-layers",
    }
}
