//! Removes what killed processes left of a file: `.NAME.PID.partial` whose process is gone.
//!
//! A living process holds a lock on its partial file, in whatever container or on whatever machine it runs. A file without
//! a lock is left alone for a minute when a process of its number lives, since that one may be about to lock it. The
//! parts of a split model are swept together, because the next run may cut it otherwise.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use super::place::{folder_of, partial_of};
use super::system::system;

/// How long an unlocked file of a living process may be one that is just being made.
const MAKING: Duration = Duration::from_secs(60);

/// Removes what dead processes left of this file. Never an error: the new file does not depend on it.
pub(super) fn sweep(target: &Path) {
    let Some(name) = target.file_name() else { return };
    let Ok(list) = fs::read_dir(folder_of(target)) else { return };
    // A long name is cut in the name of its partial file; so it is here.
    let ours = partial_of(target, 0);
    let Some(name_here) = ours.file_name().and_then(|ours| parse(ours.as_encoded_bytes())).map(|(name, _)| name) else {
        return;
    };
    let wanted = [whole(name.as_encoded_bytes()), whole(name_here)];
    for entry in list.flatten() {
        let found = entry.file_name();
        let Some((name, pid)) = parse(found.as_encoded_bytes()) else { continue };
        if wanted.contains(&whole(name)) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let path = entry.path();
            if is_abandoned(&path, pid) {
                let _ = system().remove(&path);
            }
        }
    }
}

/// NAME and PID of `.NAME.PID.partial` or `.NAME.PID-NO.partial`.
fn parse(name: &[u8]) -> Option<(&[u8], u32)> {
    let name = name.strip_prefix(b".")?.strip_suffix(b".partial")?;
    let dot = name.iter().rposition(|&b| b == b'.')?;
    let numbers = std::str::from_utf8(&name[dot + 1..]).ok()?;
    let (pid, no) = numbers.split_once('-').unwrap_or((numbers, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(pid) && digits(no)).then(|| Some((&name[..dot], pid.parse().ok()?)))?
}

/// The name without `-00002-of-00005.gguf`.
fn whole(name: &[u8]) -> &[u8] {
    let digits = |bytes: &[u8]| bytes.len() == 5 && bytes.iter().all(u8::is_ascii_digit);
    let Some(stem) = name.strip_suffix(b".gguf") else { return name };
    match stem.len().checked_sub("-00002-of-00005".len()).map(|at| stem.split_at(at)) {
        Some((whole, part)) if digits(&part[1..6]) && &part[6..10] == b"-of-" && digits(&part[10..]) => whole,
        _ => stem,
    }
}

fn is_abandoned(path: &Path, pid: u32) -> bool {
    let Ok(file) = File::open(path) else { return false };
    match file.try_lock() {
        Ok(()) => !lives(pid) || is_old(&file),
        Err(fs::TryLockError::WouldBlock) => false,
        // This file system has no locks.
        Err(fs::TryLockError::Error(_)) => !lives(pid),
    }
}

fn is_old(file: &File) -> bool {
    let age = file.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age > MAKING)
}

#[cfg(unix)]
fn lives(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return false };
    // That it is another user's process is an answer too.
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

#[cfg(not(unix))]
fn lives(pid: u32) -> bool {
    let _ = pid;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_partial_files_are_understood() {
        for (name, expected) in [
            (".a.gguf.12.partial", Some(("a.gguf", 12))),
            (".a.gguf.1234-2.partial", Some(("a.gguf", 1234))),
            (".a.5.7.partial", Some(("a.5", 7))),
            (".a.-2.partial", None),
            (".a.1.partial", Some(("a", 1))),
            (".a.partial", None),
            ("a.12.partial", None),
            (".a.12x.partial", None),
            (".a.99999999999.partial", None),
        ] {
            let expected = expected.map(|(name, pid): (&str, u32)| (name.as_bytes(), pid));
            assert_eq!(parse(name.as_bytes()), expected, "{name}");
        }
        assert_eq!(whole(b"m-00002-of-00005.gguf"), b"m");
        assert_eq!(whole(b"m.gguf"), b"m");
        assert_eq!(whole(b"-00002-of-00005.gguf"), b"");
        assert_eq!(whole(b"m.npy"), b"m.npy");
    }
}
