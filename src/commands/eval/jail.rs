//! `rynd eval jail`, which no user calls: limits itself, leaves root, raises the walls, and becomes the Python.
//!
//! A process of its own does this, so that nothing of it happens between a fork and an exec of a program with threads.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::walls;

/// Nobody: the user that owns nothing, of every system with a root.
#[cfg(unix)]
const NOBODY: u32 = 65534;

/// Become a Python behind walls (for rynd itself)
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// CPU seconds
    #[arg(long)]
    cpu: u64,
    /// Bytes of memory
    #[arg(long)]
    memory: u64,
    /// What it may read
    #[arg(long)]
    read: Vec<PathBuf>,
    /// Where it stands
    #[arg(long)]
    folder: PathBuf,
    /// Whether it may run without walls
    #[arg(long)]
    bare: bool,
    /// The program and its arguments; without them the walls are only tried
    #[arg(last = true)]
    program: Vec<String>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    std::env::set_current_dir(&arguments.folder).with_context(|| arguments.folder.display().to_string())?;
    limit(arguments)?;
    leave_root()?;
    let mut readable = arguments.read.clone();
    readable.push(arguments.folder.clone());
    match walls::raise(&readable) {
        Err(_) if arguments.bare => {}
        other => other?,
    }
    match arguments.program.split_first() {
        None => Ok(ExitCode::SUCCESS),
        Some((program, rest)) => become_program(Path::new(program), rest),
    }
}

#[cfg(unix)]
fn become_program(program: &Path, arguments: &[String]) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let cause = std::process::Command::new(program).args(arguments).env_clear().exec();
    Err(cause).with_context(|| program.display().to_string())
}

#[cfg(unix)]
fn limit(arguments: &Arguments) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limits = [
        (Resource::Cpu, arguments.cpu),
        (Resource::As, arguments.memory),
        (Resource::Data, arguments.memory),
        (Resource::Fsize, 0),
        (Resource::Core, 0),
        (Resource::Nofile, 64),
    ];
    for (resource, most) in limits {
        let most = getrlimit(resource).maximum.map_or(most, |hard| most.min(hard));
        // Not every system knows every limit; the caller's clock stands above them all.
        let _ = setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    }
    Ok(())
}

/// Root becomes nobody; others stay who they are.
#[cfg(target_os = "linux")]
fn leave_root() -> Result<()> {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    if rustix::process::geteuid().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        // This process has one thread, and the program that it becomes starts from it.
        set_thread_groups(&[]).and_then(|()| set_thread_res_gid(group, group, group)).context("can not leave root")?;
        set_thread_res_uid(user, user, user).context("can not leave root")?;
    }
    Ok(())
}

#[cfg(all(unix, not(target_os = "linux")))]
fn leave_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        anyhow::bail!("answers are not run as root (user {NOBODY} or any other will do)");
    }
    Ok(())
}

#[cfg(not(unix))]
fn limit(_: &Arguments) -> Result<()> {
    anyhow::bail!("running answers needs the limits of a Unix system")
}

#[cfg(not(unix))]
fn leave_root() -> Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn become_program(_: &Path, _: &[String]) -> Result<ExitCode> {
    anyhow::bail!("running answers needs the limits of a Unix system")
}
