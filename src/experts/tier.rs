//! From a memory budget to a RAM tier: what must stay, what is left for experts, and the slots for them.
//!
//! Everything that each token reads stays mapped and is asked for at once; so do cache and buffers count. What is left of
//! the budget becomes slots. A budget that holds all experts needs no slots: the mapping is then as good.
//!
//! The cache is counted in full for the whole context, though its pages come from the system only as it fills: the number of
//! slots is fixed at the start, and a budget must hold at the end of a session too. A smaller context buys more slots.

use super::disk::{Disk, DiskError, Extent, Fault};
use super::rates::DISK_THREADS;
use super::store::{LayerExperts, PARTS, Store, StoreError};
use crate::gguf::Advice;
use crate::plan::WeightId;
use crate::weights::Weights;

/// How much memory a model may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ram {
    /// Bytes for everything: weights, cache, buffers, the program itself.
    Total(u64),
    /// Bytes for experts alone.
    Experts(u64),
}

/// A budget, and how it is kept.
#[derive(Clone, Debug)]
pub struct Tiers {
    pub ram: Ram,
    /// Keep the experts in RAM from being swapped out.
    pub lock: bool,
    /// For tests.
    pub fault: Option<Fault>,
}

impl Tiers {
    /// A budget for everything.
    pub fn total(bytes: u64) -> Tiers {
        Tiers { ram: Ram::Total(bytes), lock: false, fault: None }
    }
}

/// Why a model can not run within a budget.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    #[error(
        "--ram {given} bytes are too few: {dense} for what every token reads, {other} for cache and buffers, {least} for \
         the experts of one step make {needed}; use a larger --ram, a smaller -c or -b, or --kv q8_0",
        needed = .dense + .other + .least
    )]
    TooSmall { given: u64, dense: u64, other: u64, least: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The RAM tier of one model.
pub struct Tier {
    pub store: Store,
    /// By weight: layer of the store and part (0 gate, 1 up, 2 down).
    place: Vec<Option<(usize, usize)>>,
}

impl Tier {
    /// Slots for the experts of these weights. `other_bytes`: cache, buffers and the program. `None` when the budget
    /// holds all experts, or there are none.
    pub fn open(weights: &Weights, config: &Tiers, other_bytes: u64) -> Result<Option<Tier>, TierError> {
        let plan = weights.plan();
        let mut layers = vec![];
        let mut place = vec![None; plan.weights.len()];
        for mixture in &plan.mixtures {
            let op = mixture.experts;
            let ids = [op.gate, op.up, op.down];
            for (part, id) in ids.iter().enumerate() {
                place[id.0 as usize] = Some((layers.len(), part));
            }
            layers.push(LayerExperts {
                experts: plan.weight(op.gate).experts,
                used: op.used,
                parts: ids.map(|id| extent(weights, id)),
                strides: ids.map(|id| plan.weight(id).stride as u64),
            });
        }
        let all: u64 = layers.iter().map(|layer| layer.experts as u64 * layer.expert_bytes()).sum();
        let least = layers.iter().map(|layer| layer.used as u64 * layer.expert_bytes()).max().unwrap_or(0);
        let dense = dense_bytes(weights);
        let budget = match config.ram {
            Ram::Experts(bytes) => bytes,
            Ram::Total(given) => match given.checked_sub(dense + other_bytes) {
                Some(left) if left >= least => left,
                _ => return Err(TierError::TooSmall { given, dense, other: other_bytes, least }),
            },
        };
        if layers.is_empty() || (budget >= all && !config.lock) {
            return Ok(None);
        }
        let disk = Disk::open(weights.gguf(), config.fault.clone())?;
        give_back(weights, &disk);
        let store = Store::new(disk, layers, budget, DISK_THREADS, config.lock)?;
        Ok(Some(Tier { store, place }))
    }

    /// Where an expert matrix lies in the store: its layer, and its part.
    pub fn place(&self, id: WeightId) -> Option<(usize, usize)> {
        self.place[id.0 as usize]
    }
}

fn extent(weights: &Weights, id: WeightId) -> Extent {
    let weight = weights.plan().weight(id);
    let tensor = &weights.gguf().tensors()[weight.tensor];
    Extent { shard: tensor.shard, offset: (tensor.offset + weight.offset) as u64, bytes: weight.expert_bytes() }
}

fn expert_tensors(weights: &Weights) -> Vec<bool> {
    let plan = weights.plan();
    let mut experts = vec![false; weights.gguf().tensors().len()];
    for op in plan.mixtures.iter().map(|mixture| mixture.experts) {
        [op.gate, op.up, op.down].iter().for_each(|id| experts[plan.weight(*id).tensor] = true);
    }
    experts
}

/// A table of embeddings that is no output matrix too: a token reads one row of it.
fn is_table(weights: &Weights, tensor: usize) -> bool {
    let gguf = weights.gguf();
    gguf.tensors()[tensor].name == "token_embd.weight" && gguf.tensor("output.weight").is_some()
}

/// Bytes that every token reads.
fn dense_bytes(weights: &Weights) -> u64 {
    let experts = expert_tensors(weights);
    let tensors = weights.gguf().tensors().iter().enumerate();
    tensors.filter(|(i, _)| !experts[*i] && !is_table(weights, *i)).map(|(_, tensor)| tensor.bytes as u64).sum()
}

/// Asks for what every token reads, and takes the experts out of the page cache, where an earlier run or a copy may have
/// left them.
fn give_back(weights: &Weights, disk: &Disk) {
    let (gguf, experts) = (weights.gguf(), expert_tensors(weights));
    for (i, tensor) in gguf.tensors().iter().enumerate() {
        if !experts[i] && !is_table(weights, i) {
            gguf.advise(tensor, Advice::WillNeed);
            continue;
        }
        // No read-ahead: what a fault beside them would bring in is in nobody's budget.
        gguf.advise(tensor, Advice::Random);
        gguf.advise(tensor, Advice::DontNeed);
        disk.forget(Extent { shard: tensor.shard, offset: tensor.offset as u64, bytes: tensor.bytes });
    }
}

const _: () = assert!(PARTS == 3, "gate, up, down");
