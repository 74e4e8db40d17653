//! A mirror that is no server of ours: Python packages whose wheels carry a file in parts.
//!
//! The user's own `python3 -m pip download` fetches them, so the index, the proxy and the credentials are the user's;
//! no registry is named here. Only wheels are taken and nothing of them is run. A few packages are fetched ahead while
//! the parts are joined in order; a wheel is deleted as soon as its part is written. Whole parts survive an
//! interruption.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::{Error, Result};
use super::partial::Partial;
use super::pull::{Event, Watch};

/// Packages fetched at the same time.
const AHEAD: usize = 3;

pub(super) struct Mirror<'a> {
    pub packages: &'a [String],
    /// The path of the part in its wheel.
    pub part: &'a str,
    pub python: &'a [PathBuf],
    /// For wheels on their way; on the disk of the file, so that one check of free space covers both.
    pub folder: PathBuf,
}

/// What the mirror needs on the disk beside the file itself: pip keeps each wheel twice for a moment.
pub(super) fn extra_bytes(packages: usize, bytes: u64) -> u64 {
    let packages = packages.max(1) as u64;
    bytes.div_ceil(packages).saturating_mul(2 * packages.min(AHEAD as u64))
}

impl Mirror<'_> {
    pub fn download(&self, partial: &Partial, watch: &Watch) -> Result<()> {
        let joined = join_from(partial)?;
        (watch.tell)(Event::Kept(partial.have()));
        self.clean()?;
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        let failed = AtomicBool::new(false);
        let over = || failed.load(Ordering::Acquire) || (watch.stop)();
        let result = std::thread::scope(|scope| {
            let result = (|| {
                let mut next = joined..self.packages.len();
                let mut ahead = VecDeque::new();
                loop {
                    while ahead.len() < AHEAD
                        && let Some(i) = next.next()
                    {
                        ahead.push_back((i, scope.spawn(move || self.fetch(i, &over))));
                    }
                    let Some((i, thread)) = ahead.pop_front() else { return self.check_end(partial) };
                    let wheel = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                    self.append(i, &wheel, partial, watch)?;
                    fs::remove_file(&wheel).map_err(Error::io(&wheel))?;
                }
            })();
            failed.store(result.is_err(), Ordering::Release);
            result
        });
        let cleaned = self.clean();
        match result {
            Err(_) if (watch.stop)() => Err(watch.interrupted(partial)),
            result => result.and(cleaned),
        }
    }

    fn clean(&self) -> Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(&self.folder)(e)),
            _ => Ok(()),
        }
    }

    /// Runs pip for one package; gives its wheel.
    fn fetch(&self, i: usize, over: &dyn Fn() -> bool) -> Result<PathBuf> {
        let package = &self.packages[i];
        let fail = |message: String| Error::Pip { package: package.clone(), message };
        let folder = self.folder.join(i.to_string());
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let log = self.folder.join(format!("{i}.log"));
        let output = File::create(&log).map_err(Error::io(&log))?;
        let mut pip = self.start(package, &folder, &output)?;
        let status = loop {
            match pip.try_wait().map_err(|e| fail(e.to_string()))? {
                Some(status) => break status,
                None if over() => {
                    end(&mut pip);
                    return Err(fail("stopped".to_owned()));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        if !status.success() {
            let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
            return Err(fail(format!("{status}{}", last_lines(&text))));
        }
        let files = fs::read_dir(&folder).map_err(Error::io(&folder))?;
        let mut wheels =
            files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "whl"));
        wheels.next().ok_or_else(|| fail("it ended well but left no wheel".to_owned()))
    }

    fn start(&self, package: &str, folder: &Path, output: &File) -> Result<Child> {
        let mut missing = None;
        for program in self.python {
            let stream = || output.try_clone().map(Stdio::from).map_err(Error::io(&self.folder));
            let mut command = Command::new(program);
            // A group of its own: `python3` may be a wrapper, and with it the real one must end.
            #[cfg(unix)]
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            let child = command
                .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"])
                .args(["--no-input", "--disable-pip-version-check", "-q", "-d"])
                .arg(folder)
                .arg(package)
                .env("TMPDIR", &self.folder)
                .stdin(Stdio::null())
                .stdout(stream()?)
                .stderr(stream()?)
                .spawn();
            match child {
                Ok(child) => return Ok(child),
                Err(e) => {
                    missing.get_or_insert(Error::NoPython {
                        program: program.display().to_string(),
                        cause: e.to_string(),
                    });
                }
            }
        }
        let none = || Error::NoPython { program: "python3".to_owned(), cause: "no Python is configured".to_owned() };
        Err(missing.unwrap_or_else(none))
    }

    fn append(&self, i: usize, wheel: &Path, partial: &Partial, watch: &Watch) -> Result<()> {
        let fail = |message: String| Error::Wheel { package: self.packages[i].clone(), message };
        let file = File::open(wheel).map_err(Error::io(wheel))?;
        let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(|e| fail(e.to_string()))?;
        let names = archive.file_names().filter_map(|name| name.ok().map(|name| name.into_owned()));
        let mut parts: Vec<String> = names.filter(|name| matches(self.part, name)).collect();
        parts.sort_by_key(|name| number_in(name));
        if parts.is_empty() {
            return Err(fail(format!("its wheel holds no {}", self.part)));
        }
        let mut writer = partial.writer(partial.prefix().0)?;
        let mut block = vec![0; 1 << 20];
        for name in parts {
            let mut part = archive.by_name(&name).map_err(|e| fail(e.to_string()))?;
            loop {
                let count = part.read(&mut block).map_err(|e| fail(format!("{name}: {e}")))?;
                if count == 0 {
                    break;
                }
                let end = writer.offset() + count as u64;
                if (watch.stop)() || partial.bytes().is_some_and(|bytes| end > bytes) {
                    return Err(fail("its parts are larger than the file".to_owned()));
                }
                writer.write(&block[..count])?;
                (watch.tell)(Event::Bytes(count as u64));
            }
        }
        partial.end_part(writer.offset());
        partial.save()
    }

    fn check_end(&self, partial: &Partial) -> Result<()> {
        let (got, expected) = (partial.prefix().0, partial.bytes().unwrap_or_default());
        if got == expected {
            return Ok(());
        }
        let package = self.packages.last().cloned().unwrap_or_default();
        Err(Error::Wheel { package, message: format!("all parts together are {got} bytes, the file has {expected}") })
    }
}

