//! The walls around an answer's process, on Linux: Landlock and a list of the system calls that it may make.
//!
//! Landlock (Linux 5.13) leaves the Python and its libraries readable and nothing else, refuses TCP, and from 6.12 on keeps
//! signals inside. The list is of what Python needs to compute: no process is born (threads are), no socket is made, no
//! file is created or cut, no other process is looked at, signalled or traced. Both hold for whatever is executed later.
//! Either alone has gaps (Landlock knows no UDP, the list knows no paths), so a system without one of them has no walls.

use std::path::PathBuf;

use anyhow::Result;

/// What an answer may read besides the Python: the loader's files and what numbers and times are made of.
#[cfg(target_os = "linux")]
const READABLE: [&str; 8] =
    ["/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero"];

/// Puts this thread, and what it executes, behind the walls. There is no way back.
#[cfg(not(target_os = "linux"))]
pub fn raise(_readable: &[PathBuf]) -> Result<()> {
    anyhow::bail!("only Linux has them (Landlock and seccomp)")
}

/// Puts this thread, and what it executes, behind the walls. There is no way back.
#[cfg(target_os = "linux")]
pub fn raise(readable: &[PathBuf]) -> Result<()> {
    use landlock::{
        ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
        path_beneath_rules,
    };
    const KNOWN: ABI = ABI::V6;
    let read = AccessFs::from_read(KNOWN);
    let write: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::WriteFile;
    // Of what is asked, the kernel takes what it knows; paths that do not exist are passed over.
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(READABLE, read))?
        .add_rules(path_beneath_rules(readable, read))?
        .add_rules(path_beneath_rules(["/dev/null"], write))?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        anyhow::bail!("Landlock is switched off or older than Linux 5.13");
    }
    calls::limit()
}

#[cfg(target_os = "linux")]
mod calls {
    use std::collections::BTreeMap;

    use anyhow::{Context, Result};
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Compare, SeccompCondition as Condition,
        SeccompFilter, SeccompRule,
    };

    /// Allowed whatever their arguments.
    const FREE: &[i64] = &[
        // Files that are open, and looking at names.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_lseek,
        libc::SYS_getdents64,
        libc::SYS_getcwd,
        libc::SYS_chdir,
        libc::SYS_readlinkat,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_pipe2,
        libc::SYS_pselect6,
        libc::SYS_ppoll,
        // Memory.
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        // Itself.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        libc::SYS_getrusage,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_set_tid_address,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_futex,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_setitimer,
        libc::SYS_getitimer,
        // To start Python, which is behind the walls then, as is whatever follows it.
        libc::SYS_execve,
        // The machine and the time.
        libc::SYS_uname,
        libc::SYS_sysinfo,
        libc::SYS_times,
        libc::SYS_getrandom,
        libc::SYS_gettimeofday,
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_restart_syscall,
    ];

    /// Older names of the same that this architecture still has.
    #[cfg(target_arch = "x86_64")]
    const OLDER: &[i64] = &[
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_access,
        libc::SYS_readlink,
        libc::SYS_getdents,
        libc::SYS_dup2,
        libc::SYS_pipe,
        libc::SYS_select,
        libc::SYS_poll,
        libc::SYS_time,
        libc::SYS_alarm,
        libc::SYS_arch_prctl,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    const OLDER: &[i64] = &[];

    /// The argument of this number has none of these bits.
    fn without(argument: u8, bits: i32) -> Result<Condition> {
        let bits = u64::from(bits.unsigned_abs());
        Ok(Condition::new(argument, Width::Dword, Compare::MaskedEq(bits), 0)?)
    }

    fn equal(argument: u8, width: Width, value: u64) -> Result<Condition> {
        Ok(Condition::new(argument, width, Compare::Eq, value)?)
    }

    fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = FREE.iter().chain(OLDER).map(|call| (*call, vec![])).collect();
        let no_changes = libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE;
        rules.insert(libc::SYS_openat, vec![SeccompRule::new(vec![without(2, no_changes & !libc::O_DIRECTORY)?])?]);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_open, vec![SeccompRule::new(vec![without(1, no_changes & !libc::O_DIRECTORY)?])?]);
        // A thread, never a process. clone3 is missing from the list: its arguments lie in memory, and libraries fall
        // back to clone.
        let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
        let thread = Condition::new(0, Width::Dword, Compare::MaskedEq(thread), thread)?;
        rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![thread])?]);
        // Whom a descriptor signals (F_SETOWN) is none of its business.
        let commands =
            [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];
        let commands = commands.iter().map(|command| {
            let command = u64::from(command.unsigned_abs());
            Ok(SeccompRule::new(vec![equal(1, Width::Dword, command)?])?)
        });
        rules.insert(libc::SYS_fcntl, commands.collect::<Result<_>>()?);
        // Reading its own limits.
        let own = vec![equal(0, Width::Dword, 0)?, equal(2, Width::Qword, 0)?];
        rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(own)?]);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_getrlimit, vec![]);
        Ok(rules)
    }

    /// From now on other system calls fail with EPERM, and clone3 as if it did not exist.
    pub fn limit() -> Result<()> {
        let arch = std::env::consts::ARCH.try_into().context("seccomp filters are not known for this processor")?;
        let errno = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
        // Both filters are asked; the first one only makes libraries take clone.
        let missing = BTreeMap::from([(libc::SYS_clone3, vec![])]);
        let missing = SeccompFilter::new(missing, SeccompAction::Allow, errno(libc::ENOSYS), arch)?;
        let mut allowed = rules()?;
        // Of two verdicts the kernel takes the more severe, and of two errors that of the filter added last; to add one
        // must therefore stay allowed, which lets nobody take one away.
        allowed.insert(libc::SYS_seccomp, vec![]);
        let prctl = [libc::PR_SET_SECCOMP, libc::PR_SET_NO_NEW_PRIVS];
        let prctl = prctl.iter().map(|option| {
            let option = u64::from(option.unsigned_abs());
            Ok(SeccompRule::new(vec![equal(0, Width::Dword, option)?])?)
        });
        allowed.insert(libc::SYS_prctl, prctl.collect::<Result<_>>()?);
        let allowed = SeccompFilter::new(allowed, errno(libc::EPERM), SeccompAction::Allow, arch)?;
        for filter in [allowed, missing] {
            let program: BpfProgram = filter.try_into()?;
            seccompiler::apply_filter(&program)?;
        }
        Ok(())
    }
}
