//! Placement: which side runs each step, and what must cross from one to another.
//!
//! Layers go to GPUs whole and in order, the first ones to the CPU when not all fit: the residual stream then crosses
//! once a boundary. The embedding stays with the CPU unless everything fits (its table is large and a token reads one
//! row of it); the head goes with the last layer. What a GPU refuses stays on the CPU, step by step. A `Move` is put in
//! front of a step whose input is valid on other sides only, and of no other.

use std::collections::HashMap;
use std::ops::Range;

use super::{Embed, Memory, Move, Op, Plan, Sections, Side, Slot, Step, WeightId, mixtures};

/// The side of each part of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sides {
    pub embed: Side,
    pub layers: Vec<Side>, // by layer
    /// Everything after the last layer.
    pub head: Side,
    /// Where the experts of every layer go, when not with their layer.
    pub experts: Option<Side>,
}

/// What layers may be put on.
pub struct Room<'a> {
    /// Bytes that each GPU has for weights and caches.
    pub gpus: &'a [u64],
    /// Layers on GPUs, at most; the head counts as one more.
    pub gpu_layers: Option<usize>,
    /// Bytes of one cache, or of the states of all sequences.
    pub memory_bytes: &'a dyn Fn(Memory) -> u64,
    /// Bytes of one weight.
    pub weight_bytes: &'a dyn Fn(WeightId) -> u64,
    /// Whether the experts stay on the CPU.
    pub experts_on_cpu: bool,
    /// Whether all GPUs get a share by their room, in place of as few as possible.
    pub spread: bool,
}

/// A stretch of a placed plan that one side runs, or values on their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `wanted`: slots that it writes last before another side reads them; the logits too.
    Run { side: Side, steps: Range<usize>, wanted: Vec<Slot> },
    /// Neighbouring moves between the same two sides.
    Move { from: Side, to: Side, steps: Range<usize>, slots: Vec<Slot> },
}

impl Stage {
    /// The steps it stands for.
    pub fn steps(&self) -> Range<usize> {
        match self {
            Stage::Run { steps, .. } | Stage::Move { steps, .. } => steps.clone(),
        }
    }
}

impl Sides {
    /// Everything on one side.
    pub fn all(plan: &Plan, side: Side) -> Sides {
        Sides { embed: side, layers: vec![side; plan.layers], head: side, experts: None }
    }

    /// As many layers on GPUs as have room, from the last one down; the GPUs in order of layers.
    pub fn fit(plan: &Plan, room: &Room) -> Sides {
        let mut sides = Sides::all(plan, Side::Cpu);
        if room.experts_on_cpu {
            sides.experts = Some(Side::Cpu);
        }
        let layer_bytes: Vec<u64> = (0..plan.layers as u32).map(|l| part_bytes(plan, room, Part::Layer(l))).collect();
        let head = part_bytes(plan, room, Part::Head);
        let mut most = room.gpu_layers.unwrap_or(usize::MAX);
        let mut filling = Filling::new(room, head + layer_bytes.iter().sum::<u64>());
        // A head that is too large for the last GPU stays behind; the layers do without.
        let head_fits = room.gpus.last().is_some_and(|&bytes| bytes >= head);
        if head_fits
            && most > 0
            && let Some(side) = filling.next(head)
        {
            sides.head = side;
            most -= 1;
        }
        for (side, &bytes) in sides.layers.iter_mut().zip(&layer_bytes).rev().take(most) {
            let Some(gpu) = filling.next(bytes) else { return sides };
            *side = gpu;
        }
        let first = sides.layers.first().copied().unwrap_or(sides.head);
        let Side::Gpu(gpu) = first else { return sides };
        // A tied table lies on the head's GPU already; another needs room of its own on the first one.
        let tied = is_tied(plan) && first == sides.head;
        if tied || filling.left[gpu as usize] >= part_bytes(plan, room, Part::Embed) {
            sides.embed = first;
        }
        sides
    }

    /// How many layers are on GPUs, the head counted as one.
    pub fn on_gpus(&self) -> usize {
        self.layers.iter().chain([&self.head]).filter(|side| **side != Side::Cpu).count()
    }
}

/// GPUs being filled, from the last one down.
struct Filling {
    left: Vec<u64>,
    /// Bytes that each GPU should get.
    shares: Vec<u64>,
    gpu: usize, // one more than the index of the current one
}

impl Filling {
    fn new(room: &Room, wanted: u64) -> Filling {
        let all: u128 = room.gpus.iter().map(|&bytes| u128::from(bytes)).sum();
        let share = |bytes: u64| match room.spread {
            true => (u128::from(bytes) * u128::from(wanted) / all.max(1)) as u64,
            false => bytes,
        };
        Filling {
            left: room.gpus.to_vec(),
            shares: room.gpus.iter().map(|&bytes| share(bytes)).collect(),
            gpu: room.gpus.len(),
        }
    }

    /// The GPU that so many bytes go to.
    fn next(&mut self, bytes: u64) -> Option<Side> {
        while self.gpu > 0 {
            let at = self.gpu - 1;
            // The first one takes what is left over, and every other at most half a part more than its share.
            let in_share = at == 0 || self.shares[at] >= bytes / 2;
            if self.left[at] >= bytes && in_share {
                self.left[at] -= bytes;
                self.shares[at] = self.shares[at].saturating_sub(bytes);
                return Some(Side::Gpu(at as u8));
            }
            self.gpu -= 1;
        }
        None
    }
}

