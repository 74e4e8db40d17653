//! Files that rynd writes: each appears whole, or what had its name stays as it was.
//!
//! A file grows beside its target as `.NAME.PID.partial` and takes the name in one step of the file system, after its bytes
//! are on the disk. It keeps the mode and, where the system lets it, the owner of what it replaces; of a symbolic link the
//! file behind it is replaced, the link stays. What exists and is no regular file (a device, a FIFO) is written in place,
//! because a name is all that it has. An error, a drop and a signal remove the partial file; what a killed process left is
//! removed when the same file is next written. Access lists and extended attributes are not carried over.
//!
//! Everything goes through [`System`], so that tests can let any step fail. Refused: folders, and names that are none.

mod live;
mod place;
mod sweep;
mod system;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

pub use live::{clean_up, clean_up_on_signals, leave_signals_to_the_program};
pub use system::{Real, System};

#[cfg(any(test, feature = "faults"))]
pub use system::replace_system;

use live::Live;
use place::{Place, Replaced};
use system::system;

const BUFFER_BYTES: usize = 1 << 20;
/// Files of one name that one process may have in the making at once.
const MOST_OF_A_NAME: u32 = 100;

/// A file in the making.
pub struct Unfinished {
    path: PathBuf,
    out: Option<BufWriter<Handle>>, // taken when dropped
    partial: Option<Partial>,       // None: written in place
    sealed: bool,
}

/// Where the bytes are until the file gets its name.
struct Partial {
    path: PathBuf,
    target: PathBuf,
    replaced: Option<Replaced>,
    live: Live,
}

/// An open file whose bytes go through the seam.
struct Handle {
    path: PathBuf,
    file: File,
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        system().write(&self.path, &self.file, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a whole file.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = Unfinished::create(path)?;
    file.write_all(bytes.as_ref())?;
    file.publish()
}

/// Opens a file that is not one of this module's, such as a download that grows over several starts.
pub fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    uninterrupted(|| system().open(path, options))
}

/// Writes all bytes to such a file.
pub fn write_all(path: &Path, file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match uninterrupted(|| system().write(path, file, bytes))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = &bytes[n.min(bytes.len())..],
        }
    }
    Ok(())
}

/// Brings a complete file to the disk and gives it its name.
pub fn name(from: &Path, to: &Path) -> io::Result<()> {
    let system = system();
    let file = system.open(from, File::options().write(true))?;
    uninterrupted(|| system.sync(from, &file))?;
    drop(file);
    uninterrupted(|| system.rename(from, to))?;
    // As in `publish`.
    let _ = system.sync_folder(place::folder_of(to));
    Ok(())
}

/// The folder whose disk will hold the bytes of a file of this name; `None` where they go to a device or a pipe.
pub fn folder_for(path: &Path) -> io::Result<Option<PathBuf>> {
    Ok(match Place::of(path)? {
        Place::InPlace { .. } => None,
        Place::Beside { target, .. } => Some(place::folder_of(&target).to_owned()),
    })
}

/// Reads a whole file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let system = system();
    let file = system.open(path, File::options().read(true))?;
    let mut bytes = Vec::with_capacity(file.metadata().map_or(0, |meta| meta.len().min(1 << 30)) as usize);
    let mut piece = vec![0; 1 << 16];
    loop {
        match system.read(path, &file, &mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

impl Unfinished {
    /// Starts a file that will be at `path`. What is there stays until [`Unfinished::publish`].
    pub fn create(path: &Path) -> io::Result<Unfinished> {
        let place = Place::of(path)?;
        let (handle, partial) = match place {
            Place::InPlace { append } => {
                let file = system().open(path, File::options().write(true).append(append))?;
                (Handle { path: path.to_owned(), file }, None)
            }
            Place::Beside { target, replaced } => {
                sweep::sweep(&target);
                let (handle, live) = create_beside(&target, replaced.is_some())?;
                let path = handle.path.clone();
                (handle, Some(Partial { path, target, replaced, live }))
            }
        };
        let out = Some(BufWriter::with_capacity(BUFFER_BYTES, handle));
        Ok(Unfinished { path: path.to_owned(), out, partial, sealed: false })
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last byte is written: everything goes to the disk. The file has no name yet.
    pub fn seal(&mut self) -> io::Result<()> {
        if self.sealed {
            return Ok(());
        }
        let out = self.out()?;
        out.flush()?;
        let Handle { path, file } = out.get_ref();
        let synced = uninterrupted(|| system().sync(path, file));
        if let Some(partial) = &self.partial {
            synced?;
            if let (Some(replaced), Some(out)) = (&partial.replaced, &self.out) {
                replaced.pass_on(&out.get_ref().file)?;
            }
        }
        // A pipe or a terminal has no disk behind it: there the result says nothing.
        self.sealed = true;
        Ok(())
    }

    /// Gives the file its name, sealed before if need be.
    pub fn publish(mut self) -> io::Result<()> {
        self.seal()?;
        // A file that is still in `partial` when this returns is removed by the drop.
        if let Some(partial) = &self.partial {
            uninterrupted(|| system().rename(&partial.path, &partial.target))?;
            // The name is there. Where it can not be made safe against a power failure, the file is none the worse.
            let _ = system().sync_folder(place::folder_of(&partial.target));
        }
        if let Some(partial) = self.partial.take() {
            partial.live.end();
        }
        Ok(())
    }

    fn out(&mut self) -> io::Result<&mut BufWriter<Handle>> {
        self.out.as_mut().ok_or_else(|| io::Error::other("the file is closed already"))
    }
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.sealed {
            return Err(io::Error::other("the file is complete already"));
        }
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
        if let Some(partial) = self.partial.take() {
            let _ = system().remove(&partial.path);
            partial.live.end();
        }
    }
}

/// Opens the partial file, locked, so that no other process takes it for one that was left behind.
fn create_beside(target: &Path, private: bool) -> io::Result<(Handle, Live)> {
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for no in 0..MOST_OF_A_NAME {
        let path = place::partial_of(target, no);
        // Known before it is there: a signal in between finds it.
        let live = Live::begin(&path);
        match uninterrupted(|| system().create_new(&path, private)) {
            Ok(file) => {
                // Without locks on this file system the number of the process has to do.
                let _ = file.try_lock();
                return Ok((Handle { path, file }, live));
            }
            Err(e) => {
                live.end();
                if e.kind() != io::ErrorKind::AlreadyExists {
                    return Err(e);
                }
                last = e;
            }
        }
    }
    Err(last)
}

fn uninterrupted<T>(mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match work() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
