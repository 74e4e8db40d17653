//! Mappings whose file was cut short, or can not be read, under them.
//!
//! Touching such a page raises SIGBUS, which by itself kills the program in the middle of whatever it does. The handler
//! here puts zeros in place of the rest of the mapping and notes the damage; whoever computed with the mapping then asks
//! [`Mapping::is_damaged`] before using a result. It handles addresses of known mappings only and passes on all others
//! to the handler that was there before. Windows keeps a mapped file from being cut, so there is nothing to guard.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

/// A mapped file. Reading it never ends the program.
pub(super) struct Mapping {
    map: Mmap,
    #[cfg(unix)]
    watched: &'static unix::Watched,
}

impl Mapping {
    #[cfg(unix)]
    pub fn new(map: Mmap, path: &Path) -> std::io::Result<Mapping> {
        let watched = unix::watch(map.as_ptr() as usize, map.len(), path)?;
        Ok(Mapping { map, watched })
    }

    #[cfg(not(unix))]
    pub fn new(map: Mmap, _path: &Path) -> std::io::Result<Mapping> {
        Ok(Mapping { map })
    }

    /// Whether a part of the file was gone when it was read: zeros stood in its place.
    pub fn is_damaged(&self) -> bool {
        #[cfg(unix)]
        return self.watched.is_damaged();
        #[cfg(not(unix))]
        false
    }

    /// The mapping itself, for advice about it.
    pub fn map(&self) -> &Mmap {
        &self.map
    }
}

impl Deref for Mapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(unix)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // Before the pages are unmapped, so that the handler never touches what may then lie at their addresses.
        self.watched.forget();
    }
}

/// The first file, of those that were ever mapped, that was found damaged.
pub fn damaged_file() -> Option<PathBuf> {
    #[cfg(unix)]
    return unix::damaged_file();
    #[cfg(not(unix))]
    None
}

