//! Runs a Python program that a model wrote: apart, briefly, and with nothing at hand.
//!
//! `python3 -I` gets an empty environment, an empty folder, a process group of its own, and limits on CPU time, memory,
//! files and processes that it sets before it runs the program; what would start processes, write files or reach the
//! network is refused. A clock above all ends the whole group. This holds back mistakes; it is no wall against a program
//! written to break out, so answers are best run as a user that owns nothing.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const DRIVER: &str = include_str!("sandbox.py");
/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(5);
/// The machine may be busy: wall time allowed for a second of CPU time.
const WALL: u32 = 6;

/// How to run programs.
#[derive(Clone, Debug)]
pub struct Sandbox {
    python: PathBuf,
    cpu: Duration,
    memory_bytes: u64,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran to its end.
    Passed,
    Failed(String),
}

impl Sandbox {
    /// Finds the interpreter behind `python` and tries it.
    pub fn new(python: &str, cpu: Duration, memory_bytes: u64) -> Result<Sandbox> {
        if cfg!(not(unix)) {
            bail!("running answers needs the limits of a Unix system; run this on Linux or macOS");
        }
        // A version manager's stand-in needs the environment that the program will not have.
        let found = Command::new(python).args(["-I", "-c", "import sys; print(sys.executable)"]).output();
        let found = found.with_context(|| format!("can not run {python}; name another with --python"))?;
        let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        if !found.status.success() || path.is_empty() {
            bail!("{python} is no Python that runs ({}); name another with --python", found.status);
        }
        let sandbox = Sandbox { python: PathBuf::from(path), cpu, memory_bytes };
        match sandbox.run("import typing, math, re, hashlib, collections\nassert True\n")? {
            Outcome::Passed => Ok(sandbox),
            Outcome::Failed(why) => bail!("{python} does not run a trivial program: {why}; name another with --python"),
        }
    }

    /// Runs a program to its end or its limits.
    pub fn run(&self, program: &str) -> Result<Outcome> {
        let folder = Folder::new()?;
        let mut command = Command::new(&self.python);
        command
            .args(["-I", "-B", "-c", DRIVER])
            .arg(self.cpu.as_secs().max(1).to_string())
            .arg(self.memory_bytes.to_string())
            .env_clear()
            .current_dir(&folder.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().with_context(|| format!("can not run {}", self.python.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that died before it was read has its verdict below.
            let _ = stdin.write_all(program.as_bytes());
        }
        let deadline = Instant::now() + self.cpu * WALL;
        let mut late = false;
        while !is_over(&mut child)? {
            if Instant::now() > deadline {
                late = true;
                break;
            }
            std::thread::sleep(TICK);
        }
        end_group(&mut child);
        let status = child.wait()?;
        let mut verdict = String::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(4096).read_to_string(&mut verdict)?;
        }
        Ok(match verdict.as_str() {
            _ if late => Outcome::Failed(format!("timed out after {} s", (self.cpu * WALL).as_secs())),
            "passed" => Outcome::Passed,
            "" => Outcome::Failed(format!("no verdict, {status}")),
            why => Outcome::Failed(why.to_owned()),
        })
    }
}

/// Whether the process ended; it is not waited for yet, so that its group's number stays taken.
#[cfg(unix)]
fn is_over(child: &mut Child) -> Result<bool> {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let pid = Pid::from_child(child);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(pid), options)?.is_some())
}

#[cfg(not(unix))]
fn is_over(child: &mut Child) -> Result<bool> {
    Ok(child.try_wait()?.is_some())
}

fn end_group(child: &mut Child) {
    #[cfg(unix)]
    {
        use rustix::process::{Pid, Signal, kill_process_group};
        // Nobody is left in the group of a program that ended well.
        let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    }
    #[cfg(not(unix))]
    {
        let _ = child.kill();
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

#[cfg(all(test, unix))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn outcome(program: &str) -> Outcome {
        let sandbox = Sandbox::new("python3", Duration::from_secs(1), 512 << 20).unwrap();
        sandbox.run(program).unwrap()
    }

    fn refusal(program: &str) -> String {
        match outcome(program) {
            Outcome::Passed => panic!("passed: {program}"),
            Outcome::Failed(why) => why,
        }
    }

    #[test]
    fn a_program_passes_only_by_reaching_its_end() {
        assert_eq!(
            outcome("from typing import List\nassert sorted([2, 1]) == [1, 2]\nprint('x' * 100000)"),
            Outcome::Passed
        );
        assert_eq!(refusal("x = 1\nassert x == 2, 'no'"), "AssertionError: no (line 2)");
        assert!(refusal("def f(:").starts_with("SyntaxError"));
        assert!(refusal("import sys\nsys.exit(0)").starts_with("SystemExit"));
        assert!(refusal("import os\nos._exit(0)").contains("no verdict"));
        assert!(refusal("def f(n): return f(n + 1)\nf(0)").starts_with("RecursionError"));
    }

    #[test]
    fn time_memory_and_reach_are_limited() {
        // On a busy machine the clock is first.
        let endless = refusal("while True: pass");
        assert!(endless.contains("no verdict, signal: 9") || endless.contains("timed out"), "{endless}");
        assert!(refusal("import time\ntime.sleep(60)").contains("timed out"));
        assert!(refusal("x = 'a' * (1 << 30)").starts_with("MemoryError"));
        assert!(refusal("import os\nos.fork()").contains("not allowed here: os.fork"));
        assert!(refusal("import subprocess\nsubprocess.run(['true'])").contains("not allowed here: subprocess.Popen"));
        assert!(refusal("import socket\nsocket.socket()").contains("not allowed here: socket"));
        assert!(refusal("open('/tmp/rynd-escaped', 'w')").contains("not allowed here: open"));
        assert_eq!(outcome("import os\nassert not os.environ.get('HOME') and os.listdir('.') == []"), Outcome::Passed);
    }
}