/// A part of a model that is placed whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Embed,
    Layer(u32),
    Head,
}

fn part_of(plan: &Plan, step: usize) -> Part {
    match plan.steps[step].layer {
        Some(layer) => Part::Layer(layer),
        None if plan.sections.head.contains(&step) => Part::Head,
        None => Part::Embed,
    }
}

/// Bytes of weights and cache of a part.
fn part_bytes(plan: &Plan, room: &Room, part: Part) -> u64 {
    let is_in = |at: usize, step: &Step| part_of(plan, at) == part && !(room.experts_on_cpu && step.op.is_experts());
    let steps = plan.steps.iter().enumerate().filter(|(at, step)| is_in(*at, step));
    let mut weights: Vec<WeightId> = steps.flat_map(|(_, step)| step.op.weights()).collect();
    weights.sort_unstable();
    weights.dedup();
    let memories: u64 = plan.memories(is_in).into_iter().map(room.memory_bytes).sum();
    memories + weights.iter().map(|id| (room.weight_bytes)(*id)).sum::<u64>()
}

/// Whether the embedding's table is also the head's matrix.
fn is_tied(plan: &Plan) -> bool {
    let table = plan.steps.iter().find_map(|step| {
        let Op::Embed(Embed { table, .. }) = step.op else { return None };
        Some(table)
    });
    let multiplies = |step: &Step, table| matches!(step.op, Op::Linear(_)) && step.op.weights().contains(&table);
    table.is_some_and(|table| plan.steps.iter().any(|step| multiplies(step, table)))
}

/// The plan with every step on its side and every `Move` that this needs. `refuses` says what a GPU can not run; who shares
/// a sequence's memory with such a step stays on the CPU with it.
pub fn place(plan: &Plan, sides: &Sides, refuses: &dyn Fn(&Op) -> bool) -> Plan {
    let mut placed = Plan { steps: vec![], ..plan.clone() };
    let refused = plan.memories(|_, step| refuses(&step.op));
    let stays = |op: &Op| refuses(op) || op.memories().iter().any(|memory| refused.contains(memory));
    let mut now_at = vec![]; // where each step is now, its moves before it
    let mut valid: HashMap<Slot, Vec<Side>> = HashMap::new();
    for (at, step) in plan.steps.iter().enumerate() {
        let wanted = match (part_of(plan, at), sides.experts) {
            (_, Some(side)) if step.op.is_experts() => side,
            (Part::Embed, _) => sides.embed,
            (Part::Layer(layer), _) => sides.layers[layer as usize],
            (Part::Head, _) => sides.head,
        };
        now_at.push(placed.steps.len());
        let side = if wanted != Side::Cpu && stays(&step.op) { Side::Cpu } else { wanted };
        for slot in step.op.reads() {
            let here = valid.entry(slot).or_default();
            if !here.is_empty() && !here.contains(&side) {
                here.push(side);
                placed.steps.push(Step { op: Op::Move(Move { slot }), layer: step.layer, side });
            }
        }
        for slot in step.op.writes() {
            valid.insert(slot, vec![side]);
        }
        placed.steps.push(Step { side, ..step.clone() });
    }
    now_at.push(placed.steps.len());
    let moved = |section: &Range<usize>| now_at[section.start]..now_at[section.end];
    let Sections { body, head, draft } = &plan.sections;
    placed.sections = Sections { body: moved(body), head: moved(head), draft: moved(draft) };
    placed.mixtures = mixtures(&placed.steps);
    placed
}

/// The order of work of a placed plan.
pub fn stages(plan: &Plan) -> Vec<Stage> {
    let mut stages: Vec<Stage> = vec![];
    let mut writer: HashMap<Slot, (usize, Side)> = HashMap::new(); // the stage that wrote a slot last, and its side
    let want = |stages: &mut Vec<Stage>, slot: Slot, at: usize| {
        if let Some(Stage::Run { wanted, .. }) = stages.get_mut(at)
            && !wanted.contains(&slot)
        {
            wanted.push(slot);
        }
    };
    for (at, step) in plan.steps.iter().enumerate() {
        if let Op::Move(Move { slot }) = step.op {
            // A slot that nobody wrote holds nothing that could move.
            let Some(&(written, from)) = writer.get(&slot) else { continue };
            want(&mut stages, slot, written);
            match stages.last_mut() {
                Some(Stage::Move { from: known, to, steps, slots })
                    if *known == from && *to == step.side && steps.end == at =>
                {
                    steps.end = at + 1;
                    slots.push(slot);
                }
                _ => stages.push(Stage::Move { from, to: step.side, steps: at..at + 1, slots: vec![slot] }),
            }
            continue;
        }
        match stages.last_mut() {
            Some(Stage::Run { side, steps, .. }) if *side == step.side && steps.end == at => steps.end = at + 1,
            _ => stages.push(Stage::Run { side: step.side, steps: at..at + 1, wanted: vec![] }),
        }
        for slot in step.op.writes() {
            writer.insert(slot, (stages.len() - 1, step.side));
        }
    }
    if let Some(&(written, _)) = writer.get(&plan.logits) {
        want(&mut stages, plan.logits, written);
    }
    stages
}
