//! Where the bytes of a file go: beside what they will replace, or into what is there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

/// Links that may follow one another, as in Linux.
const MOST_LINKS: usize = 40;
/// Bytes of a name that every usual file system takes.
const MOST_NAME_BYTES: usize = 255;

pub(super) enum Place {
    /// Written into what is there; behind what it holds when it is a regular file that another process opened.
    InPlace { append: bool },
    /// Written beside `target`, which is no link, and renamed.
    Beside { target: PathBuf, replaced: Option<Replaced> },
}

impl Place {
    pub fn of(path: &Path) -> io::Result<Place> {
        let mut target = path.to_owned();
        for _ in 0..MOST_LINKS {
            if target.file_name().is_none() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "this names no file"));
            }
            let meta = match fs::symlink_metadata(&target) {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Place::Beside { target, replaced: None }),
                Err(e) => return Err(e),
            };
            if meta.is_dir() {
                return Err(io::Error::new(io::ErrorKind::IsADirectory, "this is a folder"));
            }
            if !meta.is_symlink() {
                return Ok(match meta.is_file() {
                    true => Place::Beside { target, replaced: Some(Replaced::of(&meta)) },
                    false => Place::InPlace { append: false },
                });
            }
            if is_descriptor(&target) {
                return Ok(Place::InPlace { append: fs::metadata(&target)?.is_file() });
            }
            // A link's own path counts from the folder that holds the link.
            target = folder_of(&target).join(fs::read_link(&target)?);
        }
        Err(io::Error::other("too many symbolic links, or a circle of them"))
    }
}

/// Whether a link stands for an open file of a process (`/dev/stdout` leads to one): its text is only a description.
fn is_descriptor(link: &Path) -> bool {
    let folder = folder_of(link);
    folder == Path::new("/dev/fd") || fs::canonicalize(folder).is_ok_and(|real| real.starts_with("/proc"))
}

/// The folder that holds a file.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The name under which a file grows: `.NAME.PID.partial`, or `.NAME.PID-NO.partial` for a process that writes it
/// more than once at a time.
pub(super) fn partial_of(target: &Path, no: u32) -> PathBuf {
    let pid = std::process::id();
    let end = if no == 0 { format!(".{pid}.partial") } else { format!(".{pid}-{no}.partial") };
    let mut name = OsString::from(".");
    name.push(short(target.file_name().unwrap_or_default(), MOST_NAME_BYTES - 1 - end.len()));
    name.push(end);
    target.with_file_name(name)
}

/// At most so many bytes of a name. Of a name that is not UTF-8 and too long nothing is kept.
fn short(name: &OsStr, most: usize) -> OsString {
    if name.len() <= most {
        return name.to_owned();
    }
    let text = name.to_str().unwrap_or_default();
    let end = (0..=most).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[..end].into()
}

/// What the new file takes over from the one that it replaces.
#[cfg(unix)]
pub(super) struct Replaced {
    mode: u32,
    owner: u32,
    group: u32,
}

#[cfg(unix)]
impl Replaced {
    fn of(meta: &Metadata) -> Replaced {
        use std::os::unix::fs::MetadataExt;
        Replaced { mode: meta.mode() & 0o7777, owner: meta.uid(), group: meta.gid() }
    }

    /// Gives mode and owner to the new file. Another user's file can not be given away by all; then the mode keeps what
    /// its group could do from a group that it was not meant for.
    pub fn pass_on(&self, file: &File) -> io::Result<()> {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
        let now = file.metadata()?;
        let mut mode = self.mode;
        if (now.uid(), now.gid()) != (self.owner, self.group)
            && fchown(file, Some(self.owner), Some(self.group)).is_err()
        {
            // These bits act for the owner and the group, who are others now.
            mode &= 0o777;
            if now.gid() != self.group && fchown(file, None, Some(self.group)).is_err() {
                mode = (mode & !0o070) | ((mode << 3) & mode & 0o070);
            }
        }
        file.set_permissions(fs::Permissions::from_mode(mode))
    }
}

#[cfg(not(unix))]
pub(super) struct Replaced;

#[cfg(not(unix))]
impl Replaced {
    fn of(_: &Metadata) -> Replaced {
        Replaced
    }

    pub fn pass_on(&self, _: &File) -> io::Result<()> {
        Ok(())
    }
}
