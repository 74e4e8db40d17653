//! Cache pages that no timeline holds.
//!
//! The lowest are handed out first, so that a short context lies in the first pages and the caches need room for those only.

use std::collections::BTreeSet;

/// Pages of one model, numbered from 0.
#[derive(Debug)]
pub struct Pages {
    free: BTreeSet<u32>,
    /// Pages up to the highest that is held.
    in_use: usize,
}

impl Pages {
    /// All free.
    pub fn new(all: usize) -> Pages {
        Pages { free: (0..all as u32).collect(), in_use: 0 }
    }

    /// The lowest `n` free pages; `None`, and nothing is taken, when there are fewer.
    pub fn take(&mut self, n: usize) -> Option<Vec<u32>> {
        if self.free.len() < n {
            return None;
        }
        let taken: Vec<u32> = (0..n).filter_map(|_| self.free.pop_first()).collect();
        let highest = taken.last().map_or(0, |&page| page as usize + 1);
        self.in_use = self.in_use.max(highest);
        Some(taken)
    }

    /// Takes pages back.
    pub fn give_back(&mut self, pages: impl IntoIterator<Item = u32>) {
        self.free.extend(pages);
        while self.in_use > 0 && self.free.contains(&(self.in_use as u32 - 1)) {
            self.in_use -= 1;
        }
    }

    /// The caches must have room for this many pages, the first ones.
    pub fn in_use(&self) -> usize {
        self.in_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_pages_go_first_and_the_highest_that_is_held_counts() {
        let mut pages = Pages::new(8);
        let a = pages.take(2).unwrap_or_default();
        let b = pages.take(3).unwrap_or_default();
        assert_eq!((a.as_slice(), b.as_slice(), pages.in_use()), (&[0, 1][..], &[2, 3, 4][..], 5));
        pages.give_back(a);
        assert_eq!(pages.in_use(), 5, "page 4 is held");
        assert_eq!(pages.take(3), Some(vec![0, 1, 5]));
        assert_eq!(pages.take(3), None);
        assert_eq!((pages.take(2), pages.in_use()), (Some(vec![6, 7]), 8));
        pages.give_back([5, 6, 7]);
        assert_eq!(pages.in_use(), 5);
        pages.give_back(b);
        assert_eq!(pages.in_use(), 2);
        pages.give_back([1, 0]);
        assert_eq!(pages.in_use(), 0);
    }
}
