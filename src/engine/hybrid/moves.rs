//! Experts on their way: what the pager asks for goes to the threads, what arrives goes into the maps.
//!
//! With a RAM tier the tiers are exclusive: what arrives is the first to lose its slot there, what leaves has its worth again.
//! Not so while the guard compares: experts on the CPU would then have to be read from disk because of the very cache they are
//! compared with.
//!
//! A map changes between runs only. An expert leaves it before its slot is given away, and enters it when its copy is done.

use super::uploads::{Job, Uploads};
use super::{Hybrid, Layer};
use crate::backend::BackendError;
use crate::experts::{Promotion, Verdict};
use crate::gpu::{Gpu, NO_SLOT};

impl Hybrid {
    /// For tests: everything that is resident and not pinned leaves, and others come.
    pub(super) fn churn(&mut self) {
        let grid = self.pager.grid().clone();
        for layer in 0..grid.layers() {
            let residents: Vec<(usize, usize, usize)> = self.pager.residents(layer).collect();
            for (expert, pool, _) in residents {
                if self.pager.evict(layer, expert) {
                    self.unmap(self.at[pool].0, layer, expert);
                }
            }
        }
        let seed = self.token.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let promotions = self.pager.fill(|entry| 1.0 + (entry as u64 + 1).wrapping_mul(seed) as f64);
        self.send(promotions);
    }

    /// Hands promotions to the threads; whom they push out is no longer there from now on.
    pub(super) fn send(&mut self, promotions: Vec<Promotion>) {
        for promotion in promotions {
            let (gpu, pool) = self.at[promotion.pool];
            if let Some((layer, expert)) = promotion.evicted {
                self.unmap(gpu, layer, expert);
            }
            let Some(layer) = self.layers[promotion.layer] else { continue };
            if let Err(job) = self.uploads[gpu].send(Job { promotion, pool, tensors: layer.tensors() }) {
                self.pager.failed(&job.promotion);
            }
        }
    }

    /// Takes in what has arrived. With `all`, waits for what is on its way.
    pub(super) fn receive(&mut self, all: bool) {
        for gpu in 0..self.uploads.len() {
            let next = |uploads: &mut Uploads| if all { uploads.wait() } else { uploads.next() };
            while let Some((promotion, result)) = next(&mut self.uploads[gpu]) {
                match result {
                    Ok(()) => {
                        self.pager.done(&promotion);
                        self.map(gpu, promotion.layer, promotion.expert, promotion.slot);
                    }
                    Err(why) => {
                        // It stays where it was and is computed there; the pager may ask for it again.
                        self.pager.failed(&promotion);
                        if self.failed == 0 {
                            (self.options.notice)(&format!(
                                "an expert could not be uploaded and stays on the CPU: {why}"
                            ));
                        }
                        self.failed += 1;
                    }
                }
            }
        }
    }

    pub(super) fn map(&mut self, gpu: usize, layer: usize, expert: usize, slot: usize) {
        self.maps[gpu][layer][expert] = slot as u32;
        self.held[gpu][layer] += 1;
        self.stale.push((gpu, layer));
        if self.is_exclusive() {
            self.set_away(layer, expert, true);
        }
    }

    pub(super) fn unmap(&mut self, gpu: usize, layer: usize, expert: usize) {
        let slot = &mut self.maps[gpu][layer][expert];
        if *slot != NO_SLOT {
            *slot = NO_SLOT;
            self.held[gpu][layer] -= 1;
            self.stale.push((gpu, layer));
            self.set_away(layer, expert, false);
        }
    }

    /// Whether what is in VRAM gives its place in RAM away.
    fn is_exclusive(&self) -> bool {
        match self.verdict {
            None => !self.options.guard,
            Some(verdict) => !matches!(verdict, Verdict::SwitchedOff { .. }),
        }
    }

    /// The guard has decided: tells the RAM tier what it need not keep.
    pub(super) fn settle_tiers(&self) {
        if !self.is_exclusive() {
            return;
        }
        for layer in 0..self.pager.grid().layers() {
            self.pager.residents(layer).for_each(|(expert, ..)| self.set_away(layer, expert, true));
        }
    }

    fn set_away(&self, layer: usize, expert: usize, away: bool) {
        if let (Some(tier), Some(Layer { op, .. })) = (&self.tier, self.layers[layer])
            && let Some((layer, _)) = tier.place(op.gate)
        {
            tier.store.set_away(layer, expert, away);
        }
    }

    /// Writes the maps that changed, before anything else is submitted.
    pub(super) fn write_maps(&mut self, gpus: &mut [Gpu]) -> Result<(), BackendError> {
        self.stale.sort_unstable();
        self.stale.dedup();
        for (gpu, layer) in self.stale.drain(..) {
            if let Some(Layer { step, .. }) = self.layers[layer] {
                gpus[gpu].set_expert_slots(step, &self.maps[gpu][layer])?;
            }
        }
        Ok(())
    }
}
