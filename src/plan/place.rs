//! Placement: which side runs each step, and what must cross from one to another.
//!
//! Layers go to GPUs whole and in order, the first ones to the CPU when not all fit: the residual stream then crosses
//! once a boundary. The embedding stays with the CPU unless everything fits (its table is large and a token reads one
//! row of it); the head goes with the last layer. What a GPU refuses stays on the CPU, step by step. A `Move` is put in
//! front of a step whose input is valid on other sides only, and of no other.

use std::collections::HashMap;
use std::ops::Range;

use super::{KvId, Op, Plan, Side, Slot, Step, WeightId};

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
    /// Bytes of one cache.
    pub cache_bytes: &'a dyn Fn(KvId) -> u64,
    /// Whether the experts stay on the CPU.
    pub experts_on_cpu: bool,
}

/// A stretch of a placed plan that one side runs, or a value on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    Run { side: Side, steps: Range<usize> },
    Move { slot: Slot, from: Side, to: Side },
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
        let mut most = room.gpu_layers.unwrap_or(usize::MAX);
        let mut left = room.gpus.to_vec();
        let mut gpu = left.len();
        let mut next = |bytes: u64, most: &mut usize| -> Option<Side> {
            if *most == 0 {
                return None;
            }
            while gpu > 0 {
                if left[gpu - 1] >= bytes {
                    left[gpu - 1] -= bytes;
                    *most -= 1;
                    return Some(Side::Gpu(gpu as u8 - 1));
                }
                gpu -= 1;
            }
            None
        };
        let Some(head) = next(part_bytes(plan, room, Part::Head), &mut most) else { return sides };
        sides.head = head;
        for layer in (0..plan.layers).rev() {
            let Some(side) = next(part_bytes(plan, room, Part::Layer(layer as u32)), &mut most) else { return sides };
            sides.layers[layer] = side;
        }
        // A tied table lies on the head's GPU already; another needs room of its own on the first one.
        let embed = part_bytes(plan, room, Part::Embed);
        let first = sides.layers.first().copied().unwrap_or(head);
        let tied = is_tied(plan) && first == head;
        if tied || matches!(first, Side::Gpu(gpu) if left[gpu as usize] >= embed) {
            sides.embed = first;
        }
        sides
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
        None if plan.steps[..step].iter().any(|step| step.layer.is_some()) => Part::Head,
        None => Part::Embed,
    }
}

/// Bytes of weights and cache of a part.
fn part_bytes(plan: &Plan, room: &Room, part: Part) -> u64 {
    let mut weights: Vec<WeightId> = vec![];
    let mut bytes = 0;
    for (at, step) in plan.steps.iter().enumerate() {
        let elsewhere = room.experts_on_cpu && matches!(step.op, Op::Experts { .. });
        if part_of(plan, at) != part || elsewhere {
            continue;
        }
        weights.extend(step.op.weights());
        if let Op::RopeStore { kv, .. } = step.op {
            bytes += (room.cache_bytes)(kv);
        }
    }
    weights.sort_unstable();
    weights.dedup();
    let weight_bytes = |id: &WeightId| (plan.weight(*id).expert_bytes() * plan.weight(*id).experts) as u64;
    bytes + weights.iter().map(weight_bytes).sum::<u64>()
}

/// Whether the embedding's table is also the head's matrix.
fn is_tied(plan: &Plan) -> bool {
    let Some(table) = plan.steps.iter().find_map(|step| match step.op {
        Op::Embed { table, .. } => Some(table),
        _ => None,
    }) else {
        return false;
    };
    plan.steps.iter().any(|step| matches!(step.op, Op::Linear { .. }) && step.op.weights().contains(&table))
}

/// The plan with every step on its side and every `Move` that this needs. `refuses` says what a GPU can not run.
pub fn place(plan: &Plan, sides: &Sides, refuses: &dyn Fn(&Op) -> bool) -> Plan {
    let mut placed = Plan { steps: vec![], ..plan.clone() };
    let mut valid: HashMap<Slot, Vec<Side>> = HashMap::new();
    for (at, step) in plan.steps.iter().enumerate() {
        let wanted = match (part_of(plan, at), sides.experts) {
            (_, Some(side)) if matches!(step.op, Op::Experts { .. }) => side,
            (Part::Embed, _) => sides.embed,
            (Part::Layer(layer), _) => sides.layers[layer as usize],
            (Part::Head, _) => sides.head,
        };
        let side = if wanted != Side::Cpu && refuses(&step.op) { Side::Cpu } else { wanted };
        for slot in step.op.reads() {
            let here = valid.entry(slot).or_default();
            if !here.is_empty() && !here.contains(&side) {
                here.push(side);
                placed.steps.push(Step { op: Op::Move { slot }, layer: step.layer, side });
            }
        }
        for slot in step.op.writes() {
            valid.insert(slot, vec![side]);
        }
        placed.steps.push(Step { side, ..step.clone() });
    }
    placed
}

/// The order of work of a placed plan.
pub fn stages(plan: &Plan) -> Vec<Stage> {
    let mut stages: Vec<Stage> = vec![];
    let mut home: HashMap<Slot, Side> = HashMap::new();
    for (at, step) in plan.steps.iter().enumerate() {
        if let Op::Move { slot } = step.op {
            let from = home.get(&slot).copied().unwrap_or(Side::Cpu);
            stages.push(Stage::Move { slot, from, to: step.side });
            continue;
        }
        for slot in step.op.writes() {
            home.insert(slot, step.side);
        }
        match stages.last_mut() {
            Some(Stage::Run { side, steps }) if *side == step.side && steps.end == at => steps.end = at + 1,
            _ => stages.push(Stage::Run { side: step.side, steps: at..at + 1 }),
        }
    }
    stages
}
