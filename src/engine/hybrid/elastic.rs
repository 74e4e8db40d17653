//! Memory that experts give to the cache as the context grows, and get back when it shrinks.
//!
//! Only before a run. Slots are released before caches grow, and taken again after they shrank, so a GPU never holds more
//! than its budget. Of the experts in slots that go, those worth more than others are copied on the device to slots that
//! stay. Without slots there is nothing to trade with: then, as with a static split, the whole cache is allocated at load
//! and this does nothing.

use super::stages::wanted;
use super::{CacheReport, Hybrid};
use crate::backend::BackendError;
use crate::gpu::{Gpu, GpuError};
use crate::plan::PAGE_TOKENS;

impl Hybrid {
    /// Sees to it that the caches have room for the first `pages` pages, and gives memory back to the experts when the caches
    /// have room for far more. If they can not grow, all is as it was, but for experts that must be loaded again.
    pub fn fit_cache(&mut self, gpus: &mut [Gpu], pages: usize) -> Result<(), BackendError> {
        let sizes = self.stages.iter().map(|stage| stage.pages);
        let Some(to) = wanted(sizes, self.stage, pages) else { return Ok(()) };
        // What is on its way may be bound for a slot that goes.
        self.receive(true);
        // This token takes longer, whatever the experts do.
        self.began = None;
        let before = self.pager.filled().1;
        let grows = to > self.stage;
        let changed = if grows { self.grow(gpus, to) } else { self.shrink(gpus, to) };
        // Also a change that failed may have cost slots.
        let now = self.pager.filled().1;
        self.cache.given_up = self.slots_at_start.saturating_sub(now);
        changed?;
        if grows {
            self.cache.grew += 1;
        } else {
            self.cache.shrank += 1;
        }
        self.stage = to;
        self.cache.tokens = self.stages[to].pages * PAGE_TOKENS;
        if self.cache.grew + self.cache.shrank == 1 {
            let (tokens, lost) = (self.cache.tokens, before - now.min(before));
            (self.options.notice)(&format!(
                "KV grew to {tokens} tokens: {lost} slots given up (now {now}); they come back when the context shrinks"
            ));
        }
        Ok(())
    }

    /// Pages that the caches have room for now, when that can change.
    pub fn cache_room(&self) -> Option<usize> {
        (self.stages.len() > 1).then(|| self.stages[self.stage].pages)
    }

    /// Counts of the cache, when its size can change.
    pub(super) fn cache_report(&self) -> Option<CacheReport> {
        (self.stages.len() > 1).then_some(self.cache)
    }

    fn grow(&mut self, gpus: &mut [Gpu], to: usize) -> Result<(), BackendError> {
        let (old, pages) = (self.stages[self.stage].pages, self.stages[to].pages);
        let slots = self.slots_beside(gpus, to)?;
        let held: Vec<usize> = (0..self.at.len()).map(|pool| self.pager.slots(pool)).collect();
        for (pool, &slots) in slots.iter().enumerate() {
            self.release(gpus, pool, slots)?;
        }
        let grown = gpus.iter_mut().try_for_each(|gpu| gpu.resize_caches(pages));
        let Err(e) = grown else { return Ok(()) };
        if !matches!(e, GpuError::Lost { .. }) {
            // The driver has less than was planned: back to what was there, as far as it lets us.
            for gpu in &mut *gpus {
                gpu.resize_caches(old).or_else(unless_lost)?;
            }
            for (pool, &slots) in held.iter().enumerate() {
                self.take(gpus, pool, slots)?;
            }
            return Err(GpuError::CacheFull { tokens: pages * PAGE_TOKENS, why: e.to_string() }.into());
        }
        Err(e.into())
    }

