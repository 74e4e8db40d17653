//! The user's own editor, for `/edit`.

use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The command of VISUAL or EDITOR, else vi (notepad on Windows).
pub fn command() -> Command {
    let named =
        ["VISUAL", "EDITOR"].iter().filter_map(|name| std::env::var(name).ok()).find(|text| !text.trim().is_empty());
    let text = named.unwrap_or_else(|| if cfg!(windows) { "notepad" } else { "vi" }.to_owned());
    let mut words = text.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("vi"));
    command.args(words);
    command
}

/// The text as it comes out of the editor; a newline that the editor put at its end is taken off.
pub fn edit(text: &str) -> Result<String> {
    let path = scratch_file();
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
    let result = (|| {
        let file = file.as_mut().map_err(|e| anyhow::anyhow!("can not make {}: {e}", path.display()))?;
        file.write_all(text.as_bytes())?;
        let mut command = command();
        let program = command.get_program().to_string_lossy().into_owned();
        let status = command
            .arg(&path)
            .status()
            .with_context(|| format!("can not run the editor '{program}'; name another one in EDITOR"))?;
        if !status.success() {
            bail!("the editor '{program}' failed ({status}), so nothing is sent");
        }
        super::super::input::read_file(&path)
    })();
    if file.is_ok() {
        // A scratch file that stays behind does no harm.
        let _ = std::fs::remove_file(&path);
    }
    let mut edited = result?;
    if edited.ends_with('\n') && !text.ends_with('\n') {
        edited.pop();
    }
    Ok(edited)
}

/// A name that no other chat uses.
pub fn scratch_file() -> std::path::PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("rynd-chat-{}-{count}.md", std::process::id()))
}