/// Ends pip and what it started. It may just have ended by itself, so failures mean nothing.
fn end(pip: &mut Child) {
    #[cfg(unix)]
    if let Some(group) = i32::try_from(pip.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = pip.kill();
    let _ = pip.wait();
}

/// The number of packages whose part is there already; what lies behind the last whole part is forgotten.
fn join_from(partial: &Partial) -> Result<usize> {
    let ends = partial.part_ends();
    match ends.last() {
        Some(end) if *end <= partial.prefix().0 => partial.keep_first(*end),
        _ => partial.restart()?,
    }
    Ok(partial.part_ends().len())
}

/// `*` stands for any characters but `/`.
fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((before, rest)) => path.strip_prefix(before).is_some_and(|tail| {
            let reach = tail.find('/').unwrap_or(tail.len());
            (0..=reach).filter(|i| tail.is_char_boundary(*i)).any(|i| matches(rest, &tail[i..]))
        }),
    }
}

/// The last number in the file's name: parts follow each other by it, not by the alphabet.
fn number_in(path: &str) -> u64 {
    let name = path.rsplit('/').next().unwrap_or(path);
    let from = name.trim_end_matches(|c: char| !c.is_ascii_digit());
    let digits = from.len() - from.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    from[from.len() - digits..].parse().unwrap_or(0)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].iter().map(|line| format!("; {line}")).collect()
}