#[cfg(unix)]
mod unix {
    use std::io::{Error, Result};
    use std::path::{Path, PathBuf};
    use std::ptr::null_mut;
    use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};
    use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

    /// The addresses of a mapping. Never freed, since the handler may read it at any time; used again when forgotten.
    pub struct Watched {
        start: AtomicUsize, // 0: forgotten
        bytes: AtomicUsize,
        damaged: AtomicBool,
        next: *const Watched, // set before it is published, then constant
    }

    // SAFETY: `next` is written before the value is published and never after; all else is atomic.
    unsafe impl Sync for Watched {}
    // SAFETY: as above; nothing in it belongs to a thread.
    unsafe impl Send for Watched {}

    impl Watched {
        pub fn is_damaged(&self) -> bool {
            self.damaged.load(Acquire)
        }

        pub fn forget(&self) {
            noted().retire(self);
        }
    }

    /// All of them, newest first: what the handler walks.
    static FIRST: AtomicPtr<Watched> = AtomicPtr::new(null_mut());
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// What the handler does not need: whose mappings they are.
    static NOTED: Mutex<Noted> = Mutex::new(Noted { live: vec![], free: vec![], lost: None });

    struct Noted {
        live: Vec<(&'static Watched, PathBuf)>,
        free: Vec<&'static Watched>,
        /// Of a mapping that is gone.
        lost: Option<PathBuf>,
    }

    impl Noted {
        fn retire(&mut self, watched: &Watched) {
            watched.start.store(0, Release);
            let Some(at) = self.live.iter().position(|(live, _)| std::ptr::eq(*live, watched)) else { return };
            let (watched, path) = self.live.swap_remove(at);
            if watched.is_damaged() {
                self.lost.get_or_insert(path);
            }
            self.free.push(watched);
        }
    }

    fn noted() -> MutexGuard<'static, Noted> {
        // Lists of plain values: whole between any two statements.
        NOTED.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn damaged_file() -> Option<PathBuf> {
        let noted = noted();
        let live = noted.live.iter().find(|(watched, _)| watched.is_damaged()).map(|(_, path)| path.clone());
        noted.lost.clone().or(live)
    }

    /// Begins to guard a mapping.
    pub fn watch(start: usize, bytes: usize, path: &Path) -> Result<&'static Watched> {
        let mut noted = noted();
        install()?;
        let watched = match noted.free.pop() {
            Some(watched) => {
                watched.damaged.store(false, Relaxed);
                watched.bytes.store(bytes, Relaxed);
                watched
            }
            None => {
                let next = FIRST.load(Acquire);
                let (damaged, bytes) = (AtomicBool::new(false), AtomicUsize::new(bytes));
                let watched: &'static Watched =
                    Box::leak(Box::new(Watched { start: AtomicUsize::new(0), bytes, damaged, next }));
                FIRST.store(std::ptr::from_ref(watched).cast_mut(), Release);
                watched
            }
        };
        // Last, so that the handler never sees these addresses with another length.
        watched.start.store(start, Release);
        noted.live.push((watched, path.to_owned()));
        Ok(watched)
    }

    /// Under the lock of `NOTED`.
    fn install() -> Result<()> {
        if BEFORE.get().is_some() {
            return Ok(());
        }
        PAGE.store(rustix::param::page_size(), Relaxed);
        // SAFETY: a sigaction of zeros is a valid value, filled in below; both pointers are to locals. The handler has the
        // signature that SA_SIGINFO asks for and does only what is allowed in one.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let mut before: libc::sigaction = std::mem::zeroed();
            // What was there first, so that the handler finds it however early it is called.
            if libc::sigaction(libc::SIGBUS, null_mut(), &mut before) != 0 {
                return Err(Error::last_os_error());
            }
            let _ = BEFORE.set(before);
            if libc::sigaction(libc::SIGBUS, &action, null_mut()) != 0 {
                return Err(Error::last_os_error());
            }
        }
        Ok(())
    }

    extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel gives a valid siginfo of a SIGBUS, which has an address.
        let address = unsafe { (*info).si_addr() } as usize;
        if !fill(address) {
            pass_on(signal, info, context);
        }
    }

    /// Puts zeros from the page of this address to the end of the mapping it lies in; false if it lies in none.
    fn fill(address: usize) -> bool {
        let page = PAGE.load(Relaxed).max(1);
        let mut at: *const Watched = FIRST.load(Acquire);
        // SAFETY: every pointer of the list is to a leaked value, so valid for ever.
        while let Some(watched) = unsafe { at.as_ref() } {
            let start = watched.start.load(Acquire);
            let end = start.saturating_add(watched.bytes.load(Relaxed)).next_multiple_of(page);
            if start != 0 && (start..end).contains(&address) {
                watched.damaged.store(true, Release);
                let from = address / page * page;
                // SAFETY: the range lies in a mapping of ours that is only ever read, and stays mapped while its `Mapping`
                // lives, whose reader was interrupted here. mmap is a plain system call.
                let zeros = unsafe {
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED;
                    libc::mmap(from as *mut libc::c_void, end - from, libc::PROT_READ, flags, -1, 0)
                };
                return zeros != libc::MAP_FAILED;
            }
            at = watched.next;
        }
        false
    }

    /// What would have happened without this module.
    fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let Some(before) = BEFORE.get() else { return };
        match before.sa_sigaction {
            libc::SIG_IGN => {}
            libc::SIG_DFL => {
                // SAFETY: restores the default; the faulting instruction is then executed again and ends the program.
                unsafe {
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
            handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
                // SAFETY: SA_SIGINFO says that the handler has this signature; it is called as the kernel would.
                let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                    unsafe { std::mem::transmute(handler) };
                handler(signal, info, context);
            }
            handler => {
                // SAFETY: without SA_SIGINFO a handler takes the number only.
                let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
                handler(signal);
            }
        }
    }
}

#[cfg(all(test, unix))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn mapping(name: &str, bytes: u64) -> (std::fs::File, PathBuf, Mapping) {
        let path = std::env::temp_dir().join(format!("rynd-guard-{name}-{}", std::process::id()));
        std::fs::write(&path, vec![7; bytes as usize]).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // SAFETY: only this test changes the file, which is what it is about.
        let map = unsafe { Mmap::map(&file) }.unwrap();
        let mapping = Mapping::new(map, &path).unwrap();
        (file, path, mapping)
    }

    #[test]
    fn reading_where_the_file_was_cut_gives_zeros_and_is_noted() {
        let (file, path, mapping) = mapping("cut", 1 << 20);
        let (whole, other_path, other) = self::mapping("whole", 1 << 20);
        assert_eq!(mapping.iter().map(|&b| u64::from(b)).sum::<u64>(), 7 << 20);
        file.set_len(100_000).unwrap();
        assert!(!mapping.is_damaged());
        assert_eq!(mapping[(1 << 20) - 1], 0);
        assert!(mapping.is_damaged() && !other.is_damaged());
        assert_eq!((mapping[99_999], mapping[200_000], other[1 << 19]), (7, 0, 7));
        // From several threads at once, and again after a mapping took another's place.
        drop((other, whole));
        let (file, third_path, third) = self::mapping("third", 1 << 22);
        file.set_len(0).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let third = &third;
                scope.spawn(move || assert!(third[thread << 18..].iter().all(|&byte| byte == 0)));
            }
        });
        assert!(third.is_damaged());
        assert!(damaged_file().is_some());
        for path in [path, other_path, third_path] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
