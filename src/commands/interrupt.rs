//! Ctrl-C: the first one asks the command to stop, the second ends the program at once.
//!
//! A chat outlives its answers: there Ctrl-C only ever asks, and each answer starts with the slate wiped.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::files;

/// The exit code of a command that Ctrl-C stopped: 128 + SIGINT.
pub const EXIT_CODE: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);
static SESSION: AtomicBool = AtomicBool::new(false);
static AT_ONCE: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C is counted instead of ending the program. Once a process.
pub fn watch() -> Result<()> {
    ctrlc::set_handler(|| {
        let first = !ASKED.swap(true, Ordering::Relaxed);
        if (!first || AT_ONCE.load(Ordering::Relaxed)) && !SESSION.load(Ordering::Relaxed) {
            // No drop runs from here on.
            files::clean_up();
            std::process::exit(i32::from(EXIT_CODE));
        }
    })
    .context("can not watch for Ctrl-C")
}

/// Whether the user asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// From now on no Ctrl-C ends the program, however often it is pressed.
pub fn keep_session() {
    SESSION.store(true, Ordering::Relaxed);
}

/// Forgets what was asked before.
pub fn reset() {
    ASKED.store(false, Ordering::Relaxed);
}

/// Does what can not be asked to stop, such as waiting for a line: there the first Ctrl-C ends the program.
pub fn at_once<T>(work: impl FnOnce() -> T) -> T {
    AT_ONCE.store(true, Ordering::Relaxed);
    let result = work();
    AT_ONCE.store(false, Ordering::Relaxed);
    result
}
