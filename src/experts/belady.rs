//! The bound: what a pager that knew the future would do (Belady 1966).
//!
//! An expert is loaded on a miss only when it will be wanted sooner than the resident that is wanted last; that is optimal
//! when experts of a pool are of one size. With a cap on the uploads of a token the choice is greedy: of a token's misses
//! those that gain the most are loaded, between tokens. That is a lower bound of the optimum under the cap, and close to it.

use std::collections::BTreeSet;

use super::trace::Trace;

const NEVER: u32 = u32::MAX;

/// When each pick's expert is picked again: (tokens, layers, used), in tokens; `u32::MAX` for never.
pub struct Future {
    next: Vec<u32>,
}

impl Future {
    /// Looks through the tokens `from..`.
    pub fn new(trace: &Trace, from: usize) -> Future {
        let (layers, used, experts) = (trace.header.layers.len(), trace.header.used, trace.header.experts);
        let mut next = vec![NEVER; trace.ids.len()];
        let mut seen = vec![NEVER; layers * experts];
        for token in (from..trace.len()).rev() {
            for layer in 0..layers {
                for (slot, &id) in trace.picks(token, layer).iter().enumerate() {
                    let entry = &mut seen[layer * experts + usize::from(id)];
                    next[(token * layers + layer) * used + slot] = *entry;
                    *entry = token as u32;
                }
            }
        }
        Future { next }
    }
}

/// One pool: residents ordered by when they are wanted again.
#[derive(Default)]
struct Pool {
    slots: usize,
    by_next: BTreeSet<(u32, u32, u32)>, // token, layer, entry
}

/// Replays tokens `from..`; `pool_of` (layer) and `slots` (pool) say what fits. `see` hears of every layer step: token,
/// layer, (hits, picks) and uploads. With a cap, uploads happen between tokens, at most so many a token (the unspent ones are lost);
/// they are heard of with no hits, which is not the same as zero.
pub fn belady(
    trace: &Trace,
    from: usize,
    pool_of: &[usize],
    slots: &[usize],
    cap: Option<usize>,
    mut see: impl FnMut(usize, usize, Option<(usize, usize)>, usize),
) {
    let (layers, used, experts) = (trace.header.layers.len(), trace.header.used, trace.header.experts);
    let future = Future::new(trace, from);
    let mut wanted = vec![NEVER; layers * experts]; // when a resident is wanted again
    let mut resident = vec![false; layers * experts];
    let mut pools: Vec<Pool> = slots.iter().map(|&slots| Pool { slots, ..Pool::default() }).collect();
    for token in from..trace.len() {
        let mut missed: Vec<(u32, usize, usize)> = vec![]; // next, layer, entry
        for layer in 0..layers {
            let pool = &mut pools[pool_of[layer]];
            let (mut hits, mut uploads) = (0, 0);
            let mut misses = vec![];
            for (slot, &id) in trace.picks(token, layer).iter().enumerate() {
                let entry = layer * experts + usize::from(id);
                let next = future.next[(token * layers + layer) * used + slot];
                if resident[entry] {
                    hits += 1;
                    pool.by_next.remove(&(wanted[entry], layer as u32, entry as u32));
                    pool.by_next.insert((next, layer as u32, entry as u32));
                    wanted[entry] = next;
                } else {
                    misses.push((next, layer, entry));
                }
            }
            if cap.is_none() {
                misses.sort_unstable();
                for (next, layer, entry) in misses {
                    uploads += usize::from(load(pool, next, layer, entry, experts, &mut wanted, &mut resident));
                }
            } else {
                missed.extend(misses);
            }
            see(token, layer, Some((hits, trace.picks(token, layer).len())), uploads);
        }
        if let Some(cap) = cap {
            // Wanted again soonest: the most sure to pay.
            missed.sort_unstable();
            let mut done = 0;
            for (next, layer, entry) in missed {
                if done == cap {
                    break;
                }
                if load(&mut pools[pool_of[layer]], next, layer, entry, experts, &mut wanted, &mut resident) {
                    done += 1;
                    see(token, layer, None, 1);
                }
            }
        }
    }
}

/// Loads an expert that is wanted sooner than the resident wanted last; whether it did.
fn load(
    pool: &mut Pool,
    next: u32,
    layer: usize,
    entry: usize,
    experts: usize,
    wanted: &mut [u32],
    resident: &mut [bool],
) -> bool {
    if next == NEVER || pool.slots == 0 {
        return false;
    }
    if pool.by_next.len() >= pool.slots {
        let Some(&last) = pool.by_next.last() else { return false };
        if (last.0, last.1) <= (next, layer as u32) {
            return false;
        }
        pool.by_next.remove(&last);
        resident[last.2 as usize] = false;
    }
    debug_assert_eq!(entry / experts, layer);
    pool.by_next.insert((next, layer as u32, entry as u32));
    (wanted[entry], resident[entry]) = (next, true);
    true
}
