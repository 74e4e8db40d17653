//! Memory that moves after load: caches grow and shrink by pages, pools of expert slots by banks.
//!
//! Only between runs. One buffer at a time is copied to a new one of another size on the device, bound in its place, and
//! destroyed: beyond the difference no more than the smaller form of one buffer is ever held twice. What is destroyed is
//! waited for, so memory that was given back is there for the next allocation. A caller releases before it grows.

use std::sync::Arc;

use super::Gpu;
use super::error::GpuError;
use super::ops::{KvPart, Prepared};
use crate::plan::KvId;

impl Gpu {
    /// Pages that every cache here has room for.
    pub fn cache_pages(&self) -> usize {
        self.cache_pages
    }

    /// Bytes that must be free for the caches to get room for so many pages: what they take beyond now, and the one buffer
    /// that is held twice meanwhile.
    pub fn cache_growth_bytes(&self, pages: usize) -> u64 {
        let halves = || {
            let caches = self.kv.iter().flatten();
            caches.flat_map(|kv| [(&kv.keys, kv.key_page_bytes), (&kv.values, kv.value_page_bytes)])
        };
        let more =
            |(buffer, page_bytes): (&wgpu::Buffer, u64)| (page_bytes * pages as u64).saturating_sub(buffer.size());
        let grows = |half: &(&wgpu::Buffer, u64)| more(*half) > 0;
        let twice = halves().filter(grows).map(|(buffer, _)| buffer.size()).max().unwrap_or(0);
        halves().map(more).sum::<u64>() + twice
    }

    /// Gives every cache room for so many pages. The first pages keep what they hold. After an error they still do, and
    /// the caches have room for the smaller of both numbers.
    pub fn resize_caches(&mut self, pages: usize) -> Result<(), GpuError> {
        self.cache_pages = self.cache_pages.min(pages);
        for cache in 0..self.kv.len() {
            for part in [KvPart::Keys, KvPart::Values] {
                self.resize_cache(cache, part, pages)?;
            }
        }
        self.cache_pages = pages;
        Ok(())
    }

    fn resize_cache(&mut self, cache: usize, part: KvPart, pages: usize) -> Result<(), GpuError> {
        let Some(kv) = &mut self.kv[cache] else { return Ok(()) };
        let Some(old) = kv.resize(&self.device, part, pages)? else { return Ok(()) };
        self.counters.submits += 1;
        let id = KvId(cache as u32);
        for step in self.steps.iter_mut().flatten() {
            match step {
                Prepared::RopeStore(step) => step.rebind(&self.device, id, kv)?,
                Prepared::Attention(step) => step.rebind(&self.device, id, kv)?,
                _ => {}
            }
        }
        self.device.destroy(&old);
        self.device.wait()
    }

    /// Bytes of one slot of a pool.
    pub fn slot_bytes(&self, pool: usize) -> u64 {
        self.pools[pool].slot_bytes()
    }

    /// Leaves a pool its first slots, or gives it more, which are empty: one of its cuts, or as many as at the start. No
    /// map names a slot that goes, and no upload is on its way. After an error the pool has the slots that it had.
    pub fn resize_pool(&mut self, pool: usize, slots: usize) -> Result<(), GpuError> {
        let pools = Arc::clone(&self.pools);
        let pool = &pools[pool];
        pool.resize(&self.device, slots, |now| {
            pool.steps().try_for_each(|step| match &mut self.steps[step] {
                Some(Prepared::Experts(experts)) => experts.rebind(&self.device, now),
                _ => Ok(()),
            })
        })
    }

    /// Copies experts of a pool from slot to slot, (from, to) each; what was submitted before is not disturbed.
    pub fn move_experts(&mut self, pool: usize, moves: &[(usize, usize)]) -> Result<(), GpuError> {
        if moves.is_empty() {
            return Ok(());
        }
        self.counters.submits += 1;
        self.pools[pool].move_slots(&self.device, moves)
    }
}
