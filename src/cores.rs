//! How many threads compute: as many as this process really has cores for.
//!
//! Two threads of one core share its arithmetic and its way to memory, so cores count, not the logical CPUs that the
//! system lists; and only those that the affinity mask (`taskset`, a container's cpuset) and the quota of the control group
//! leave to this process. A thread more than that waits for another at every step.

use std::collections::BTreeSet;

/// Threads a logical CPU that may be asked for: more than that only wait for one another.
const MOST_A_CPU: usize = 4;
/// So many may be asked for on any machine.
const ALWAYS: usize = 16;
/// 8192 CPUs, more than Linux can be built for.
#[cfg(target_os = "linux")]
const MASK_WORDS: usize = 128;

/// The number of threads that a run takes where nobody says otherwise.
pub fn usable() -> usize {
    // The standard library knows the mask and the quotas of control groups of either version, in logical CPUs.
    let logical = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    physical().unwrap_or_else(num_cpus::get_physical).min(logical).max(1)
}

/// The number of threads of a run: what was asked for, within bounds, or what is usable.
pub fn threads(asked: Option<usize>) -> usize {
    asked.map_or_else(usable, |n| n.clamp(1, most()))
}

/// The most threads that may be asked for.
pub fn most() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from).max(num_cpus::get());
    (logical * MOST_A_CPU).max(ALWAYS)
}

/// Cores of which the affinity mask has at least one CPU; `None` where the system does not tell.
#[cfg(target_os = "linux")]
fn physical() -> Option<usize> {
    let mask = affinity()?;
    let cpus = (0..mask.len() * 64).filter(|cpu| (mask[cpu / 64] >> (cpu % 64)) & 1 == 1);
    count(cpus, |cpu| {
        let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(file).ok()
    })
}

/// The CPUs that this thread may run on, a bit each.
#[cfg(target_os = "linux")]
fn affinity() -> Option<[u64; MASK_WORDS]> {
    let mut mask = [0_u64; MASK_WORDS];
    // SAFETY: the kernel writes at most the bytes of the mask, and any bits are a u64.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&mask), mask.as_mut_ptr().cast()) };
    (got == 0).then_some(mask)
}

#[cfg(not(target_os = "linux"))]
fn physical() -> Option<usize> {
    None
}

/// Different cores among these CPUs; each names its core by the list of the core's CPUs.
#[cfg_attr(not(any(test, target_os = "linux")), expect(dead_code, reason = "only Linux names the cores of CPUs"))]
fn count(cpus: impl Iterator<Item = usize>, siblings: impl Fn(usize) -> Option<String>) -> Option<usize> {
    let cores: Option<BTreeSet<String>> = cpus.map(siblings).collect();
    cores.map(|cores| cores.len()).filter(|&n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_threads_of_one_core_count_once_and_a_mask_leaves_out_the_rest() {
        // Four cores of two threads each, numbered as Intel's are.
        let siblings = |cpu: usize| Some(format!("{},{}\n", cpu % 4, cpu % 4 + 4));
        assert_eq!(count(0..8, siblings), Some(4));
        assert_eq!(count([0, 4].into_iter(), siblings), Some(1));
        assert_eq!(count([1, 2, 5].into_iter(), siblings), Some(2));
        assert_eq!(count(0..8, |_| None), None, "a system that does not tell");
        assert_eq!(count(0..0, siblings), None);
    }

    #[test]
    fn the_number_of_threads_is_bounded() {
        assert!(usable() >= 1 && usable() <= most());
        assert_eq!(threads(Some(0)), 1);
        assert_eq!(threads(Some(3)), 3);
        assert_eq!(threads(Some(100_000)), most());
        assert_eq!(threads(None), usable());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_that_may_run_on_one_cpu_only_has_one_core() {
        let before = affinity().unwrap();
        let word = before.iter().position(|&word| word != 0).unwrap();
        let mut one = [0_u64; MASK_WORDS];
        one[word] = 1 << before[word].trailing_zeros();
        // The mask is the thread's own; the test ends with it.
        std::thread::spawn(move || {
            // SAFETY: the kernel reads the bytes of the mask.
            let set = unsafe { libc::sched_setaffinity(0, size_of_val(&one), one.as_ptr().cast()) };
            assert_eq!((set, affinity()), (0, Some(one)));
            assert_eq!(usable(), 1);
        })
        .join()
        .unwrap();
    }
}
