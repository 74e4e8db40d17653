//! Numbered places in an executor's caches: pages of a page group, or recurrent states, that give themselves back.
//!
//! A place is counted: clones of a `Held` share it, and it is free again when the last of them is dropped, wherever that
//! happens. Who writes to a place must be its only holder; a place that is shared is copied first. The lowest are handed
//! out first, so that a short context lies in the first places and the caches need room for those only. The pool also
//! knows which places only the cache of past sequences holds: those make way before anything else does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places of one kind, numbered from 0.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    free: BTreeSet<u32>,
    refs: Vec<u32>,   // by place
    cached: Vec<u32>, // by place: holders among past sequences
}

/// A place that is held.
#[derive(Debug)]
pub struct Held {
    place: u32,
    pool: Pool,
    /// Whether this holder is a past sequence.
    cached: bool,
}

impl Pool {
    /// All free.
    pub fn new(all: usize) -> Pool {
        let inner = Inner { free: (0..all as u32).collect(), refs: vec![0; all], cached: vec![0; all] };
        Pool(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest free place.
    pub fn take(&self) -> Option<Held> {
        let mut inner = self.lock();
        let place = inner.free.pop_first()?;
        inner.refs[place as usize] = 1;
        drop(inner);
        Some(Held { place, pool: self.clone(), cached: false })
    }

    /// Places that nobody holds.
    pub fn free(&self) -> usize {
        self.lock().free.len()
    }

    /// Places that nobody holds among the first `room`.
    pub fn free_below(&self, room: usize) -> usize {
        self.lock().free.range(..room as u32).count()
    }

    /// Number of places.
    pub fn all(&self) -> usize {
        self.lock().refs.len()
    }

    /// Places up to the highest that more than past sequences hold: the caches must have room for these.
    pub fn in_use(&self) -> usize {
        let inner = self.lock();
        inner.refs.iter().zip(&inner.cached).rposition(|(refs, cached)| refs > cached).map_or(0, |last| last + 1)
    }

    /// Places up to the highest that anybody holds.
    pub fn held(&self) -> usize {
        self.lock().refs.iter().rposition(|refs| *refs > 0).map_or(0, |last| last + 1)
    }

    /// Places that more than past sequences hold.
    pub fn running(&self) -> usize {
        let inner = self.lock();
        inner.refs.iter().zip(&inner.cached).filter(|(refs, cached)| refs > cached).count()
    }

    /// Places that are free, or would be if the past were given up.
    pub fn obtainable(&self) -> usize {
        self.all() - self.running()
    }

    /// Whether both are the same pool.
    pub fn is(&self, other: &Pool) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Held {
    /// Its number.
    pub fn place(&self) -> u32 {
        self.place
    }

    /// Whether anybody else holds it too.
    pub fn is_shared(&self) -> bool {
        self.pool.lock().refs[self.place as usize] > 1
    }

    /// Whether more than past sequences hold it.
    pub fn is_running(&self) -> bool {
        let inner = self.pool.lock();
        inner.refs[self.place as usize] > inner.cached[self.place as usize]
    }

    /// Whether it belongs to this pool.
    pub fn is_of(&self, pool: &Pool) -> bool {
        self.pool.is(pool)
    }

    /// Another holder of the same place: a past sequence, or one that goes on.
    pub fn share(&self, cached: bool) -> Held {
        let mut inner = self.pool.lock();
        inner.refs[self.place as usize] += 1;
        inner.cached[self.place as usize] += u32::from(cached);
        drop(inner);
        Held { place: self.place, pool: self.pool.clone(), cached }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.pool.lock();
        let at = self.place as usize;
        inner.refs[at] -= 1;
        inner.cached[at] -= u32::from(self.cached);
        if inner.refs[at] == 0 {
            inner.free.insert(self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pool: &Pool, n: usize) -> Vec<Held> {
        (0..n).filter_map(|_| pool.take()).collect()
    }

    fn places(held: &[Held]) -> Vec<u32> {
        held.iter().map(Held::place).collect()
    }

    #[test]
    fn the_lowest_places_go_first_and_come_back_when_they_are_dropped() {
        let pool = Pool::new(8);
        let (a, b) = (take(&pool, 2), take(&pool, 3));
        assert_eq!((places(&a), places(&b), pool.in_use()), (vec![0, 1], vec![2, 3, 4], 5));
        drop(a);
        assert_eq!((pool.in_use(), pool.free()), (5, 5));
        let c = take(&pool, 3);
        assert_eq!((places(&c), pool.free(), pool.free_below(7)), (vec![0, 1, 5], 2, 1));
        assert_eq!(take(&pool, 3).len(), 2);
        drop(c);
        assert_eq!(pool.in_use(), 5);
        drop(b);
        assert_eq!((pool.in_use(), pool.held(), pool.free()), (0, 0, 8));
    }

    #[test]
    fn a_shared_place_is_free_when_its_last_holder_is_gone() {
        let pool = Pool::new(2);
        let a = take(&pool, 1).remove(0);
        assert!(!a.is_shared());
        let (b, c) = (a.share(false), a.share(true));
        assert!(a.is_shared() && b.place() == a.place());
        drop(a);
        assert_eq!((pool.free(), pool.in_use()), (1, 1));
        drop(b);
        assert_eq!((pool.free(), pool.in_use(), pool.held()), (1, 0, 1), "only a past sequence holds it");
        assert!(!c.is_shared());
        drop(c);
        assert_eq!((pool.free(), pool.held()), (2, 0));
    }
}
