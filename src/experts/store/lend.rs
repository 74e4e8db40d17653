//! Experts on their way from the RAM tier to a faster one.
//!
//! A copy takes the bytes from a slot where they lie in one, and else from disk, past the slots: what is going to be in VRAM
//! need not push anything out of RAM. The tiers are exclusive: what has arrived in the faster one is the first to lose its
//! slot here, and what leaves it is wanted like any other expert.

use super::super::disk::{Aligned, DiskError, Extent};
use super::{Inner, PARTS, Store, lock};

impl Store {
    /// The bytes of an expert that has been read, for a copy to another tier; its slot is not given away until the
    /// loan ends. `None` when it is in no slot. From any thread.
    pub fn lend(&self, layer: usize, expert: usize) -> Option<Loan<'_>> {
        let inner = &*self.inner;
        let pool_at = inner.pool_of[layer];
        let pool = &inner.pools[pool_at];
        let mut state = lock(&inner.state);
        let slot = inner.slot(layer, expert).filter(|slot| pool.is_ready(*slot))?;
        state.lent[pool_at][slot] += 1;
        // SAFETY: all is read, and a slot that is lent is not filled anew.
        let parts =
            std::array::from_fn(|part| unsafe { pool.part(slot, part, inner.layers[layer].extent(expert, part)) });
        Some(Loan { inner, pool: pool_at, slot, parts })
    }

    /// Reads an expert from disk past the slots, on the calling thread. `buffer` is made large enough.
    pub fn read_past(&self, layer: usize, expert: usize, buffer: &mut PastSlots) -> Result<(), DiskError> {
        for (part, kept) in buffer.0.iter_mut().enumerate() {
            let extent = self.inner.layers[layer].extent(expert, part);
            let bytes = extent.buffer_bytes();
            let room = kept.take().map(|(memory, _)| memory).filter(|memory| memory.len() >= bytes);
            let memory = room.or_else(|| Aligned::zeroed(bytes));
            let Some(memory) = memory else { return Err(DiskError::OutOfMemory { bytes }) };
            // SAFETY: the buffer is borrowed mutably, so nobody else reads or writes it.
            self.inner.disk.read(extent, unsafe { memory.bytes_mut(0..bytes) })?;
            *kept = Some((memory, extent));
        }
        Ok(())
    }

    /// An expert came to a faster tier, or left it. What is there need not be here too: its slot is the first to be given
    /// away, and until then it can still be had.
    pub fn set_away(&self, layer: usize, expert: usize, away: bool) {
        lock(&self.inner.state).away[self.inner.first_entry[layer] + expert] = away;
    }
}

/// An expert's bytes that are kept in their slot while this lives.
pub struct Loan<'a> {
    inner: &'a Inner,
    pool: usize,
    slot: usize,
    parts: [&'a [u8]; PARTS],
}

impl Loan<'_> {
    /// Gate, up and down matrix, as in the file.
    pub fn parts(&self) -> [&[u8]; PARTS] {
        self.parts
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        lock(&self.inner.state).lent[self.pool][self.slot] -= 1;
    }
}

/// Memory for one expert that is read past the slots.
#[derive(Default)]
pub struct PastSlots([Option<(Aligned, Extent)>; PARTS]);

impl PastSlots {
    /// Gate, up and down matrix of the expert that was read last; empty before one was.
    pub fn parts(&self) -> [&[u8]; PARTS] {
        self.0.each_ref().map(|part| match part {
            // SAFETY: written only through `&mut self`.
            Some((memory, extent)) => unsafe { memory.bytes(extent.lead()..extent.lead() + extent.bytes) },
            None => &[],
        })
    }
}
