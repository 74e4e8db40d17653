//! `rynd list`: the models of the catalog and those of the hub that were fetched.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::numbers;
use super::terminal;
use crate::catalog::{Catalog, Row};

/// List the models that rynd knows, and which of them are here
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rynd list            all models of the catalog
  rynd list --local    only those on this machine, with their paths
  rynd list --json     for programs

Own entries, and changes to these, go into models.toml in the configuration directory.")]
pub struct Arguments {
    /// Only what is on this machine
    #[arg(long)]
    local: bool,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let catalog = Catalog::open()?;
    let mut rows = catalog.rows()?;
    rows.retain(|row| row.local || !arguments.local);
    let mut out = terminal::stdout();
    if arguments.json {
        let object = json!({
            "default": catalog.default_model(),
            "cache": catalog.home.cache,
            "catalog": catalog.home.user_catalog(),
            "models": rows,
        });
        serde_json::to_writer_pretty(&mut out, &object)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", table(&rows, catalog.default_model()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[Row], default: &str) -> String {
    let head = ["NAME", "SIZE", "HERE", "LICENCE", "PATH OR DESCRIPTION"].map(str::to_owned);
    let mut lines = vec![head];
    for row in rows {
        let mark = if row.name == default { " (default)" } else { "" };
        let here = match (row.local, row.bytes) {
            (true, _) => "yes".to_owned(),
            (false, _) if row.have == 0 => "no".to_owned(),
            (false, Some(bytes)) => format!("{} %", row.have * 100 / bytes.max(1)),
            (false, None) => numbers::bytes(row.have),
        };
        let last = row.path.as_ref().map_or_else(|| row.description.clone(), |path| path.display().to_string());
        let size = row.bytes.map_or_else(|| "?".to_owned(), numbers::bytes);
        lines.push([format!("{}{mark}", row.name), size, here, row.licence.clone(), last]);
    }
    let widths: Vec<usize> = (0..4).map(|i| lines.iter().map(|line| line[i].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for [name, size, here, licence, last] in lines {
        let (a, b, c, d) = (widths[0], widths[1], widths[2], widths[3]);
        text.push_str(&format!("{name:a$}  {size:>b$}  {here:c$}  {licence:d$}  {last}\n"));
    }
    text
}
