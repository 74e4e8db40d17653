//! How much of its context the cache has room for, and when that changes.
//!
//! The steps are few and known at load, because expert slots are cut where a step needs them: every step is a bank of its
//! own, and three banks are what one dispatch serves. So there are two steps from the start to the whole context, each by
//! the same factor, and more only where that factor would be above four: a step that is too long takes slots that the
//! context does not need yet. Growing is by what is needed; shrinking waits until three quarters are idle, so that a
//! context that varies a little moves nothing.

/// The largest factor between two steps.
const LONGEST: f64 = 4.0;
/// A cache shrinks when no more than this part of it is in use.
const IDLE: usize = 4;

/// Numbers of pages that a cache has room for, from `first` at the start to `all`. With `step`, every `step` pages.
pub fn sizes(first: usize, all: usize, step: Option<usize>) -> Vec<usize> {
    let first = first.clamp(1, all.max(1));
    let ratio = all as f64 / first as f64;
    let mut sizes: Vec<usize> = match step {
        Some(step) => (first..all).step_by(step.max(1)).collect(),
        None => {
            let least = if ratio > 2.0 { 2.0 } else { 1.0 };
            let count = (ratio.ln() / LONGEST.ln()).ceil().max(least);
            (0..count as usize).map(|i| (first as f64 * ratio.powf(i as f64 / count)).ceil() as usize).collect()
        }
    };
    sizes.push(all);
    sizes.dedup();
    sizes
}

/// The size to change to, of these rising ones, when the cache has size `at` and pages up to `needed` are in use; `None`
/// when it should stay.
pub fn wanted(sizes: impl Iterator<Item = usize> + Clone, at: usize, needed: usize) -> Option<usize> {
    let now = sizes.clone().nth(at)?;
    let enough = || sizes.clone().position(|size| size >= needed);
    let to = if needed > now || needed * IDLE <= now { enough()? } else { at };
    (to != at).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_two_or_as_many_as_keep_the_factor_below_four() {
        assert_eq!(sizes(64, 512, None), [64, 182, 512]);
        assert_eq!(sizes(64, 256, None), [64, 128, 256]);
        assert_eq!(sizes(64, 128, None), [64, 128]);
        assert_eq!(sizes(64, 64, None), [64]);
        assert_eq!(sizes(64, 8, None), [8], "a context below the first step");
        let long = sizes(64, 2048, None);
        assert_eq!((long.len(), long[0], long[3]), (4, 64, 2048));
        assert!(long.windows(2).all(|pair| pair[1] <= 4 * pair[0]), "{long:?}");
        assert_eq!(sizes(1, 6, Some(2)), [1, 3, 5, 6]);
        assert_eq!(sizes(2, 6, Some(2)), [2, 4, 6]);
    }

    #[test]
    fn a_cache_grows_at_once_and_shrinks_when_three_quarters_are_idle() {
        let sizes = [64, 182, 512];
        let wanted = |at, needed| super::wanted(sizes.iter().copied(), at, needed);
        assert_eq!((wanted(0, 0), wanted(0, 64)), (None, None));
        assert_eq!((wanted(0, 65), wanted(0, 183), wanted(1, 512)), (Some(1), Some(2), Some(2)));
        assert_eq!((wanted(2, 129), wanted(2, 128), wanted(2, 64)), (None, Some(1), Some(0)));
        assert_eq!((wanted(1, 46), wanted(1, 45)), (None, Some(0)));
        assert_eq!(wanted(2, 513), None, "there is no larger size");
    }
}
