//! `rynd devices`: the adapters, what rynd makes of them, and why not of the rest.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::numbers;
use super::terminal;
use crate::catalog::Home;
use crate::cores;
use crate::engine::{AdapterReport, Devices, kept_gpu_rates, measure_gpu};
use crate::experts::rates::GpuRates;

/// List the GPUs, and say which of them rynd uses
///
/// The numbers are those that --gpu takes. 'auto', the default, uses what is marked so; an adapter that is left out can
/// be named all the same, unless it lacks something that rynd needs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd devices
  rynd devices --measure
  rynd devices --json | jq '.[0].memory_bytes'

Environment:
  RYND_GPU_COPIES     lists every adapter so many times, to try out a split over several
  RYND_GPU_SOFTWARE   lets auto use software renderers")]
pub struct Arguments {
    /// Measure the GPUs' memory, bus, arithmetic and latencies, about half a second each, and keep the figures
    #[arg(long)]
    measure: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An adapter and the verdict on it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    adapter: &'a AdapterReport,
    used_by_auto: bool,
    /// What was measured of it; kept from one start to the next.
    rates: Option<GpuRates>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let devices = Devices::list();
    let home = Home::from_env();
    let mut rows = vec![];
    for adapter in devices.reports() {
        let rates = match (&home, arguments.measure && adapter.refused.is_none()) {
            (Ok(home), true) => Some(measure(&devices, adapter, home)?),
            (Ok(home), false) => kept_gpu_rates(adapter, home),
            (Err(_), _) => None,
        };
        let used_by_auto = adapter.refused.is_none() && adapter.not_by_itself.is_none();
        rows.push(Row { adapter, used_by_auto, rates });
    }
    if let (Err(e), true) = (home, arguments.measure) {
        return Err(e).context("there is no place to keep what is measured");
    }
    let mut out = terminal::stdout();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        writeln!(out, "no adapter was found: rynd runs on the CPU; a driver for Vulkan, Metal or DirectX 12 adds one")?;
    }
    rows.iter().try_for_each(|row| print(&mut out, row))?;
    Ok(ExitCode::SUCCESS)
}

/// Measures an adapter anew.
fn measure(devices: &Devices, adapter: &AdapterReport, home: &Home) -> Result<GpuRates> {
    let threads = cores::usable();
    measure_gpu(devices, adapter, home, threads, None)
        .with_context(|| format!("{} could not be measured", adapter.name))
}

fn print(out: &mut impl Write, row: &Row) -> Result<()> {
    let adapter = row.adapter;
    let index = adapter.index;
    writeln!(out, "{index}  {}", adapter.name)?;
    let verdict = match (&adapter.refused, &adapter.not_by_itself) {
        (Some(why), _) => format!("can not be used: it {why}"),
        (None, Some(why)) => format!("not used by auto: it {why}; --gpu {index} uses it"),
        (None, None) => "used".to_owned(),
    };
    writeln!(out, "   {verdict}")?;
    writeln!(out, "   {} over {}; {}", adapter.kind, adapter.api, adapter.driver)?;
    let memory = adapter.memory_bytes.map_or("unknown".to_owned(), numbers::bytes);
    let unified = if adapter.unified_memory { ", shared with the CPU" } else { "" };
    let (binding, buffer) = (numbers::bytes(adapter.max_binding_bytes), numbers::bytes(adapter.max_buffer_bytes));
    writeln!(out, "   memory {memory}{unified}; binds at most {binding} of a buffer of at most {buffer}")?;
    let lanes = adapter.subgroups.map_or(String::new(), |[least, most]| match least == most {
        true => format!(" ({least} lanes)"),
        false => format!(" ({least} to {most} lanes)"),
    });
    let features: Vec<String> = adapter
        .features
        .iter()
        .map(|(name, has)| match (*has, *name) {
            (true, "subgroups") => format!("{name}{lanes}"),
            (true, name) => name.to_owned(),
            (false, name) => format!("no {name}"),
        })
        .collect();
    writeln!(out, "   {}", features.join(", "))?;
    if let Some(rates) = &row.rates {
        writeln!(out, "   measured: {rates}")?;
    }
    Ok(())
}
