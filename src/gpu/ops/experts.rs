//! The router and the mixture of experts.
//!
//! Few tokens: every pick's matrices are read where they lie, one dispatch for gate and up, one for down with the
//! weighted sum in it. A batch is grouped by expert on the GPU first, so that an expert's weights are decoded once for
//! all tokens that picked it. Experts are found through the slot map: a slot that is missing, or lies in another bank,
//! is simply not summed, so several banks, GPUs and the CPU can share a layer.

use std::sync::Arc;

use bytemuck::NoUninit;

use super::dense::{Input, Place, Product, plain_product, record_plain};
use super::{FEW_TOKENS, Setup};
use crate::gpu::device::GpuError;
use crate::gpu::kernels::{Kernel, gate as gate_override, tile_overrides};
use crate::gpu::matrix::{Bank, Matrix, Rows};
use crate::gpu::pipelines::{Call, Recorder};
use crate::gpu::slots::{View, padded, values_bytes};
use crate::plan::{Activation, Gating, Plan, Slot, WeightId};

/// Experts that the grouping and routing kernels hold.
pub(super) const MAX_EXPERTS: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct RouterParams {
    experts: u32,
    used: u32,
    logits_stride: u32,
    picks_stride: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ExpertsParams {
    units: u32,
    row_quads: u32,
    rows: u32,
    tokens: u32,
    used: u32,
    experts: u32,
    slots_at: u32,
    bank_first: u32,
    bank_slots: u32,
    picks_stride: u32,
    x_at: u32,
    x_stride: u32,
    out_at: u32,
    out_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct GroupParams {
    pairs: u32,
    used: u32,
    experts: u32,
    picks_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct SumParams {
    n: u32,
    used: u32,
    experts: u32,
    slots_at: u32,
    bank_first: u32,
    bank_slots: u32,
    picks_stride: u32,
    x_stride: u32,
    out_at: u32,
    out_stride: u32,
}

pub(super) fn announce_router(setup: &mut Setup, weight: WeightId) {
    let values = setup.batch * padded(setup.plan.weight(weight).rows);
    setup.want_scratch("router logits", values);
}

pub(super) fn announce(setup: &mut Setup, used: usize, down: WeightId) {
    let (n, ff) = (setup.plan.weight(down).rows, setup.plan.weight(down).k);
    setup.want_scratch("expert activations", setup.batch * used * padded(ff));
    if setup.batch > FEW_TOKENS {
        setup.want_scratch("expert outputs", setup.batch * used * padded(n));
        setup.want_scratch("expert groups", MAX_EXPERTS + 1 + setup.batch * used);
    }
}

pub(super) fn router_refusal(plan: &Plan, weight: WeightId, used: usize) -> Option<String> {
    let experts = plan.weight(weight).rows;
    (experts > MAX_EXPERTS || used > experts)
        .then(|| format!("it routes over {experts} experts, at most {MAX_EXPERTS}"))
}

/// `Op::Router`.
pub(in crate::gpu) struct Router {
    logits: (Input, Product),
    pick: Call<RouterParams>,
}

impl Router {
    pub(super) fn new(
        setup: &mut Setup,
        x: Slot,
        weight: WeightId,
        used: usize,
        gating: Gating,
        normalize: bool,
        scale: f32,
        picks: Slot,
    ) -> Result<Router, GpuError> {
        let Gating::Softmax = gating;
        let experts = setup.plan.weight(weight).rows;
        let scratch = setup.scratch("router logits")?;
        let (picks, picks_buffer) = setup.slots.of(picks);
        let view = View::alone(experts);
        let logits = plain_product(setup, weight, x, Place { view, buffer: &scratch })?;
        let params = RouterParams {
            experts: experts as u32,
            used: used as u32,
            logits_stride: view.stride as u32,
            picks_stride: picks.stride as u32,
            scale,
        };
        let overrides = [("NORMALIZE", normalize.into())];
        let pick = setup.device.call(Kernel::Router, &overrides, &[&scratch, picks_buffer], params)?;
        Ok(Router { logits, pick })
    }

    pub(super) fn record(&self, recorder: &mut Recorder, tokens: usize) {
        record_plain(&self.logits, recorder, tokens);
        recorder.dispatch(&self.pick, &self.pick.params, [tokens, 1, 1], 0);
    }
}

/// One bank of an expert matrix, ready.
struct BankCalls {
    rows_a_workgroup: usize,
    few: Call<ExpertsParams>,
    tiles: Vec<(usize, Call<ExpertsParams>)>,
    sum: Option<Call<SumParams>>,
}

/// `Op::Experts`.
pub(in crate::gpu) struct Experts {
    used: usize,
    up: Arc<Matrix>,
    down: Arc<Matrix>,
    up_banks: Vec<BankCalls>,
    down_banks: Vec<BankCalls>,
    group: Option<Call<GroupParams>>,
}

/// What both products of a layer share.
struct Layer<'a> {
    picks: (View, &'a wgpu::Buffer),
    slots: &'a wgpu::Buffer,
    groups: Option<&'a wgpu::Buffer>,
    used: usize,
}

impl Experts {
    pub(super) fn new(
        setup: &mut Setup,
        [x, picks, out]: [Slot; 3],
        used: usize,
        [gate, up, down]: [WeightId; 3],
        act: Activation,
    ) -> Result<Experts, GpuError> {
        let up = setup.matrix(Rows::Paired(gate, up))?;
        let down = setup.matrix(Rows::Stacked(vec![down]))?;
        let hidden = setup.scratch("expert activations")?;
        let batched = setup.batch > FEW_TOKENS;
        let groups = if batched { Some(setup.scratch("expert groups")?) } else { None };
        let outputs = if batched { Some(setup.scratch("expert outputs")?) } else { None };
        let slot_map = slot_map(setup, up.experts)?;
        let (x, x_buffer) = setup.slots.of(x);
        let (out, out_buffer) = setup.slots.of(out);
        let picks = setup.slots.of(picks);
        let hidden_view = View::alone(up.rows / 2);
        let outputs_view = View::alone(down.rows);
        let layer = Layer { picks, slots: &slot_map, groups: groups.as_ref(), used };

        let group = match &groups {
            None => None,
            Some(groups) => {
                let params = GroupParams {
                    pairs: 0,
                    used: used as u32,
                    experts: up.experts as u32,
                    picks_stride: picks.0.stride as u32,
                };
                Some(setup.device.call(Kernel::ExpertsGroup, &[], &[picks.1, groups], params)?)
            }
        };
        let x = Place { view: x, buffer: x_buffer };
        let hidden = Place { view: hidden_view, buffer: &hidden };
        let gate = gate_override(act);
        let mut up_banks = vec![];
        for bank in &up.banks {
            let kernel = Kernel::ExpertsGated(up.format, setup.team());
            up_banks.push(layer.bank(setup, &up, bank, kernel, gate, x, hidden, hidden)?);
        }
        let out = Place { view: out, buffer: out_buffer };
        let mut down_banks = vec![];
        for bank in &down.banks {
            let kernel = Kernel::ExpertsDown(down.format, setup.team());
            let pairs = match &outputs {
                Some(buffer) => Place { view: outputs_view, buffer },
                None => out,
            };
            let mut calls = layer.bank(setup, &down, bank, kernel, 0, hidden, out, pairs)?;
            if let Some(outputs) = &outputs {
                let few = calls.few.params;
                let params = SumParams {
                    n: down.rows as u32,
                    used: few.used,
                    experts: few.experts,
                    slots_at: few.slots_at,
                    bank_first: few.bank_first,
                    bank_slots: few.bank_slots,
                    picks_stride: few.picks_stride,
                    x_stride: outputs_view.stride as u32,
                    out_at: out.view.at as u32,
                    out_stride: out.view.stride as u32,
                };
                let buffers = [outputs, picks.1, &slot_map, out.buffer];
                calls.sum = Some(setup.device.call(Kernel::ExpertsSum, &[], &buffers, params)?);
            }
            down_banks.push(calls);
        }
        Ok(Experts { used, up, down, up_banks, down_banks, group })
    }

    pub(super) fn record(&self, recorder: &mut Recorder, tokens: usize) {
        if tokens <= FEW_TOKENS {
            self.record_few(recorder, tokens);
        } else {
            self.record_batch(recorder, tokens);
        }
    }

    fn record_few(&self, recorder: &mut Recorder, tokens: usize) {
        for (i, calls) in self.up_banks.iter().enumerate() {
            let groups = [self.up.rows.div_ceil(calls.rows_a_workgroup), self.used, tokens];
            recorder.dispatch(&calls.few, &calls.few.params, groups, self.picked_bytes(&self.up, i, tokens));
        }
        for (i, calls) in self.down_banks.iter().enumerate() {
            let groups = [self.down.rows.div_ceil(calls.rows_a_workgroup), tokens, 1];
            recorder.dispatch(&calls.few, &calls.few.params, groups, self.picked_bytes(&self.down, i, tokens));
        }
    }

    /// Bytes of the experts that so many tokens pick; counted with the first bank, whichever they lie in.
    fn picked_bytes(&self, matrix: &Matrix, bank: usize, tokens: usize) -> u64 {
        if bank == 0 { (tokens * self.used * matrix.rows * matrix.row_bytes) as u64 } else { 0 }
    }

    fn record_batch(&self, recorder: &mut Recorder, tokens: usize) {
        let Some(group) = &self.group else { return };
        let pairs = GroupParams { pairs: (tokens * self.used) as u32, ..group.params };
        recorder.dispatch(group, &pairs, [1, 1, 1], 0);
        for (matrix, banks) in [(&self.up, &self.up_banks), (&self.down, &self.down_banks)] {
            for calls in banks {
                // Few pairs an expert fill a small tile better.
                let likely = tokens * self.used / matrix.experts;
                let fits = calls.tiles.iter().find(|(tile, _)| likely <= *tile).or(calls.tiles.last());
                let Some((tile, call)) = fits else { return };
                let params = ExpertsParams { tokens: tokens as u32, ..call.params };
                let groups = [matrix.rows.div_ceil(128), matrix.experts, tokens.div_ceil(*tile)];
                let bytes = matrix.experts.min(tokens * self.used) * matrix.rows * matrix.row_bytes;
                recorder.dispatch(call, &params, groups, bytes as u64);
                if let Some(sum) = &calls.sum {
                    let groups = [(sum.params.n as usize).div_ceil(256), tokens, 1];
                    recorder.dispatch(sum, &sum.params, groups, 0);
                }
            }
        }
    }
}

impl Layer<'_> {
    /// One bank's calls: `few` writes `out`, the tiles write one row a pair to `pairs`.
    fn bank(
        &self,
        setup: &mut Setup,
        matrix: &Matrix,
        bank: &Bank,
        kernel: Kernel,
        gate: u32,
        x: Place,
        out: Place,
        pairs: Place,
    ) -> Result<BankCalls, GpuError> {
        let (picks, picks_buffer) = self.picks;
        let params = |out: View| ExpertsParams {
            units: matrix.units as u32,
            row_quads: matrix.row_quads(),
            rows: matrix.rows as u32,
            tokens: 0,
            used: self.used as u32,
            experts: matrix.experts as u32,
            slots_at: 0,
            bank_first: (bank.first_row / matrix.rows) as u32,
            bank_slots: (bank.rows / matrix.rows) as u32,
            picks_stride: picks.stride as u32,
            x_at: (x.view.at / 4) as u32,
            x_stride: (x.view.stride / 4) as u32,
            out_at: out.at as u32,
            out_stride: out.stride as u32,
        };
        let rows_a_workgroup = setup.device.rows_per_workgroup(matrix.rows);
        let mut overrides = vec![("ROWS", rows_a_workgroup)];
        if gate != 0 {
            overrides.push(("GATE", gate));
        }
        let buffers = [&bank.buffer, x.buffer, picks_buffer, self.slots, out.buffer];
        let few = setup.device.call(kernel, &overrides, &buffers, params(out.view))?;
        let mut tiles = vec![];
        if let Some(groups) = self.groups {
            for tokens in [1, usize::MAX] {
                let (tile, mut overrides) = tile_overrides(tokens);
                overrides.push(("GATE", gate));
                let buffers = [&bank.buffer, x.buffer, picks_buffer, self.slots, pairs.buffer, groups];
                let kernel = Kernel::ExpertsMatmul(matrix.format);
                tiles.push((tile, setup.device.call(kernel, &overrides, &buffers, params(pairs.view))?));
            }
        }
        Ok(BankCalls { rows_a_workgroup: rows_a_workgroup as usize, few, tiles, sum: None })
    }
}

/// The slot map of a layer whose experts all lie here, expert e in slot e.
fn slot_map(setup: &mut Setup, experts: usize) -> Result<wgpu::Buffer, GpuError> {
    let map: Vec<u32> = (0..experts as u32).collect();
    let buffer = setup.device.storage("expert slots", values_bytes(experts), "leave this layer on the CPU")?;
    setup.device.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&map));
    Ok(buffer)
}
