//! The router and the mixture of experts.
//!
//! Few tokens: every pick's matrices are read where they lie, one dispatch for gate and up, one for down with the
//! weighted sum in it. A batch is grouped by expert on the GPU first, so that an expert's weights are decoded once for
//! all tokens that picked it. Experts are found through the slot map: a slot that is missing, or lies in another bank,
//! is simply not summed, so several banks, GPUs and the CPU can share a layer. A dispatch serves three banks at once.

use std::sync::Arc;

use bytemuck::NoUninit;

use super::dense::{Input, Place, Product, plain_product, record_plain};
use super::{FEW_TOKENS, Setup};
use crate::gpu::device::Device;
use crate::gpu::error::GpuError;
use crate::gpu::expert_slots::{Half, Matrices, Pool};
use crate::gpu::kernels::{Kernel, gate as gate_override, tile_overrides};
use crate::gpu::matrix::{Bank, Matrix, Rows};
use crate::gpu::pipelines::{Call, Recorder};
use crate::gpu::slots::{View, padded, values_bytes};
use crate::plan::{self, Plan, Routing, Score, Slot, WeightId};

/// Experts that the grouping and routing kernels hold.
pub(super) const MAX_EXPERTS: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct RouterParams {
    experts: u32,
    used: u32,
    logits_stride: u32,
    weights_at: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ExpertsParams {
    units: u32,
    row_quads: u32,
    rows: u32,
    used: u32,
    experts: u32,
    slots_at: u32,
    first_slot: u32,
    slot_count: u32,
    second_bank: u32,
    third_bank: u32,
    weights_at: u32,
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
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct SumParams {
    n: u32,
    used: u32,
    experts: u32,
    slots_at: u32,
    slot_count: u32,
    x_stride: u32,
    out_at: u32,
    out_stride: u32,
}

pub(super) fn announce_router(setup: &mut Setup, op: &plan::Router) {
    let values = setup.batch * padded(setup.plan.weight(op.weight).rows);
    setup.want_scratch("router logits", values);
}

pub(super) fn announce(setup: &mut Setup, op: &plan::Experts) {
    let (used, down) = (op.used, op.down);
    let (n, ff) = (setup.plan.weight(down).rows, setup.plan.weight(down).k);
    setup.want_scratch("expert activations", setup.batch * used * padded(ff));
    if setup.batch > FEW_TOKENS {
        setup.want_scratch("expert outputs", setup.batch * used * padded(n));
        setup.want_scratch("expert groups", MAX_EXPERTS + 1 + setup.batch * used);
    }
}

pub(super) fn router_refusal(plan: &Plan, op: &plan::Router) -> Option<String> {
    let experts = plan.weight(op.weight).rows;
    if experts > MAX_EXPERTS || op.routing.used > experts {
        return Some(format!("it routes over {experts} experts, at most {MAX_EXPERTS}"));
    }
    let why = || "it chooses experts by more than the softmax of their logits".to_owned();
    normalizes(&op.routing).is_none().then(why)
}

/// Whether the kernel, which knows the softmax alone, divides by the sum over the chosen experts or over all; `None` where
/// it would choose or weigh wrongly. The softmax over those that were chosen is that over all, divided by their sum.
fn normalizes(routing: &Routing) -> Option<bool> {
    let normalizes = match routing.score {
        Score::Softmax => Some(routing.normalize),
        Score::SoftmaxAfter => Some(true),
        Score::Sigmoid => None,
    };
    normalizes.filter(|_| routing.is_by_logits())
}

/// Where a router's weights begin in the buffer that holds its ids too.
fn picks<'a>(setup: &Setup<'a>, [ids, weights]: [Slot; 2]) -> (u32, &'a wgpu::Buffer) {
    let (_, buffer) = setup.slots.of(ids);
    (setup.slots.of(weights).0.base as u32, buffer)
}

/// `plan::Router`.
pub(in crate::gpu) struct Router {
    logits: (Input, Product),
    pick: Call<RouterParams>,
}

impl Router {
    pub(super) fn new(setup: &mut Setup, op: &plan::Router) -> Result<Router, GpuError> {
        let &plan::Router { x, weight, routing, ids, weights } = op;
        let Some(normalize) = normalizes(&routing) else {
            let why = "the kernel knows only the softmax of the logits".to_owned();
            return Err(GpuError::Unsupported { what: "this router".to_owned(), why });
        };
        let experts = setup.plan.weight(weight).rows;
        let scratch = setup.scratch("router logits")?;
        let (weights_at, picks) = picks(setup, [ids, weights]);
        let view = View::alone(experts);
        let logits = plain_product(setup, weight, x, Place { view, buffer: &scratch })?;
        let params = RouterParams {
            experts: experts as u32,
            used: routing.used as u32,
            logits_stride: view.stride as u32,
            weights_at,
            scale: routing.scale,
        };
        let overrides = [("NORMALIZE", normalize.into())];
        let pick = setup.device.call(Kernel::Router, &overrides, &[&scratch, picks], params)?;
        Ok(Router { logits, pick })
    }

    pub(super) fn record(&self, recorder: &mut Recorder, tokens: usize) {
        record_plain(&self.logits, recorder, tokens);
        recorder.dispatch(&self.pick, &self.pick.params, [tokens, 1, 1], 0);
    }
}

/// Banks that a dispatch serves, at most: with the other buffers eight are bound, as many as every adapter has.
pub(in crate::gpu) const BANKS: usize = 3;

/// The calls for some banks of an expert matrix.
struct BankCalls {
    rows_a_workgroup: usize,
    few: Call<ExpertsParams>,
    tiles: Vec<(usize, Call<ExpertsParams>)>,
}

/// `plan::Experts`.
pub(in crate::gpu) struct Experts {
    used: usize,
    weights: ExpertWeights,
    up_banks: Vec<BankCalls>,
    down_banks: Vec<BankCalls>,
    /// For a batch: the grouping of its pairs, and the sum over a token's.
    batch: Option<(Call<GroupParams>, Call<SumParams>)>,
}

/// A layer's experts on this device: all of them, or those that have a slot.
#[derive(Clone)]
pub(in crate::gpu) struct ExpertWeights {
    pub up: Arc<Matrix>, // gate and up rows in turn
    pub down: Arc<Matrix>,
    pub experts: usize,
    pub map: wgpu::Buffer, // slots of experts
    pub map_at: u32,
    /// Whether every expert has a slot.
    pub complete: bool,
}

/// What both products of a layer share.
struct Layer<'a> {
    /// Where the weights begin, and the buffer.
    picks: (u32, &'a wgpu::Buffer),
    weights: &'a ExpertWeights,
    groups: Option<&'a wgpu::Buffer>,
    used: usize,
}

impl Experts {
    pub(in crate::gpu) fn new(
        setup: &mut Setup,
        op: &plan::Experts,
        weights: ExpertWeights,
    ) -> Result<Experts, GpuError> {
        let &plan::Experts { x, ids, weights: mixing, used, act, out, .. } = op;
        let ExpertWeights { up, down, .. } = &weights;
        let hidden = setup.scratch("expert activations")?;
        let batched = setup.batch > FEW_TOKENS;
        let groups = if batched { Some(setup.scratch("expert groups")?) } else { None };
        let outputs = if batched { Some(setup.scratch("expert outputs")?) } else { None };
        let (x, x_buffer) = setup.slots.of(x);
        let (out, out_buffer) = setup.slots.of(out);
        let picks = picks(setup, [ids, mixing]);
        let layer = Layer { picks, weights: &weights, groups: groups.as_ref(), used };

        let x = Place { view: x, buffer: x_buffer };
        let hidden = Place { view: View::alone(up.rows / 2), buffer: &hidden };
        let out = Place { view: out, buffer: out_buffer };
        let pairs = match &outputs {
            Some(buffer) => Place { view: View::alone(down.rows), buffer },
            None => out,
        };
        let kernel = Kernel::ExpertsGated(up.format, setup.team());
        let up_banks = layer.calls(setup, up, kernel, gate_override(act), [x, hidden, hidden])?;
        let kernel = Kernel::ExpertsDown(down.format, setup.team());
        let down_banks = layer.calls(setup, down, kernel, 0, [hidden, out, pairs])?;

        let batch = match (&groups, &outputs) {
            (Some(groups), Some(outputs)) => {
                let experts = weights.experts as u32;
                let params = GroupParams { pairs: 0, used: used as u32, experts };
                let group = setup.device.call(Kernel::ExpertsGroup, &[], &[picks.1, groups], params)?;
                let params = SumParams {
                    n: down.rows as u32,
                    used: used as u32,
                    experts,
                    slots_at: weights.map_at,
                    slot_count: down.experts as u32,
                    x_stride: pairs.view.stride as u32,
                    out_at: out.view.at as u32,
                    out_stride: out.view.stride as u32,
                };
                let buffers = [outputs, picks.1, &weights.map, out.buffer];
                Some((group, setup.device.call(Kernel::ExpertsSum, &[], &buffers, params)?))
            }
            _ => None,
        };
        Ok(Experts { used, weights, up_banks, down_banks, batch })
    }

    pub(super) fn record(&self, recorder: &mut Recorder, tokens: usize) {
        self.record_wave(recorder, tokens, false);
    }

    /// The same; `grouped`: the last experts' step on this device was for the same picks.
    pub(in crate::gpu) fn record_wave(&self, recorder: &mut Recorder, tokens: usize, grouped: bool) {
        if tokens <= FEW_TOKENS {
            self.record_few(recorder, tokens);
        } else {
            self.record_batch(recorder, tokens, grouped);
        }
    }

    fn record_few(&self, recorder: &mut Recorder, tokens: usize) {
        let ExpertWeights { up, down, .. } = &self.weights;
        for (i, calls) in self.up_banks.iter().enumerate().filter(|(_, calls)| calls.has_slots()) {
            let groups = [up.rows.div_ceil(calls.rows_a_workgroup), self.used, tokens];
            recorder.dispatch(&calls.few, &calls.few.params, groups, self.picked_bytes(up, i, tokens));
        }
        for (i, calls) in self.down_banks.iter().enumerate().filter(|(_, calls)| calls.has_slots()) {
            let groups = [down.rows.div_ceil(calls.rows_a_workgroup), tokens, 1];
            recorder.dispatch(&calls.few, &calls.few.params, groups, self.picked_bytes(down, i, tokens));
        }
    }

    /// Bytes of the experts that so many tokens pick, counted with the first banks, whichever they lie in. What of a
    /// pool is read is known to the GPU alone: none is counted.
    fn picked_bytes(&self, matrix: &Matrix, banks: usize, tokens: usize) -> u64 {
        let counted = banks == 0 && self.weights.complete;
        if counted { (tokens * self.used * matrix.rows * matrix.row_bytes) as u64 } else { 0 }
    }

    fn record_batch(&self, recorder: &mut Recorder, tokens: usize, grouped: bool) {
        let Some((group, sum)) = &self.batch else { return };
        let ExpertWeights { up, down, experts, .. } = &self.weights;
        let pairs = GroupParams { pairs: (tokens * self.used) as u32, ..group.params };
        if !grouped {
            recorder.dispatch(group, &pairs, [1, 1, 1], 0);
        }
        for (matrix, banks) in [(up, &self.up_banks), (down, &self.down_banks)] {
            for (i, calls) in banks.iter().enumerate().filter(|(_, calls)| calls.has_slots()) {
                // Few pairs an expert fill a small tile better.
                let likely = tokens * self.used / experts;
                let fits = calls.tiles.iter().find(|(tile, _)| likely <= *tile).or(calls.tiles.last());
                let Some((tile, call)) = fits else { return };
                let groups = [matrix.rows.div_ceil(128), *experts, tokens.div_ceil(*tile)];
                let bytes = self.picked_bytes(matrix, i, tokens.min(experts.div_ceil(self.used)));
                recorder.dispatch(call, &call.params, groups, bytes);
            }
        }
        recorder.dispatch(sum, &sum.params, [(sum.params.n as usize).div_ceil(256), tokens, 1], 0);
    }

    /// Takes experts from these slots from now on: those of the same pool, some of whose banks came or went.
    pub(in crate::gpu) fn rebind(&mut self, device: &Device, now: &Matrices) -> Result<(), GpuError> {
        for (matrix, calls) in [(&now.up, &mut self.up_banks), (&now.down, &mut self.down_banks)] {
            for (banks, calls) in matrix.banks.chunks(BANKS).zip(calls) {
                let slots = banks.iter().map(|bank| bank.rows / matrix.rows).sum::<usize>() as u32;
                for call in [&mut calls.few].into_iter().chain(calls.tiles.iter_mut().map(|(_, call)| call)) {
                    call.params.slot_count = slots;
                    device.rebind(call, 0, &bound(banks))?;
                }
            }
        }
        if let Some((_, sum)) = &mut self.batch {
            sum.params.slot_count = now.slots() as u32;
        }
        (self.weights.up, self.weights.down) = (Arc::clone(&now.up), Arc::clone(&now.down));
        Ok(())
    }
}

impl BankCalls {
    /// Whether some bank is there: else there is nothing to do.
    fn has_slots(&self) -> bool {
        self.few.params.slot_count > 0
    }
}

/// The buffers of a dispatch's banks: the last one stands in for those that are not.
fn bound(banks: &[Bank]) -> [&wgpu::Buffer; BANKS] {
    std::array::from_fn(|i| &banks[i.min(banks.len() - 1)].buffer)
}

impl Layer<'_> {
    /// The calls for all banks of a matrix: for few tokens from `x` to `out`, for a batch one row a pair to `pairs`.
    fn calls(
        &self,
        setup: &Setup,
        matrix: &Matrix,
        kernel: Kernel,
        gate: u32,
        [x, out, pairs]: [Place; 3],
    ) -> Result<Vec<BankCalls>, GpuError> {
        matrix
            .banks
            .chunks(BANKS)
            .map(|banks| self.bank_calls(setup, matrix, banks, kernel, gate, [x, out, pairs]))
            .collect()
    }

    fn bank_calls(
        &self,
        setup: &Setup,
        matrix: &Matrix,
        banks: &[Bank],
        kernel: Kernel,
        gate: u32,
        [x, out, pairs]: [Place; 3],
    ) -> Result<BankCalls, GpuError> {
        let (weights_at, picks) = self.picks;
        let slots = |rows: usize| (rows / matrix.rows) as u32;
        let start = |bank: usize| banks.get(bank).map_or(u32::MAX, |bank| slots(bank.first_row - banks[0].first_row));
        let params = |out: View| ExpertsParams {
            units: matrix.units as u32,
            row_quads: matrix.row_quads(),
            rows: matrix.rows as u32,
            used: self.used as u32,
            experts: self.weights.experts as u32,
            slots_at: self.weights.map_at,
            first_slot: slots(banks[0].first_row),
            slot_count: slots(banks.iter().map(|bank| bank.rows).sum()),
            second_bank: start(1),
            third_bank: start(2),
            weights_at,
            x_at: (x.view.at / 4) as u32,
            x_stride: (x.view.stride / 4) as u32,
            out_at: out.at as u32,
            out_stride: out.stride as u32,
        };
        let [first, second, third] = bound(banks);
        let inputs = [first, second, third, x.buffer, picks, &self.weights.map];
        let rows_a_workgroup = setup.device.rows_per_workgroup(matrix.rows);
        let count = ("BANKS", banks.len() as u32);
        let mut overrides = vec![("ROWS", rows_a_workgroup), count];
        if gate != 0 {
            overrides.push(("GATE", gate));
        }
        let buffers = [&inputs[..], &[out.buffer]].concat();
        let few = setup.device.call(kernel, &overrides, &buffers, params(out.view))?;
        let mut tiles = vec![];
        if let Some(groups) = self.groups {
            for tokens in [1, usize::MAX] {
                let (tile, mut overrides) = tile_overrides(tokens);
                overrides.extend([("GATE", gate), count]);
                let buffers = [&inputs[..], &[pairs.buffer, groups]].concat();
                let kernel = Kernel::ExpertsMatmul(matrix.format);
                tiles.push((tile, setup.device.call(kernel, &overrides, &buffers, params(pairs.view))?));
            }
        }
        Ok(BankCalls { rows_a_workgroup: rows_a_workgroup as usize, few, tiles })
    }
}

