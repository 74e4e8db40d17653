//! The sha256 of a file while it arrives.
//!
//! Pieces come out of order, a sum needs them in order: a thread follows the part that is there from the start on and
//! reads it back (from the page cache, as a rule). What an earlier run left is hashed again, so a resumed file is
//! verified whole.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::partial::Partial;

/// Hashes along until the file is whole; None if `over` turns true before.
pub(super) fn follow(partial: &Partial, over: &(dyn Fn() -> bool + Sync)) -> Result<Option<String>> {
    let mut block = vec![0; 1 << 20];
    let mut run = Run::new(partial)?;
    loop {
        // Read before the prefix: it is set after the last byte was written, so what follows sees that byte.
        let no_more = over();
        let (prefix, restarts) = partial.prefix();
        if restarts != run.restarts {
            run = Run::new(partial)?;
        } else if run.hashed < prefix {
            let wanted = block.len().min((prefix - run.hashed) as usize);
            let read = run.file.read_exact(&mut block[..wanted]);
            if partial.prefix().1 == run.restarts {
                read.map_err(Error::io(partial.data()))?;
                run.hasher.update(&block[..wanted]);
                run.hashed += wanted as u64;
            }
        } else if partial.is_whole() {
            return Ok(Some(hex(&run.hasher.finalize())));
        } else if no_more {
            return Ok(None);
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Of a file that is there already; None if `stop` turns true before.
pub(super) fn of_file(path: &Path, stop: &dyn Fn() -> bool) -> Result<Option<String>> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(Error::io(path))? {
            _ if stop() => return Ok(None),
            0 => return Ok(Some(hex(&hasher.finalize()))),
            count => hasher.update(&block[..count]),
        }
    }
}

struct Run {
    file: File,
    hasher: Sha256,
    hashed: u64,
    /// The start of the file that this run began with; a later one makes it void.
    restarts: u32,
}

impl Run {
    fn new(partial: &Partial) -> Result<Run> {
        let restarts = partial.prefix().1;
        Ok(Run { file: partial.reader()?, hasher: Sha256::new(), hashed: 0, restarts })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String can not fail
        text
    })
}
