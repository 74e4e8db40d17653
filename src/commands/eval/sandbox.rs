//! Runs Python that a model wrote, and judges it from another process.
//!
//! Each answer gets two Pythons, both with limits on time, memory, files and descriptors, an empty environment, an empty
//! folder and, where the system has them, walls ([`super::walls`]). The answer's holds its code and nothing else; the judge's
//! holds the tests and calls the answer's function over a socket that carries plain values. So an answer sees neither the
//! tests nor their results, and the verdict comes from a process that runs none of its code, with a number drawn for this
//! run in front. One clock stands above all: when it is over both are killed and nothing more is read.
//! As root both run as nobody. Without walls nothing runs unless the user says so, and as root not even then.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const JUDGE: &str = concat!(include_str!("wire.py"), include_str!("judge.py"));
const ANSWER: &str = concat!(include_str!("wire.py"), include_str!("answer.py"));
/// Asks a Python where it and its libraries lie.
const LOOK: &str = "\
import sys, os
paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))}
try:
    import hashlib, decimal, ctypes, bisect, random
    paths |= {line.split(None, 5)[5].strip() for line in open('/proc/self/maps') if '/' in line}
except Exception:
    pass
print(sys.executable, *sorted(path for path in paths if os.path.exists(path)), sep='\\n')";
/// The machine may be busy: wall time allowed for a second of CPU time.
const WALL: u32 = 6;
/// CPU time of the program that tries a Python, at least: it says nothing about an answer.
const TRIAL: Duration = Duration::from_secs(20);
/// A verdict is one line, and short.
const VERDICT_BYTES: usize = 4096;

/// How to run programs.
#[derive(Clone, Debug)]
pub struct Sandbox {
    jail: PathBuf,
    python: PathBuf,
    readable: Vec<PathBuf>,
    cpu: Duration,
    memory_bytes: u64,
    /// Why there are no walls, if there are none.
    bare: Option<String>,
}

/// One answer and what it is tested with.
#[derive(Clone, Debug, Default)]
pub struct Case<'a> {
    /// What stands before the answer and before the tests, whole lines: imports and helpers, not the answer's.
    pub given: &'a str,
    pub code: &'a str,
    /// Defines `check`, which takes the function.
    pub test: &'a str,
    pub entry: &'a str,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its tests ran to their end.
    Passed,
    Failed(String),
}

impl Sandbox {
    /// Finds a Python and tries it, that of the user or the first that runs. `jail` is the program rynd.
    pub fn new(jail: &Path, python: Option<&str>, cpu: Duration, memory_bytes: u64, unsafely: bool) -> Result<Sandbox> {
        if cfg!(not(unix)) {
            bail!("running answers needs the limits of a Unix system; run this on Linux or macOS");
        }
        let mut sandbox =
            Sandbox { jail: jail.into(), python: PathBuf::new(), readable: vec![], cpu, memory_bytes, bare: None };
        if let Err(why) = sandbox.try_walls() {
            if is_root() {
                bail!("answers are not run as root without walls around them: {why}; run this as another user");
            }
            if !unsafely {
                bail!("there are no walls to run answers behind: {why}; --unsafe-eval runs them without");
            }
            sandbox.bare = Some(why.to_string());
        }
        let mut failures = vec![];
        let named = python.map_or(vec!["python3", "/usr/bin/python3"], |python| vec![python]);
        for python in named {
            match sandbox.with(python) {
                Ok(sandbox) => return Ok(sandbox),
                Err(failure) => failures.push(format!("{failure:#}")),
            }
        }
        bail!("{}; name another with --python", failures.join("; "))
    }

    /// Why there are no walls around answers, if there are none.
    pub fn bare(&self) -> Option<&str> {
        self.bare.as_deref()
    }