impl ExpertWeights {
    /// All experts of the layer, uploaded: expert e lies in slot e.
    pub(super) fn whole(setup: &mut Setup, [gate, up, down]: [WeightId; 3]) -> Result<ExpertWeights, GpuError> {
        let up = setup.matrix(Rows::Paired(gate, up))?;
        let down = setup.matrix(Rows::Stacked(vec![down]))?;
        let experts = up.experts;
        let map = slot_map(setup, experts)?;
        Ok(ExpertWeights { up, down, experts, map, map_at: 0, complete: true })
    }

    /// The step's part of a pool.
    pub(super) fn pooled(pool: &Pool, map_at: u32) -> ExpertWeights {
        let Matrices { up, down } = pool.matrices();
        ExpertWeights { up, down, experts: pool.experts, map: pool.map.clone(), map_at, complete: false }
    }

    /// What passes through this half of a pool's room for waves.
    pub(in crate::gpu) fn passing(pool: &Pool, half: &Half) -> ExpertWeights {
        let Matrices { up, down } = half.matrices.clone();
        ExpertWeights { up, down, experts: pool.experts, map: half.map.clone(), map_at: 0, complete: false }
    }
}

/// The slot map of a layer whose experts all lie here, expert e in slot e.
fn slot_map(setup: &mut Setup, experts: usize) -> Result<wgpu::Buffer, GpuError> {
    let map: Vec<u32> = (0..experts as u32).collect();
    let buffer = setup.device.storage("expert slots", values_bytes(experts), "leave this layer on the CPU")?;
    setup.device.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&map));
    Ok(buffer)
}
