//! `rynd cache`: the conversations whose computed pages lie on the disk.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

use super::numbers;
use super::terminal;
use crate::cache::{Broken, Cabinet, Listed};
use crate::catalog::Home;

/// Columns of the text that a listing shows.
const TEXT_COLUMNS: usize = 40;

/// List, remove and verify what was computed and kept on disk
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rynd cache list                    what is kept, the last used first
  rynd cache list --json             for programs
  rynd cache rm --model qwen3-4b     all conversations with a model
  rynd cache rm --older 30d          what was not used for 30 days (also 12h, 4w)
  rynd cache rm --all                everything
  rynd cache verify                  reads every byte, removes what is damaged

Nothing is lost with it but the time to compute it again.")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Another cache directory
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List what is kept, the last used first
    List(List),
    /// Remove conversations, and what only they lead to
    Rm(Rm),
    /// Read every file whole and remove what is damaged; exit code 1 if anything was
    Verify(Verify),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rynd cache list
  rynd cache list --json | jq '.segments[].tokens'

A conversation lies in several segments, each of which goes on from an earlier one.")]
struct List {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rynd cache rm --all
  rynd cache rm --model qwen3-4b --older 2w")]
#[group(required = true, multiple = true)]
struct Rm {
    /// Everything
    #[arg(long, conflicts_with_all = ["model", "older"])]
    all: bool,
    /// Of this model: its name as listed, or the beginning of its key (8 digits or more)
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Not used for this long: 12h, 30d, 4w
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    older: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rynd cache verify
  rynd cache verify --json")]
struct Verify {
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let dir = match &arguments.dir {
        Some(dir) => dir.clone(),
        None => Home::from_env()?.pages(),
    };
    if arguments.dir.is_some() && !dir.is_dir() {
        bail!("{} is no directory; leave out --dir for the usual one", dir.display());
    }
    let cabinet = Cabinet::new(&dir);
    let mut out = terminal::stdout();
    match &arguments.command {
        Command::List(list) => {
            let (segments, broken) = cabinet.list();
            if list.json {
                let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
                let segments: Vec<Value> = segments.iter().map(object).collect();
                let broken: Vec<Value> = broken.iter().map(broken_object).collect();
                let all = json!({ "directory": dir, "bytes": bytes, "segments": segments, "broken": broken });
                serde_json::to_writer_pretty(&mut out, &all)?;
                writeln!(out)?;
            } else {
                write!(out, "{}", table(&segments, now_ms()))?;
                tell(&broken, "is not sound ('rynd cache verify' removes it)")?;
            }
        }
        Command::Rm(rm) => {
            let oldest = rm.older.map(|seconds| now_ms().saturating_sub_unsigned(seconds.saturating_mul(1000)));
            let named = |segment: &Listed| rm.model.as_ref().is_none_or(|name| is_model(segment, name));
            let old = |segment: &Listed| oldest.is_none_or(|oldest| segment.used_ms < oldest);
            let removed = cabinet.remove(|segment| named(segment) && old(segment)).context("not all was removed")?;
            let bytes = removed.iter().map(|segment| segment.bytes).sum();
            let what = if removed.len() == 1 { "1 segment".to_owned() } else { format!("{} segments", removed.len()) };
            writeln!(terminal::stderr(), "removed {what} ({})", numbers::bytes(bytes))?;
        }
        Command::Verify(verify) => {
            let shows = std::io::stderr().is_terminal() && !verify.json;
            let found = cabinet.verify(|path| {
                if shows {
                    let _ = write!(std::io::stderr(), "\r\x1b[K{}", terminal::harmless(&path.display().to_string()));
                }
            });
            if shows {
                write!(std::io::stderr(), "\r\x1b[K")?;
            }
            if verify.json {
                let broken: Vec<Value> = found.broken.iter().map(broken_object).collect();
                let all = json!({ "files": found.files, "bytes": found.bytes, "broken": broken });
                serde_json::to_writer_pretty(&mut out, &all)?;
                writeln!(out)?;
            } else {
                let (sound, bytes) = (found.files - found.broken.len(), numbers::bytes(found.bytes));
                writeln!(out, "{sound} of {} files are sound ({bytes})", found.files)?;
                tell(&found.broken, "was removed")?;
            }
            return Ok(if found.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn is_model(segment: &Listed, name: &str) -> bool {
    segment.model == name || (name.len() >= 8 && segment.key.to_string().starts_with(name))
}

fn tell(broken: &[Broken], what: &str) -> std::io::Result<()> {
    broken.iter().try_for_each(|file| writeln!(terminal::stderr(), "{} {what}: {}", file.path.display(), file.why))
}

fn object(segment: &Listed) -> Value {
    json!({
        "model": segment.model,
        "key": segment.key.to_string(),
        "name": segment.name.to_string(),
        "path": segment.path,
        "start": segment.start,
        "tokens": segment.tokens,
        "states": segment.states,
        "bytes": segment.bytes,
        "created_ms": segment.created_ms,
        "used_ms": segment.used_ms,
        "seconds": segment.seconds,
        "text": String::from_utf8_lossy(&segment.head),
    })
}

fn broken_object(file: &Broken) -> Value {
    json!({ "path": file.path, "why": file.why })
}

fn table(segments: &[Listed], now_ms: i64) -> String {
    let mut lines = vec![["MODEL", "TOKENS", "SIZE", "AGE", "USED", "TEXT"].map(str::to_owned)];
    for segment in segments {
        let tokens = format!("{}-{}", segment.start, segment.start + segment.tokens);
        let ages = [segment.created_ms, segment.used_ms].map(|then| age((now_ms - then).max(0) as u64 / 1000));
        let [created, used] = ages;
        lines.push([one_line(segment.model.as_bytes(), 32), tokens, numbers::bytes(segment.bytes), created, used, {
            let lead = if segment.start > 0 { "..." } else { "" };
            format!("{lead}{}", one_line(&segment.head, TEXT_COLUMNS))
        }]);
    }
    let widths: Vec<usize> = (0..5).map(|i| lines.iter().map(|line| line[i].width()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for [model, tokens, size, created, used, head] in lines {
        let pad = " ".repeat(widths[0] - model.width());
        let (a, b, c, d) = (widths[1], widths[2], widths[3], widths[4]);
        text.push_str(&format!("{model}{pad}  {tokens:>a$}  {size:>b$}  {created:>c$}  {used:>d$}  {head}\n"));
    }
    text
}

/// Text as one line of at most `columns`, in which nothing drives a terminal.
fn one_line(bytes: &[u8], columns: usize) -> String {
    let mut line = String::new();
    for c in String::from_utf8_lossy(bytes).chars() {
        let shown = match c {
            '\n' => "\\n".to_owned(),
            '\t' => "\\t".to_owned(),
            c if is_unseen(c) => c.escape_unicode().to_string(),
            c => c.to_string(),
        };
        if line.width() + shown.width() > columns {
            line.push_str("...");
            break;
        }
        line.push_str(&shown);
    }
    line
}

/// Control characters, and those that turn the direction of what follows.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// "12 s", "5 min", "3 h", "9 d".
fn age(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6000 => format!("{} min", seconds / 60),
        6000..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Seconds of "12h", "30d" or "4w".
fn parse_age(text: &str) -> std::result::Result<u64, String> {
    let wrong = || format!("'{text}' is no time; write a number and h, d or w, like 30d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let n: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    n.checked_mul(seconds).ok_or_else(wrong)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_text_drives_no_terminal() {
        assert_eq!(one_line(b"a\x1b[2Jb\nc\td\x07", 40), "a\\u{1b}[2Jb\\nc\\td\\u{7}");
        assert_eq!(one_line("\u{202e}evil".as_bytes(), 40), "\\u{202e}evil");
        assert_eq!(one_line(b"\xff\xfeab", 40), "\u{fffd}\u{fffd}ab");
        assert_eq!(one_line("\u{65e5}\u{672c}\u{8a9e}".as_bytes(), 5), "\u{65e5}\u{672c}...");
        assert_eq!(one_line(b"\x9b", 40), "\u{fffd}");
        assert_eq!(one_line("\u{9b}".as_bytes(), 40), "\\u{9b}", "a control sequence in one character");
    }

    #[test]
    fn ages_are_read_and_written() {
        assert_eq!(parse_age("30d"), Ok(30 * 86_400));
        assert_eq!((parse_age("12h"), parse_age("4w")), (Ok(43_200), Ok(2_419_200)));
        for text in ["", "d", "30", "30m", "-1d", "1.5d", "30\u{e9}", "99999999999999999999d"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
        assert_eq!([3, 300, 9000, 864_000].map(age), ["3 s", "5 min", "2 h", "10 d"]);
    }
}
