//! SIGTERM, SIGHUP and SIGQUIT at a chat: it ends as if the user had left, so the chat is saved and the terminal is as
//! it was before.
//!
//! A signal stops the answer and the waiting for a line. Where that does not end the program soon, because it computes a
//! long prompt or reads from a terminal that is gone, a thread puts the terminal back and lets the signal do its work.
//! A signal that was ignored when the program began (nohup) stays ignored.

#[cfg(unix)]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, atomic::AtomicBool};
#[cfg(unix)]
use std::time::Duration;

use anyhow::Result;

#[cfg(unix)]
use super::super::interrupt;

/// For the chat to end well.
#[cfg(unix)]
const GRACE: Duration = Duration::from_secs(5);
#[cfg(unix)]
const TICK: Duration = Duration::from_millis(20);

static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// From now on these signals end the chat. What is returned turns true with the first one.
#[cfg(unix)]
pub fn watch() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGQUIT, SIGTERM};
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(AtomicUsize::new(0));
    for signal in [SIGTERM, SIGHUP, SIGQUIT] {
        if !is_ignored(signal) {
            signal_hook::flag::register_usize(signal, Arc::clone(&seen), signal.unsigned_abs() as usize)?;
        }
    }
    let before = rustix::termios::tcgetattr(std::io::stdin()).ok();
    let told = Arc::clone(&over);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let signal = loop {
            match i32::try_from(seen.load(Ordering::Relaxed)) {
                Ok(signal @ 1..) => break signal,
                _ => std::thread::sleep(TICK),
            }
        };
        CAUGHT.store(signal, Ordering::Relaxed);
        interrupt::end_session();
        told.store(true, Ordering::Relaxed);
        std::thread::sleep(GRACE);
        restore(before.as_ref());
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    })?;
    Ok(over)
}

/// This system has no such signals.
#[cfg(not(unix))]
pub fn watch() -> Result<Arc<AtomicBool>> {
    Ok(Arc::default())
}

/// The exit code of a chat that a signal ended: 128 + its number, as a shell says it.
pub fn exit_code() -> Option<u8> {
    match CAUGHT.load(Ordering::Relaxed) {
        0 => None,
        signal => u8::try_from(128 + signal).ok(),
    }
}

/// The terminal as it was, without the editor's modes.
#[cfg(unix)]
fn restore(before: Option<&rustix::termios::Termios>) {
    use std::io::Write;
    let Some(before) = before else { return };
    let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, before);
    // Past the lock of stdout, which whoever hangs may hold.
    if let Ok(mut terminal) = std::fs::OpenOptions::new().write(true).open("/dev/tty") {
        let _ = terminal.write_all(b"\x1b[?2004l\x1b[?25h\x1b[0m\r\n");
    }
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: a sigaction of zeros is a valid value to be written over; no new action is given, so nothing changes.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}
