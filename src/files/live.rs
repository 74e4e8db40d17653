//! The partial files of this process, for the moment when it has to end: a signal, or a second Ctrl-C.
//!
//! A signal's handler may neither allocate nor take a lock, so the names lie in a fixed table as C strings, which are
//! never freed: a handler may be reading one. That is some dozen bytes a file that was written.

#[cfg(not(unix))]
use std::path::Path;

/// Files that may be in the making at once and still be removed by a signal; what is beyond is swept at the next start.
#[cfg(unix)]
const MOST: usize = 512;

/// An entry of the table.
#[must_use]
pub(super) struct Live(#[cfg_attr(not(unix), expect(dead_code, reason = "no table"))] Option<usize>);

#[cfg(unix)]
mod table {
    use std::ffi::{CStr, CString, c_char};
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

    use super::{Live, MOST};

    static NAMES: [AtomicPtr<c_char>; MOST] = [const { AtomicPtr::new(null_mut()) }; MOST];
    static LEFT_TO_THE_PROGRAM: AtomicBool = AtomicBool::new(false);

    impl Live {
        pub fn begin(path: &Path) -> Live {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            let Ok(name) = CString::new(path.as_os_str().as_bytes()) else { return Live(None) };
            let name = name.into_raw();
            let free = |slot: &AtomicPtr<c_char>| {
                slot.compare_exchange(null_mut(), name, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            Live(NAMES.iter().position(free))
        }

        pub fn end(&self) {
            if let Some(slot) = self.0 {
                NAMES[slot].store(null_mut(), Ordering::Release);
            }
        }
    }

    /// Removes the partial files of this process, which is about to end. Safe in a signal's handler.
    pub fn clean_up() {
        for slot in &NAMES {
            let name = slot.swap(null_mut(), Ordering::AcqRel);
            if !name.is_null() {
                // SAFETY: every pointer in the table comes from `CString::into_raw` and is never freed.
                let name = unsafe { CStr::from_ptr(name) };
                // A plain system call, as the handler of a signal needs it.
                let _ = rustix::fs::unlink(name);
            }
        }
    }

    /// From now on SIGTERM, SIGHUP, SIGQUIT and SIGINT remove the partial files before they end the program. One that is
    /// ignored (nohup) stays so.
    pub fn clean_up_on_signals() {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        for signal in [SIGTERM, SIGHUP, SIGQUIT, SIGINT] {
            if is_ignored(signal) {
                continue;
            }
            let end = move || {
                if !LEFT_TO_THE_PROGRAM.load(Ordering::Relaxed) {
                    clean_up();
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
            };
            // SAFETY: the handler loads and swaps atomics, makes system calls, and ends the process as the system would:
            // nothing that a handler may not do.
            let _ = unsafe { signal_hook::low_level::register(signal, end) };
        }
    }

    /// From now on the program itself hears of these signals and ends well: nothing is done here.
    pub fn leave_signals_to_the_program() {
        LEFT_TO_THE_PROGRAM.store(true, Ordering::Relaxed);
    }

    fn is_ignored(signal: i32) -> bool {
        // SAFETY: an all-zero sigaction is a valid one.
        let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: no new action is given, and the old one is written to a place of its own.
        let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut now) };
        asked == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(unix)]
pub use table::{clean_up, clean_up_on_signals, leave_signals_to_the_program};

#[cfg(not(unix))]
impl Live {
    pub fn begin(_: &Path) -> Live {
        Live(None)
    }

    pub fn end(&self) {}
}

/// What is left is swept when the file is next written.
#[cfg(not(unix))]
pub fn clean_up() {}

/// This system has no such signals.
#[cfg(not(unix))]
pub fn clean_up_on_signals() {}

/// This system has no such signals.
#[cfg(not(unix))]
pub fn leave_signals_to_the_program() {}