    /// Slots, by pool, beside which the caches of this stage fit every budget: those that were planned, or on a GPU that has
    /// less memory than planned those of a later stage, or none. An error, before anything changes, when that is not enough.
    fn slots_beside(&self, gpus: &[Gpu], to: usize) -> Result<Vec<usize>, GpuError> {
        let pages = self.stages[to].pages;
        let none = vec![0; self.at.len()];
        let plans: Vec<&Vec<usize>> = self.stages[to..].iter().map(|stage| &stage.slots).chain([&none]).collect();
        let mut slots = none.clone();
        for (i, gpu) in gpus.iter().enumerate() {
            let pools = || self.at.iter().enumerate().filter(|(_, at)| at.0 == i);
            let growth = gpu.cache_growth_bytes(pages);
            // Without a budget the driver is the judge.
            let room = |plan: &[usize]| {
                let freed = |(pool, at): (usize, &(usize, usize))| {
                    gpu.slot_bytes(at.1) * self.pager.slots(pool).saturating_sub(plan[pool]) as u64
                };
                gpu.device().left_bytes().map_or(u64::MAX, |left| left + pools().map(freed).sum::<u64>())
            };
            let Some(plan) = plans.iter().find(|plan| room(plan) >= growth) else {
                let (name, most) = (&gpu.device().report().name, room(&none));
                let why = format!("it takes {growth} bytes of {name}, where {most} are left without a single expert");
                return Err(GpuError::CacheFull { tokens: pages * PAGE_TOKENS, why });
            };
            pools().for_each(|(pool, _)| slots[pool] = plan[pool]);
        }
        Ok(slots)
    }

    fn shrink(&mut self, gpus: &mut [Gpu], to: usize) -> Result<(), BackendError> {
        for gpu in &mut *gpus {
            gpu.resize_caches(self.stages[to].pages).or_else(unless_lost)?;
        }
        for pool in 0..self.at.len() {
            self.take(gpus, pool, self.stages[to].slots[pool])?;
        }
        Ok(())
    }

    /// Leaves a pool so many slots. The most valuable experts stay.
    fn release(&mut self, gpus: &mut [Gpu], pool: usize, slots: usize) -> Result<(), BackendError> {
        if slots >= self.pager.slots(pool) {
            return Ok(());
        }
        let (gpu, there) = self.at[pool];
        let before: Vec<(usize, usize)> = self.mapped(pool);
        let transfers = self.pager.vacate(pool, slots);
        let moves: Vec<(usize, usize)> = transfers.iter().map(|transfer| (transfer.from, transfer.to)).collect();
        gpus[gpu].move_experts(there, &moves)?;
        self.pager.resize(pool, slots);
        before.into_iter().for_each(|(layer, expert)| self.unmap(gpu, layer, expert));
        for (layer, expert, slot) in self.held_by(pool) {
            self.map(gpu, layer, expert, slot);
        }
        // No map may name a slot that is gone.
        self.write_maps(gpus)?;
        Ok(gpus[gpu].resize_pool(there, slots)?)
    }

    /// Gives a pool so many slots again. If the memory is gone, it stays as it is.
    fn take(&mut self, gpus: &mut [Gpu], pool: usize, slots: usize) -> Result<(), BackendError> {
        if slots <= self.pager.slots(pool) {
            return Ok(());
        }
        let (gpu, there) = self.at[pool];
        match gpus[gpu].resize_pool(there, slots) {
            Ok(()) => self.pager.resize(pool, slots),
            Err(e @ GpuError::Lost { .. }) => return Err(e.into()),
            Err(e) => (self.options.notice)(&format!("experts did not get their memory back: {e}")),
        }
        Ok(())
    }

    /// Experts that lie in a pool: (layer, expert, slot).
    fn held_by(&self, pool: usize) -> Vec<(usize, usize, usize)> {
        let layers = 0..self.pager.grid().layers();
        let residents = layers.flat_map(|layer| self.pager.residents(layer).map(move |(e, p, s)| (layer, e, p, s)));
        residents.filter(|(_, _, p, _)| *p == pool).map(|(layer, expert, _, slot)| (layer, expert, slot)).collect()
    }

    fn mapped(&self, pool: usize) -> Vec<(usize, usize)> {
        self.held_by(pool).into_iter().map(|(layer, expert, _)| (layer, expert)).collect()
    }
}

/// Memory that could not be had is told where it counts; only a lost device ends everything.
fn unless_lost(e: GpuError) -> Result<(), GpuError> {
    if matches!(e, GpuError::Lost { .. }) { Err(e) } else { Ok(()) }
}
