//! A file that gets its name when it is complete.
//!
//! It grows under a temporary name in its own folder, so that giving it its name is one step of the file system; what
//! had the name stays in place until then. Dropped before that, it is removed: a stopped program, a full disk or an
//! error never leaves a file that looks whole.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

const BUFFER_BYTES: usize = 1 << 20;

/// A file in the making.
pub struct Unfinished {
    path: PathBuf,
    partial: PathBuf,
    out: Option<BufWriter<File>>, // taken by seal
    named: bool,
}

impl Unfinished {
    /// Starts a file that will be at `path`.
    pub fn create(path: &Path) -> io::Result<Unfinished> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&partial)?;
        let out = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(Unfinished { path: path.to_owned(), partial, out, named: false })
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last byte is written: everything goes to the disk, and the file is closed. It has no name yet.
    pub fn seal(&mut self) -> io::Result<()> {
        match self.out.take() {
            Some(out) => out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Gives the file its name, sealed before if need be.
    pub fn publish(mut self) -> io::Result<()> {
        self.seal()?;
        std::fs::rename(&self.partial, &self.path)?;
        self.named = true;
        Ok(())
    }

    fn out(&mut self) -> io::Result<&mut BufWriter<File>> {
        self.out.as_mut().ok_or_else(|| io::Error::other("the file is closed already"))
    }
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out()?.flush()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            // Not flushed: the bytes are about to go.
            drop(out.into_parts().0);
        }
        if !self.named {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}
