//! The program `rynd`: reads the arguments, runs one command, and tells how it went.
//!
//! Exit codes: 0 done (also when the reader of the output went away), 1 an error, which is one message on stderr, 2 wrong
//! usage, 130 interrupted.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use rynd::commands::{self, Cli};

fn main() -> ExitCode {
    match commands::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) if commands::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if commands::is_interruption(&error) => {
            let _ = writeln!(std::io::stderr(), "rynd: {error:#}");
            ExitCode::from(commands::INTERRUPTED)
        }
        Err(error) => {
            // When stderr is gone as well there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "rynd: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
