//! What an editor writes to the Language Server.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| rynd::commands::read_messages(bytes));
