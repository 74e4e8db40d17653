//! The program `rynd`: reads the arguments, runs one command, and tells how it went.
//!
//! Exit codes: 0 done (also when the reader of the output went away), 1 an error, which is one message on stderr, 2 wrong
//! usage, 130 interrupted.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use rynd::commands::{self, Cli};

fn main() -> ExitCode {
    survive_file_size_limits();
    rynd::files::clean_up_on_signals();
    match commands::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) if commands::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if commands::is_interruption(&error) => {
            let _ = writeln!(commands::stderr(), "rynd: {error:#}");
            ExitCode::from(commands::INTERRUPTED)
        }
        Err(error) => {
            // When stderr is gone as well there is nobody left to tell.
            let _ = writeln!(commands::stderr(), "rynd: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A limit on the size of files ('ulimit -f') then fails the write, which is told like a full disk, in place of killing rynd
/// with a half-written file left behind.
#[cfg(unix)]
fn survive_file_size_limits() {
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    // Without the handler all is as in any other program.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, seen);
}

#[cfg(not(unix))]
fn survive_file_size_limits() {}
