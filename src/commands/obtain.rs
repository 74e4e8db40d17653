//! A model argument for commands that need the model: what is missing is fetched after a yes.
//!
//! On a terminal the user is asked; elsewhere only `--yes` fetches, since a script should not start a download of
//! gigabytes that nobody asked for.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::terminal;
use super::{interrupt, numbers};
use crate::catalog::{Catalog, Entry, Error, Event, Model, Net, Pull, Resolved};

/// The files of the model `text`, which are fetched first if need be and the user (or `yes`) agrees.
///
/// Ctrl-C stops a fetch only if [`interrupt::watch`] was called before.
pub fn obtain(catalog: &Catalog, text: &str, yes: bool) -> Result<Resolved> {
    let missing = match catalog.resolve(text) {
        Err(missing @ Error::Missing { .. }) => missing,
        other => return Ok(other?),
    };
    let model = catalog.find(text)?;
    if !yes && !agrees(&model, &missing)? {
        bail!("{missing} (or add --yes)");
    }
    fetch(catalog, &model, None)
}

/// Whether the error is the user's own Ctrl-C during a fetch; the exit code is then [`interrupt::EXIT_CODE`].
pub fn is_interruption(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Error::Interrupted { .. })))
}

/// False, without a question, where nobody can answer.
fn agrees(model: &Model, missing: &Error) -> Result<bool> {
    let mut stderr = terminal::stderr();
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(false);
    }
    let Error::Missing { bytes, have, .. } = missing else { return Ok(false) };
    let mut notes = Vec::new();
    notes.extend(bytes.map(|bytes| numbers::bytes(bytes.saturating_sub(*have))));
    if let Model::Named(entry) = model {
        notes.push(entry.licence.clone());
    }
    let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
    write!(stderr, "The model '{}' is not on this machine. Fetch it now{notes}? [Y/n] ", model.name())?;
    stderr.flush()?;
    let mut answer = String::new();
    let read = interrupt::at_once(|| std::io::stdin().lock().read_line(&mut answer))?;
    Ok(read > 0 && matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes"))
}

/// Fetches the model and tells on stderr how it goes.
pub fn fetch(catalog: &Catalog, model: &Model, connections: Option<usize>) -> Result<Resolved> {
    let mut net = Net::from_env();
    net.connections = connections.unwrap_or(net.connections);
    if let Model::Named(entry) = model {
        writeln!(terminal::stderr(), "{}", headline(entry))?;
    }
    let teller = Teller::new();
    let tell = |event: Event<'_>| teller.tell(&event);
    let pull = Pull { tell: &tell, stop: &interrupt::asked, ..Pull::new(catalog, &net) };
    let result = pull.run(model);
    teller.bar.finish_and_clear();
    Ok(result?)
}

fn headline(entry: &Entry) -> String {
    let size = entry.bytes().map(|bytes| format!("{}, ", numbers::bytes(bytes))).unwrap_or_default();
    format!("{}: {size}licence {}", entry.name, entry.licence)
}

/// Lines for what happens, and a bar below them where stderr is a terminal.
struct Teller {
    bar: ProgressBar,
    /// When a line of progress was last due where there is no bar: tenths of the file.
    tenth: Mutex<u64>,
}

impl Teller {
    fn new() -> Teller {
        let target =
            if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = "  {bar:30} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Teller { bar, tenth: Mutex::new(0) }
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| {
            // Progress is lost without harm when nobody reads stderr any more.
            let _ = writeln!(terminal::stderr(), "  {text}");
        });
    }

    fn tell(&self, event: &Event<'_>) {
        match event {
            Event::Present { file } => self.line(&format!("{file} is here already")),
            Event::Trying { file, source, bytes, kept } => {
                let kept_note =
                    if *kept > 0 { format!(", {} of it are here", numbers::bytes(*kept)) } else { String::new() };
                self.line(&format!("{file} from {source}{kept_note}"));
                self.bar.set_length(bytes.unwrap_or(0));
                self.bar.set_position(*kept);
                self.bar.reset_eta();
                self.bar.enable_steady_tick(Duration::from_millis(200));
            }
            Event::Bytes(count) => {
                self.bar.inc(*count);
                self.tenth_line();
            }
            Event::Kept(bytes) => self.bar.set_position(*bytes),
            Event::Restart => {
                self.line("starting this file anew");
                self.bar.set_position(0);
            }
            Event::Retry { error, wait } => {
                self.line(&format!("{}; trying again in {}", error.brief(), numbers::duration(*wait)));
            }
            Event::Verifying { file } => self.line(&format!("verifying {file}")),
            Event::Failed { error, .. } => self.line(&format!("failed: {error}")),
            Event::Done { file, sha256, verified: true } => self.line(&format!("{file} is verified (sha256 {sha256})")),
            Event::Done { file, sha256, verified: false } => {
                self.line(&format!(
                    "{file} is here, but no source gave a sum to verify it by (its sha256 is {sha256})"
                ));
            }
        }
    }

    /// Without a bar, a line for each tenth of the file.
    fn tenth_line(&self) {
        let Some(bytes) = self.bar.length().filter(|bytes| *bytes > 0 && self.bar.is_hidden()) else { return };
        let now = self.bar.position() * 10 / bytes;
        let Ok(mut last) = self.tenth.lock() else { return };
        if now != std::mem::replace(&mut *last, now) && now > 0 {
            self.line(&format!("{} of {}", numbers::bytes(self.bar.position()), numbers::bytes(bytes)));
        }
    }
}
