//! What is asked of the system when files are written and read: the one seam through which it goes.
//!
//! Each operation has the real thing as its default, so a test's [`System`] overrides only what it wants to fail. In a program
//! built without the feature `faults` there is nothing to replace.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// The operations on files. Paths come along so that a test can choose whom to fail.
pub trait System: Send + Sync {
    /// Creates a file that must not be there; `private`: for its owner alone.
    fn create_new(&self, path: &Path, private: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if private {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        #[cfg(not(unix))]
        let _ = private;
        options.open(path)
    }

    /// Opens a file.
    fn open(&self, path: &Path, options: &OpenOptions) -> io::Result<File> {
        options.open(path)
    }

    /// Reads some bytes; 0 at the end.
    fn read(&self, path: &Path, mut file: &File, bytes: &mut [u8]) -> io::Result<usize> {
        let _ = path;
        file.read(bytes)
    }

    /// Writes some of the bytes, at least one.
    fn write(&self, path: &Path, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        let _ = path;
        file.write(bytes)
    }

    /// Brings what was written to the disk.
    fn sync(&self, path: &Path, file: &File) -> io::Result<()> {
        let _ = path;
        file.sync_all()
    }

    /// Gives a file another name, in place of what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// Brings the names in a folder to the disk.
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    }
}

/// The operating system itself.
pub struct Real;

impl System for Real {}

#[cfg(not(any(test, feature = "faults")))]
pub(super) fn system() -> &'static dyn System {
    &Real
}

#[cfg(any(test, feature = "faults"))]
pub use replaced::replace_system;
#[cfg(any(test, feature = "faults"))]
pub(super) use replaced::system;

#[cfg(any(test, feature = "faults"))]
mod replaced {
    use std::sync::{Arc, PoisonError, RwLock};

    use super::{Real, System};

    static SYSTEM: RwLock<Option<Arc<dyn System>>> = RwLock::new(None);

    pub fn system() -> Arc<dyn System> {
        let system = SYSTEM.read().unwrap_or_else(PoisonError::into_inner).clone();
        system.unwrap_or_else(|| Arc::new(Real))
    }

    /// Puts another system in place of the real one for the whole process; `None` puts the real one back.
    pub fn replace_system(system: Option<Arc<dyn System>>) {
        *SYSTEM.write().unwrap_or_else(PoisonError::into_inner) = system;
    }
}
