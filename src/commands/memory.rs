//! What memory the process holds, as the system counts it.
//!
//! The mapped file counts as resident as far as its pages are in memory; they are the system's to take back, so the
//! two parts are told apart. Systems without /proc give nothing rather than a guess.

/// Bytes, from /proc/self/status.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Memory {
    pub resident_bytes: u64,
    /// Part of `resident_bytes`: our own allocations.
    pub anonymous_bytes: u64,
    /// Part of `resident_bytes`: pages of mapped files, the model's above all.
    pub file_bytes: u64,
}

impl Memory {
    /// What the process holds now; `None` where the system does not tell.
    pub fn now() -> Option<Memory> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
        };
        Some(Memory {
            resident_bytes: field("VmRSS")?,
            anonymous_bytes: field("RssAnon")?,
            file_bytes: field("RssFile")?,
        })
    }
}
