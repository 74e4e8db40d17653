//! Sums of squares of what goes into each matrix: the statistics of an importance matrix.
//!
//! An executor that is told to observe adds every input row, after its norm, under the weight (and expert) that it is
//! multiplied with. One worker does it while the others multiply. Without an observer this costs one branch a product.

use std::sync::{Arc, Mutex, PoisonError};

use super::Cpu;
use super::threads::Worker;
use crate::plan::{Plan, Weight, WeightId};

/// Squared inputs of all matrices of a plan.
#[derive(Debug)]
pub struct InputSums {
    weights: Vec<Mutex<WeightSums>>, // by weight id
}

/// Squared inputs of one weight.
#[derive(Clone, Debug, Default)]
pub struct WeightSums {
    pub squares: Vec<f32>, // (experts, k); empty until the first row
    pub rows: Vec<u64>,    // (experts)
}

impl InputSums {
    /// Nothing seen yet.
    pub fn new(plan: &Plan) -> InputSums {
        InputSums { weights: plan.weights.iter().map(|_| Mutex::default()).collect() }
    }

    /// What was seen of each weight so far.
    pub fn of(&self, id: WeightId) -> WeightSums {
        self.lock(id).clone()
    }

    fn lock(&self, id: WeightId) -> std::sync::MutexGuard<'_, WeightSums> {
        self.weights[id.0 as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds rows (n, k) that are multiplied with one expert's matrix.
    fn add(&self, id: WeightId, weight: &Weight, expert: usize, rows: &[f32]) {
        let mut sums = self.lock(id);
        if sums.squares.is_empty() {
            sums.squares.resize(weight.experts * weight.k, 0.0);
            sums.rows.resize(weight.experts, 0);
        }
        let squares = &mut sums.squares[expert * weight.k..(expert + 1) * weight.k];
        for row in rows.chunks_exact(weight.k) {
            squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
        }
        sums.rows[expert] += (rows.len() / weight.k) as u64;
    }
}

impl Cpu {
    /// From now on the inputs of all products are summed up here.
    pub fn observe(&mut self, sums: Arc<InputSums>) {
        self.sums = Some(sums);
    }

    /// Adds rows (n, k) to the sums of this weight, if anyone observes.
    pub(super) fn see(&self, w: &Worker, id: WeightId, expert: usize, rows: &[f32]) {
        if let Some(sums) = self.sums.as_deref().filter(|_| w.index == 0) {
            sums.add(id, self.plan.weight(id), expert, rows);
        }
    }

    /// As `see` for experts: `picks` are (expert, row) of the rows (n, k).
    pub(super) fn see_picked(
        &self,
        w: &Worker,
        ids: &[WeightId],
        picks: impl Iterator<Item = (usize, usize)>,
        rows: &[f32],
    ) {
        if self.sums.is_none() || w.index != 0 {
            return;
        }
        for (expert, row) in picks {
            for &id in ids {
                let k = self.plan.weight(id).k;
                self.see(w, id, expert, &rows[row * k..(row + 1) * k]);
            }
        }
    }
}
