//! Embedding, norms, projections and the gated feed-forward.
//!
//! For a few tokens a norm is part of the product's kernel; for a batch it is a dispatch of its own into scratch
//! memory, since every tile of rows would do it again. A matrix over several banks is one dispatch a bank.

use std::sync::Arc;

use bytemuck::NoUninit;

use super::{FEW_TOKENS, NONE, RunShape, Setup, bank_bytes, has_tail};
use crate::gpu::device::Device;
use crate::gpu::error::GpuError;
use crate::gpu::kernels::{Kernel, gate as gate_override, tile_overrides};
use crate::gpu::layout::Layout;
use crate::gpu::matrix::{Matrix, Rows};
use crate::gpu::pipelines::{Call, Recorder};
use crate::gpu::slots::{View, padded, stacks};
use crate::plan::{self, GatedUp, Norm, RmsNorm, Slot, WeightId};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct LinearParams {
    units: u32,
    row_quads: u32,
    rows: u32,
    tokens: u32,
    x_at: u32,
    x_stride: u32,
    out_at: u32,
    out_stride: u32,
    bias_at: u32,
    norm_at: u32,
    k: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct NormParams {
    n: u32,
    x_at: u32,
    x_stride: u32,
    out_at: u32,
    out_stride: u32,
    norm_at: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct EmbedParams {
    units: u32,
    row_quads: u32,
    first: u32,
    rows: u32,
    n: u32,
    out_at: u32,
    out_stride: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct GateParams {
    n: u32,
    gate_stride: u32,
    out_at: u32,
    out_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct TakeRowsParams {
    n: u32,
    x_at: u32,
    x_stride: u32,
    out_at: u32,
    out_stride: u32,
    rows_at: u32,
}

/// Where a product's input lies.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub view: View,
    pub buffer: &'a wgpu::Buffer,
}

/// What a product does beside multiplying.
#[derive(Clone, Copy, Default)]
struct Extras {
    add: bool,
    gate: u32, // the GATE override
    biases: Option<u32>,
}

/// What a product reads beside its matrix, and where its result goes.
#[derive(Clone, Copy)]
struct Ends<'a> {
    /// Input of few tokens; `norm`: where the weights of its norm lie, and eps, when the kernel norms it.
    few: Place<'a>,
    norm: Option<(u32, f32)>,
    batch: Place<'a>,
    out: Place<'a>,
    vectors: &'a wgpu::Buffer,
}

/// One matrix times the input, into consecutive columns.
pub(in crate::gpu) struct Product {
    matrix: Arc<Matrix>,
    banks: Vec<BankCalls>,
}

struct BankCalls {
    rows_a_workgroup: usize,
    few: Call<LinearParams>,
    /// For a batch: tokens of a tile, and the call.
    tiles: Vec<(usize, Call<LinearParams>)>,
}

/// A step's input: the slot itself, or its norm.
pub(super) struct Input {
    /// Writes the norm to scratch; always for a batch, for few tokens only when the kernels can not.
    norm: Option<Call<NormParams>>,
    fused: Option<Norm>,
}

pub(super) fn announce_input(setup: &mut Setup, x: Slot, normed: bool) {
    if normed {
        let values = setup.batch * padded(setup.plan.slot(x).width);
        setup.want_scratch("normed", values);
    }
}

pub(super) fn announce_gated(setup: &mut Setup, op: &GatedUp) {
    announce_input(setup, op.x, op.norm.is_some());
    if Rows::Paired(op.gate, op.up).problem(setup.plan).is_some() {
        let values = setup.batch * padded(setup.plan.weight(op.gate).rows);
        setup.want_scratch("gate", values);
        setup.want_scratch("up", values);
    }
}

impl Input {
    fn new(setup: &mut Setup, x: Slot, norm: Option<Norm>, tail: bool) -> Result<Input, GpuError> {
        let Some(norm) = norm else { return Ok(Input { norm: None, fused: None }) };
        let (view, buffer) = setup.slots.of(x);
        let out = setup.scratch("normed")?;
        let to = View::alone(view.width);
        let call = norm_call(setup, (view, buffer), norm, (to, &out), false)?;
        Ok(Input { norm: Some(call), fused: (!tail).then_some(norm) })
    }

    fn record(&self, recorder: &mut Recorder, tokens: usize) {
        if let Some(norm) = &self.norm
            && (tokens > FEW_TOKENS || self.fused.is_none())
        {
            recorder.dispatch(norm, &norm.params, [tokens, 1, 1], 0);
        }
    }
}

fn norm_call(
    setup: &mut Setup,
    (x, x_buffer): (View, &wgpu::Buffer),
    norm: Norm,
    (out, out_buffer): (View, &wgpu::Buffer),
    add: bool,
) -> Result<Call<NormParams>, GpuError> {
    let params = NormParams {
        n: x.width as u32,
        x_at: x.at as u32,
        x_stride: x.stride as u32,
        out_at: out.at as u32,
        out_stride: out.stride as u32,
        norm_at: setup.vectors.norm(norm.weight),
        eps: norm.eps,
    };
    let buffers = [x_buffer, &setup.vectors.buffer, out_buffer];
    setup.device.call(Kernel::RmsNorm, &[("ADD", add.into())], &buffers, params)
}

impl Product {
    /// `out (t, rows) = matrix x`; `norm` says whether x is the slot or its norm.
    fn new(
        setup: &mut Setup,
        rows: Rows,
        x: Slot,
        input: &Input,
        out: Place,
        extras: Extras,
    ) -> Result<Product, GpuError> {
        let matrix = setup.matrix(rows)?;
        let (slot_view, slot_buffer) = setup.slots.of(x);
        let normed = if input.norm.is_some() { Some(setup.scratch("normed")?) } else { None };
        // The norm's place, for what does not norm by itself.
        let batch = match &normed {
            Some(buffer) => Place { view: View::alone(slot_view.width), buffer },
            None => Place { view: slot_view, buffer: slot_buffer },
        };
        let few = if input.fused.is_some() { Place { view: slot_view, buffer: slot_buffer } } else { batch };
        let norm = input.fused.map(|norm| (setup.vectors.norm(norm.weight), norm.eps));
        let ends = Ends { few, norm, batch, out, vectors: &setup.vectors.buffer };
        Product::over(setup.device, matrix, &ends, extras, setup.batch)
    }

    /// A matrix times `x (t, k)`, and nothing else: for measuring. `out (t, rows)`; no norm and no bias is read.
    pub(in crate::gpu) fn alone(
        device: &Device,
        matrix: Arc<Matrix>,
        [x, vectors, out]: [&wgpu::Buffer; 3],
        batch: usize,
    ) -> Result<Product, GpuError> {
        let x = Place { view: View::alone(matrix.k), buffer: x };
        let out = Place { view: View::alone(matrix.rows * matrix.experts), buffer: out };
        let ends = Ends { few: x, norm: None, batch: x, out, vectors };
        Product::over(device, matrix, &ends, Extras::default(), batch)
    }

    fn over(
        device: &Device,
        matrix: Arc<Matrix>,
        ends: &Ends,
        extras: Extras,
        batch: usize,
    ) -> Result<Product, GpuError> {
        let Ends { few: few_x, norm, batch: batch_x, out, vectors } = *ends;
        let outputs_a_row = if extras.gate == 0 { 1 } else { 2 };
        let mut banks = vec![];
        for bank in &matrix.banks {
            let params = |x: Place, norm: Option<(u32, f32)>| LinearParams {
                units: matrix.units as u32,
                row_quads: matrix.row_quads(),
                rows: bank.rows as u32,
                tokens: 0,
                x_at: (x.view.at / 4) as u32,
                x_stride: (x.view.stride / 4) as u32,
                out_at: (out.view.at + bank.first_row / outputs_a_row) as u32,
                out_stride: out.view.stride as u32,
                bias_at: extras.biases.map_or(NONE, |at| at + bank.first_row as u32),
                norm_at: norm.map_or(0, |(at, _)| at),
                k: matrix.k as u32,
                eps: norm.map_or(0.0, |(_, eps)| eps),
            };
            let rows_a_workgroup = device.rows_per_workgroup(bank.rows);
            let shared = [("ADD", extras.add.into()), ("GATE", extras.gate)];
            let mut overrides = vec![("ROWS", rows_a_workgroup), ("NORM", norm.is_some().into()), shared[0], shared[1]];
            let team = device.team();
            let kernel = match int8_blocks(&matrix) {
                Some(blocks) if device.rounds_to_int8() => {
                    overrides.push(("BLOCKS", blocks));
                    Kernel::MatvecInt8(matrix.format, team)
                }
                _ => Kernel::Matvec(matrix.format, team),
            };
            let buffers = [&bank.buffer, few_x.buffer, vectors, out.buffer];
            let few = device.call(kernel, &overrides, &buffers, params(few_x, norm))?;
            let mut tiles = vec![];
            for tokens in [FEW_TOKENS + 1, usize::MAX] {
                if batch <= FEW_TOKENS || (tokens == usize::MAX && batch <= 16) {
                    continue;
                }
                let (tile, mut overrides) = tile_overrides(tokens);
                overrides.extend(shared);
                let buffers = [&bank.buffer, batch_x.buffer, vectors, out.buffer];
                let kernel = Kernel::Matmul(matrix.format);
                tiles.push((tile, device.call(kernel, &overrides, &buffers, params(batch_x, None))?));
            }
            banks.push(BankCalls { rows_a_workgroup: rows_a_workgroup as usize, few, tiles });
        }
        Ok(Product { matrix, banks })
    }

    pub(in crate::gpu) fn record(&self, recorder: &mut Recorder, tokens: usize) {
        for (i, (calls, bank)) in self.banks.iter().zip(&self.matrix.banks).enumerate() {
            let bytes = bank_bytes(&self.matrix, i);
            if tokens <= FEW_TOKENS {
                let groups = [bank.rows.div_ceil(calls.rows_a_workgroup), tokens, 1];
                recorder.dispatch(&calls.few, &calls.few.params, groups, bytes * tokens as u64);
            } else if let Some((tile, call)) =
                calls.tiles.iter().find(|(tile, _)| tokens <= *tile).or(calls.tiles.last())
            {
                let groups = [bank.rows.div_ceil(128), tokens.div_ceil(*tile), 1];
                let params = LinearParams { tokens: tokens as u32, ..call.params };
                recorder.dispatch(call, &params, groups, bytes * groups[1] as u64);
            }
        }
    }
}

/// Blocks of 16 activations that the int8 kernel holds for a matrix; `None` when it does not take it. More than half of
/// the workgroup memory that every adapter has would leave too few workgroups at a time.
fn int8_blocks(matrix: &Matrix) -> Option<u32> {
    const BLOCK_BYTES: usize = 24;
    let blocks = matrix.k / 16;
    let packed = Layout::of(matrix.format).is_some_and(Layout::is_packed);
    (packed && blocks * BLOCK_BYTES <= 16 << 10).then_some(blocks as u32)
}

/// `plan::Embed`.
pub(in crate::gpu) struct Embed {
    matrix: Arc<Matrix>,
    banks: Vec<Call<EmbedParams>>,
}

impl Embed {
    pub(super) fn new(setup: &mut Setup, op: &plan::Embed) -> Result<Embed, GpuError> {
        let &plan::Embed { table, scale, out } = op;
        let matrix = setup.matrix(Rows::Stacked(vec![table]))?;
        let (view, buffer) = setup.slots.of(out);
        let mut banks = vec![];
        for bank in &matrix.banks {
            let params = EmbedParams {
                units: matrix.units as u32,
                row_quads: matrix.row_quads(),
                first: bank.first_row as u32,
                rows: bank.rows as u32,
                n: view.width as u32,
                out_at: view.at as u32,
                out_stride: view.stride as u32,
                scale,
            };
            let buffers = [&bank.buffer, setup.env, buffer];
            banks.push(setup.device.call(Kernel::Embed(matrix.format), &[], &buffers, params)?);
        }
        Ok(Embed { matrix, banks })
    }

    pub(super) fn record(&self, recorder: &mut Recorder, tokens: usize) {
        for (i, call) in self.banks.iter().enumerate() {
            // A token's row lies in one bank: it is counted with the first.
            let bytes = if i == 0 { (tokens * self.matrix.row_bytes) as u64 } else { 0 };
            recorder.dispatch(call, &call.params, [tokens, 1, 1], bytes);
        }
    }
}

/// `plan::RmsNorm`.
pub(in crate::gpu) struct NormStep(Call<NormParams>);

impl NormStep {
    pub(super) fn new(setup: &mut Setup, op: &RmsNorm) -> Result<NormStep, GpuError> {
        let (x, out) = (setup.slots.of(op.x), setup.slots.of(op.out));
        Ok(NormStep(norm_call(setup, x, op.norm, out, op.add)?))
    }

    pub(super) fn record(&self, recorder: &mut Recorder, tokens: usize) {
        recorder.dispatch(&self.0, &self.0.params, [tokens, 1, 1], 0);
    }
}

/// `plan::Linear`.
pub(in crate::gpu) struct Linear {
    input: Input,
    products: Vec<Product>,
}

impl Linear {
    pub(super) fn new(setup: &mut Setup, op: &plan::Linear) -> Result<Linear, GpuError> {
        let &plan::Linear { x, norm, ref parts, add } = op;
        let tail = parts.iter().map(|part| setup.plan.weight(part.weight)).any(|w| has_tail(w.format, w.k));
        let input = Input::new(setup, x, norm, tail)?;
        let mut products = vec![];
        for stack in stacks(setup.plan, parts) {
            let rows = Rows::Stacked(stack.iter().map(|part| part.weight).collect());
            let (view, buffer) = setup.slots.of(stack[0].out);
            let extras = Extras { add, gate: 0, biases: setup.vectors.biases(&stack) };
            products.push(Product::new(setup, rows, x, &input, Place { view, buffer }, extras)?);
        }
        Ok(Linear { input, products })
    }

    pub(super) fn record(&self, recorder: &mut Recorder, tokens: usize) {
        self.input.record(recorder, tokens);
        self.products.iter().for_each(|product| product.record(recorder, tokens));
    }
}

/// `plan::GatedUp`.
pub(in crate::gpu) struct Gated {
    input: Input,
    products: Vec<Product>,
    /// Where gate and up could not be paired.
    gate: Option<Call<GateParams>>,
}

impl Gated {
    pub(super) fn new(setup: &mut Setup, op: &GatedUp) -> Result<Gated, GpuError> {
        let &GatedUp { x, norm, gate, up, act, out } = op;
        let weight = setup.plan.weight(gate);
        let (ff, tail) = (weight.rows, has_tail(weight.format, weight.k));
        let input = Input::new(setup, x, norm, tail || has_tail(setup.plan.weight(up).format, weight.k))?;
        let (view, buffer) = setup.slots.of(out);
        let pair = Rows::Paired(gate, up);
        if pair.problem(setup.plan).is_none() {
            let extras = Extras { gate: gate_override(act), ..Extras::default() };
            let product = Product::new(setup, pair, x, &input, Place { view, buffer }, extras)?;
            return Ok(Gated { input, products: vec![product], gate: None });
        }
        let scratch = [setup.scratch("gate")?, setup.scratch("up")?];
        let half = View::alone(ff);
        let mut products = vec![];
        for (id, buffer) in [gate, up].into_iter().zip(&scratch) {
            let place = Place { view: half, buffer };
            products.push(Product::new(setup, Rows::Stacked(vec![id]), x, &input, place, Extras::default())?);
        }
        let params = GateParams {
            n: ff as u32,
            gate_stride: half.stride as u32,
            out_at: view.at as u32,
            out_stride: view.stride as u32,
        };
        let buffers = [&scratch[0], &scratch[1], buffer];
        let call = setup.device.call(Kernel::Gate, &[("GATE", gate_override(act))], &buffers, params)?;
        Ok(Gated { input, products, gate: Some(call) })
    }

    pub(super) fn record(&self, recorder: &mut Recorder, tokens: usize) {
        self.input.record(recorder, tokens);
        self.products.iter().for_each(|product| product.record(recorder, tokens));
        if let Some(gate) = &self.gate {
            recorder.dispatch(gate, &gate.params, [(gate.params.n as usize).div_ceil(256), tokens, 1], 0);
        }
    }
}

/// `plan::TakeRows`.
pub(in crate::gpu) struct TakeRows(Call<TakeRowsParams>);

impl TakeRows {
    pub(super) fn new(setup: &mut Setup, op: &plan::TakeRows) -> Result<TakeRows, GpuError> {
        let ((x, x_buffer), (out, out_buffer)) = (setup.slots.of(op.x), setup.slots.of(op.out));
        let params = TakeRowsParams {
            n: x.width as u32,
            x_at: x.at as u32,
            x_stride: x.stride as u32,
            out_at: out.at as u32,
            out_stride: out.stride as u32,
            rows_at: 0,
        };
        let buffers = [x_buffer, setup.env, out_buffer];
        Ok(TakeRows(setup.device.call(Kernel::TakeRows, &[], &buffers, params)?))
    }

    pub(super) fn record(&self, recorder: &mut Recorder, run: &RunShape) {
        let params = TakeRowsParams { rows_at: run.rows_at, ..self.0.params };
        recorder.dispatch(&self.0, &params, [(params.n as usize).div_ceil(256), run.rows, 1], 0);
    }
}

/// The router's logits: a plain product into scratch memory.
pub(super) fn plain_product(
    setup: &mut Setup,
    weight: WeightId,
    x: Slot,
    out: Place,
) -> Result<(Input, Product), GpuError> {
    let input = Input { norm: None, fused: None };
    let product = Product::new(setup, Rows::Stacked(vec![weight]), x, &input, out, Extras::default())?;
    Ok((input, product))
}

/// Records a product whose input needs nothing.
pub(super) fn record_plain((input, product): &(Input, Product), recorder: &mut Recorder, tokens: usize) {
    input.record(recorder, tokens);
    product.record(recorder, tokens);
}