    fn try_walls(&self) -> Result<()> {
        let folder = Folder::new()?;
        let mut command = self.jailed(&folder, false);
        let output = command.output().with_context(|| format!("can not run {}", self.jail.display()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("{}", text.trim().trim_start_matches("rynd: error: "));
        }
        Ok(())
    }

    fn with(&self, python: &str) -> Result<Sandbox> {
        // A version manager's stand-in needs the environment that the program will not have.
        let found = Command::new(python).args(["-I", "-c", LOOK]).output();
        let found = found.with_context(|| format!("can not run {python}"))?;
        let text = String::from_utf8_lossy(&found.stdout);
        let mut paths = text.lines().map(PathBuf::from);
        let Some(path) = paths.next().filter(|path| found.status.success() && path.is_absolute()) else {
            bail!("{python} is no Python that runs ({})", found.status);
        };
        let sandbox = Sandbox { python: path, readable: paths.collect(), ..self.clone() };
        let trivial = Case {
            given: "import typing, math, re, hashlib, collections\n",
            code: "def f(x): return x",
            test: "def check(f): assert f((1, {'a': 2.5})) == (1, {'a': 2.5})",
            entry: "f",
        };
        let patient = Sandbox { cpu: sandbox.cpu.max(TRIAL), ..sandbox.clone() };
        match patient.run(&trivial)? {
            Outcome::Passed => Ok(sandbox),
            Outcome::Failed(_) if is_root() && !world_reads(&sandbox.python) => {
                bail!("{} lies where only root can read, and answers do not run as root", sandbox.python.display())
            }
            Outcome::Failed(why) => bail!("{python} does not run a trivial program: {why}"),
        }
    }

    /// Runs an answer and its tests to their end or their limits.
    pub fn run(&self, case: &Case<'_>) -> Result<Outcome> {
        let folder = Folder::new()?;
        let (ours, theirs) = sockets()?;
        let mut answer = Running::spawn(
            self.jailed(&folder, true)
                .arg(&self.python)
                .args(["-I", "-B", "-c", ANSWER])
                .stdin(theirs)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        let mut judge = Running::spawn(
            self.jailed(&folder, true)
                .arg(&self.python)
                .args(["-I", "-B", "-c", JUDGE])
                .stdin(Stdio::piped())
                .stdout(ours)
                .stderr(Stdio::piped()),
        )?;
        let nonce = nonce()?;
        let setup = serde_json::json!({
            "nonce": nonce, "given": case.given, "code": case.code, "test": case.test, "entry": case.entry,
        });
        let deadline = Instant::now() + self.cpu * WALL;
        if let Some(mut stdin) = judge.0.stdin.take() {
            // A judge that died before it read has no verdict, which is found below.
            let _ = stdin.write_all(setup.to_string().as_bytes());
        }
        let verdict = match judge.0.stderr.take() {
            Some(pipe) => read_line(pipe, deadline)?,
            None => Some(String::new()),
        };
        judge.end()?;
        let status = answer.end()?;
        let Some(verdict) = verdict else {
            return Ok(Outcome::Failed(format!("timed out after {} s", (self.cpu * WALL).as_secs())));
        };
        Ok(match verdict.strip_prefix(&nonce).map(|text| text.strip_prefix(' ').unwrap_or(text)) {
            Some("passed") => Outcome::Passed,
            Some("gone") => Outcome::Failed(format!("no verdict, {status}")),
            Some(why) => Outcome::Failed(why.strip_prefix("failed ").unwrap_or(why).to_owned()),
            None if verdict.is_empty() => Outcome::Failed("no verdict: the judge ended".to_owned()),
            None => Outcome::Failed(format!("no verdict of the judge's: {verdict}")),
        })
    }

    /// The start of a process behind the walls.
    fn jailed(&self, folder: &Folder, program: bool) -> Command {
        let mut command = Command::new(&self.jail);
        command.args(["eval", "jail", "--cpu"]).arg(self.cpu.as_secs().max(1).to_string());
        command.arg("--memory").arg(self.memory_bytes.to_string()).arg("--folder").arg(&folder.0);
        for path in &self.readable {
            command.arg("--read").arg(path);
        }
        if self.bare.is_some() {
            command.arg("--bare");
        }
        if program {
            command.arg("--");
        }
        command.env_clear().current_dir(&folder.0);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }
}

/// A process whose whole group ends with this value.
struct Running(Child);

impl Running {
    fn spawn(command: &mut Command) -> Result<Running> {
        let name = command.get_program().to_owned();
        Ok(Running(command.spawn().with_context(|| format!("can not run {}", name.display()))?))
    }

    /// Kills what still runs of it and tells how it ended.
    fn end(&mut self) -> Result<std::process::ExitStatus> {
        self.kill();
        Ok(self.0.wait()?)
    }

    fn kill(&mut self) {
        #[cfg(unix)]
        {
            use rustix::process::{Pid, Signal, kill_process_group};
            // Nobody is left in the group of a program that ended well.
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        }
        #[cfg(not(unix))]
        {
            let _ = self.0.kill();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Waited for already where all went well; then its number is not signalled again.
        if let Ok(None) = self.0.try_wait() {
            self.kill();
            let _ = self.0.wait();
        }
    }
}

#[cfg(unix)]
fn sockets() -> Result<(Stdio, Stdio)> {
    use std::os::fd::OwnedFd;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    Ok((OwnedFd::from(ours).into(), OwnedFd::from(theirs).into()))
}

#[cfg(not(unix))]
fn sockets() -> Result<(Stdio, Stdio)> {
    bail!("running answers needs the limits of a Unix system; run this on Linux or macOS")
}

/// What comes until the end of a line or of the writer; none when the deadline passes first.
#[cfg(unix)]
fn read_line(mut pipe: impl Read + std::os::fd::AsFd, deadline: Instant) -> Result<Option<String>> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut line = vec![];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().try_into()?, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(None),
            Err(rustix::io::Errno::INTR) => continue,
            ready => ready?,
        };
        let mut block = [0; 512];
        let count = pipe.read(&mut block)?;
        line.extend_from_slice(&block[..count]);
        if count == 0 || line.contains(&b'\n') || line.len() > VERDICT_BYTES {
            let text = String::from_utf8_lossy(&line);
            return Ok(Some(text.lines().next().unwrap_or_default().to_owned()));
        }
    }
}

#[cfg(not(unix))]
fn read_line(_: impl Read, _: Instant) -> Result<Option<String>> {
    let _ = VERDICT_BYTES;
    Ok(None)
}

/// 128 random bits, as text.
fn nonce() -> Result<String> {
    let mut bytes = [0; 16];
    let source = "/dev/urandom";
    std::fs::File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).context(source)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn is_root() -> bool {
    #[cfg(unix)]
    return rustix::process::geteuid().is_root();
    #[cfg(not(unix))]
    false
}

/// Whether every folder on the way lets all users through.
fn world_reads(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        path.ancestors().all(|part| std::fs::metadata(part).is_ok_and(|found| found.permissions().mode() & 1 == 1))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        true
    }
}

/// An empty folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rynd-eval-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("can not make {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What can not be removed lies in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
