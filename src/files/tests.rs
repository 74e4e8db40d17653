//! Every step of writing a file made to fail: the old file stays, nothing half-done is left, and the error is the system's.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{System, Unfinished, read, replace_system, write};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Create,
    /// The disk is full after so many bytes.
    Full(usize),
    Sync,
    Rename,
    /// Each call moves one byte, after one that was interrupted.
    Crumbs,
}

/// Fails in one folder alone: other tests write at the same time.
struct Faulty {
    folder: PathBuf,
    fault: Fault,
    calls: AtomicUsize,
    written: AtomicUsize,
}

impl Faulty {
    fn is(&self, path: &Path, fault: Fault) -> io::Result<()> {
        if path.starts_with(&self.folder) && self.fault == fault {
            Err(io::Error::from_raw_os_error(5))
        } else {
            Ok(())
        }
    }

    /// Bytes of this call, where the fault is one of small pieces.
    fn crumb(&self, path: &Path, n: usize) -> io::Result<usize> {
        if !path.starts_with(&self.folder) || self.fault != Fault::Crumbs {
            return Ok(n);
        }
        match self.calls.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Err(io::ErrorKind::Interrupted.into()),
            _ => Ok(n.min(1)),
        }
    }
}

impl System for Faulty {
    fn create_new(&self, path: &Path, private: bool) -> io::Result<File> {
        self.is(path, Fault::Create)?;
        super::Real.create_new(path, private)
    }

    fn read(&self, path: &Path, file: &File, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.crumb(path, bytes.len())?;
        super::Real.read(path, file, &mut bytes[..n])
    }

    fn write(&self, path: &Path, file: &File, bytes: &[u8]) -> io::Result<usize> {
        let mut n = self.crumb(path, bytes.len())?;
        if let (Fault::Full(room), true) = (self.fault, path.starts_with(&self.folder)) {
            n = n.min(room.saturating_sub(self.written.load(Ordering::Relaxed)));
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let n = super::Real.write(path, file, &bytes[..n])?;
        self.written.fetch_add(n, Ordering::Relaxed);
        Ok(n)
    }

    fn sync(&self, path: &Path, file: &File) -> io::Result<()> {
        self.is(path, Fault::Sync)?;
        super::Real.sync(path, file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.is(from, Fault::Rename)?;
        super::Real.rename(from, to)
    }
}

#[test]
fn whatever_fails_the_old_file_stays_and_nothing_else_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let new = vec![b'x'; 3 << 20];
    for fault in [
        Fault::Create,
        Fault::Full(0),
        Fault::Full(1),
        Fault::Full(2 << 20),
        Fault::Full((3 << 20) - 1),
        Fault::Sync,
        Fault::Rename,
        Fault::Crumbs,
        Fault::None,
    ] {
        let content = if fault == Fault::Crumbs { &new[..1000] } else { &new };
        std::fs::write(&path, "old").unwrap();
        let (calls, written) = (AtomicUsize::new(0), AtomicUsize::new(0));
        replace_system(Some(Arc::new(Faulty { folder: folder.path().to_owned(), fault, calls, written })));
        let result = write(&path, content);
        let back = read(&path);
        replace_system(None);
        match fault {
            Fault::None | Fault::Crumbs => {
                result.unwrap();
                assert!(std::fs::read(&path).unwrap() == content, "{fault:?}");
                assert!(back.unwrap() == content, "{fault:?}");
            }
            Fault::Full(_) => assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull, "{fault:?}"),
            Fault::Create | Fault::Sync | Fault::Rename => {
                assert_eq!(result.unwrap_err().raw_os_error(), Some(5), "{fault:?}");
            }
        }
        if !matches!(fault, Fault::None | Fault::Crumbs) {
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "old", "{fault:?}");
        }
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["file"], "{fault:?}");
    }
}

#[test]
fn several_files_of_one_name_may_be_in_the_making_and_the_last_to_be_named_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("n".repeat(255));
    let mut all: Vec<Unfinished> = (0..3).map(|_| Unfinished::create(&path).unwrap()).collect();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "three names, none too long");
    for (no, file) in all.iter_mut().enumerate() {
        write!(file, "{no}").unwrap();
    }
    let last = all.pop().unwrap();
    last.publish().unwrap();
    drop(all);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "2");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_a_circle_and_no_name_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(write(folder.path(), "x").unwrap_err().kind(), io::ErrorKind::IsADirectory);
    assert!(write(Path::new("/"), "x").is_err() && write(Path::new(""), "x").is_err());
    #[cfg(unix)]
    {
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        std::os::unix::fs::symlink(&a, &b).unwrap();
        std::os::unix::fs::symlink(&b, &a).unwrap();
        assert!(write(&a, "x").unwrap_err().to_string().contains("circle"));
    }
}
