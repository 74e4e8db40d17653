//! `rynd experts replay`: a trace through paging policies, with hits, bytes and modelled speeds.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::{Value as Json, json};

use super::read_trace;
use crate::commands::numbers;
use crate::commands::terminal;
use crate::experts::{Budget, Capacity, Measured, Named, Outcome, Policy, Pools, Setup, Speeds, Trace, Window, replay};
use crate::sizes;

/// Replay a trace through paging policies and the best that is possible
///
/// 'regret' is what Belady's optimum, which knows the future, has more hits in percent of the picks, over the second half
/// of the generated tokens. Speeds are modelled from the given rates: once with misses computed on the CPU where they lie,
/// once with every miss uploaded and waited for.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd experts replay a.trace.gz --vram 10%,20%,40%
  rynd experts replay a.trace.gz --vram 24G --ram 64G --policy crf-gate,lru --json
  rynd experts replay a.csv.gz --pools layer --no-prompt --policy lru,lfru,belady
  rynd experts replay rust.trace.gz prose.trace.gz rust.trace.gz --vram 20%
  rynd experts replay a.trace.gz --control shuffled --vram 20%")]
pub struct Arguments {
    /// Traces; several are joined, one after the other
    #[arg(value_name = "TRACE", required = true)]
    traces: Vec<PathBuf>,
    /// Room for experts in VRAM: bytes (24G) or a part of all experts (20%), one or several
    #[arg(long, value_name = "SIZE|%", value_delimiter = ',', default_value = "10%,20%,30%,40%", value_parser = capacity)]
    vram: Vec<Capacity>,
    /// Room for experts in RAM; what fits in neither is read from disk [default: all]
    #[arg(long, value_name = "SIZE|%", value_parser = capacity)]
    ram: Option<Capacity>,
    /// Policies: random, static-held-out, static, lru, lfu, lfru, crf, crf-gate, belady-cap, belady, or all
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all")]
    policy: Vec<String>,
    /// Which experts compete for a slot: all of one layout, or those of one layer
    #[arg(long, value_name = "WHICH", default_value = "global", value_parser = ["global", "layer"])]
    pools: String,
    /// GPUs that share the room
    #[arg(long, value_name = "N", default_value = "1")]
    devices: usize,
    /// The prompt does not feed the scores
    #[arg(long)]
    no_prompt: bool,
    /// Replay a control instead: generated tokens shuffled, or picks drawn evenly
    #[arg(long, value_name = "WHICH", value_parser = ["shuffled", "uniform"])]
    control: Option<String>,
    /// Change the topic: append the trace with this part of the experts of each layer exchanged, then the trace again
    #[arg(long, value_name = "PART")]
    switch: Option<f64>,
    /// Tokens after which a pick counts half (crf, crf-gate)
    #[arg(long, value_name = "TOKENS", default_value_t = Policy::default().half_life)]
    half_life: f64,
    /// How many times the victim's score a newcomer needs (crf-gate)
    #[arg(long, value_name = "FACTOR", default_value_t = Policy::default().gate)]
    gate: f64,
    /// Uploads a layer and token, on average (crf-gate, belady-cap)
    #[arg(long, value_name = "N", default_value_t = crate::experts::UPLOADS)]
    uploads: f64,
    /// Read rate of VRAM, GB/s
    #[arg(long, value_name = "GB/S", default_value = "608", help_heading = "Rates of the model")]
    vram_rate: f64,
    /// Read rate of RAM, GB/s
    #[arg(long, value_name = "GB/S", default_value = "65", help_heading = "Rates of the model")]
    ram_rate: f64,
    /// Rate of the bus to the GPU, GB/s
    #[arg(long, value_name = "GB/S", default_value = "25", help_heading = "Rates of the model")]
    bus_rate: f64,
    /// Read rate of the disk, GB/s
    #[arg(long, value_name = "GB/S", default_value = "6.5", help_heading = "Rates of the model")]
    disk_rate: f64,
    /// Microseconds a layer to bring both sides together
    #[arg(long, value_name = "US", default_value = "30", help_heading = "Rates of the model")]
    sync: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// "24G", "512M", "20%".
fn capacity(text: &str) -> Result<Capacity, String> {
    let bad = || format!("'{text}' is no size; write 24G, 512M or 20%");
    if let Some(percent) = text.strip_suffix('%') {
        let part: f64 = percent.trim().parse().map_err(|_| bad())?;
        return if (0.0..=100.0).contains(&part) { Ok(Capacity::Fraction(part / 100.0)) } else { Err(bad()) };
    }
    sizes::parse(text).map(Capacity::Bytes).map_err(|_| bad())
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let traces = arguments.traces.iter().map(|path| read_trace(path)).collect::<Result<Vec<_>>>()?;
    let mut trace = Trace::join(&traces)?;
    if let Some(part) = arguments.switch {
        trace = Trace::join(&[trace.clone(), trace.relabelled(part, 1), trace])?;
    }
    trace = match arguments.control.as_deref() {
        Some("shuffled") => trace.shuffled(1),
        Some(_) => trace.uniform(1),
        None => trace,
    };
    if arguments.half_life <= 0.0 || arguments.vram_rate.min(arguments.ram_rate).min(arguments.bus_rate) <= 0.0 {
        bail!("--half-life and the rates must be above 0");
    }
    let named = policies(&arguments.policy)?;
    let mut tables = vec![];
    for &vram in &arguments.vram {
        let setup = setup(arguments, vram);
        let best = replay(&trace, &Setup { named: Named::Belady, ..setup });
        let outcomes: Vec<Outcome> = named
            .iter()
            .map(|&named| match named {
                Named::Belady => best.clone(),
                _ => replay(&trace, &Setup { named, ..setup }),
            })
            .collect();
        tables.push((vram, best, outcomes));
    }
    let mut out = terminal::stdout();
    if arguments.json {
        let json = as_json(arguments, &trace, &tables);
        serde_json::to_writer_pretty(&mut out, &json)?;
        writeln!(out)?;
    } else {
        print(&mut out, arguments, &trace, &tables)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn policies(names: &[String]) -> Result<Vec<Named>> {
    if names.iter().any(|name| name == "all") {
        return Ok(Named::ALL.to_vec());
    }
    names.iter().map(|name| name.parse().map_err(|e: String| anyhow::anyhow!("{e}, all"))).collect()
}

fn setup(arguments: &Arguments, vram: Capacity) -> Setup {
    let policy = Policy {
        half_life: arguments.half_life,
        gate: arguments.gate,
        budget: Budget::Uploads(arguments.uploads),
        ..Policy::default()
    };
    let speeds = Speeds {
        vram: arguments.vram_rate * 1e9,
        ram: arguments.ram_rate * 1e9,
        bus: arguments.bus_rate * 1e9,
        disk: arguments.disk_rate * 1e9,
        sync_s: arguments.sync * 1e-6,
    };
    Setup {
        named: Named::CrfGate,
        policy,
        pools: if arguments.pools == "layer" { Pools::PerLayer } else { Pools::Global },
        vram,
        ram: arguments.ram,
        devices: arguments.devices.max(1),
        seed: !arguments.no_prompt,
        speeds,
    }
}

type Table = (Capacity, Outcome, Vec<Outcome>);

fn size(capacity: Capacity) -> String {
    match capacity {
        Capacity::Bytes(bytes) => numbers::bytes(bytes),
        Capacity::Fraction(part) => format!("{}%", (part * 1e4).round() / 100.0),
    }
}

fn print(out: &mut impl Write, arguments: &Arguments, trace: &Trace, tables: &[Table]) -> Result<()> {
    let grid = trace.header.grid();
    let h = &trace.header;
    writeln!(
        out,
        "{}: {} tokens, {} layers of {} experts, {} used, {} of experts; {} pools",
        h.model,
        trace.len(),
        h.layers.len(),
        h.experts,
        h.used,
        numbers::bytes(grid.total_bytes()),
        arguments.pools
    )?;
    for (vram, best, outcomes) in tables {
        let ram = arguments.ram.map_or(String::new(), |ram| format!(", {} of RAM", size(ram)));
        writeln!(out, "\n{} of VRAM: {} slots of {}{ram}", size(*vram), best.slots, grid.entries())?;
        writeln!(
            out,
            "{:<16} {:>7} {:>7} {:>7} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8}",
            "hits %",
            "prompt",
            "1st 64",
            "steady",
            "2nd 1/2",
            "regret",
            "up/layer",
            "bus",
            "RAM",
            "disk",
            "tok/s",
            "upload"
        )?;
        for outcome in outcomes {
            let at = |window| outcome.window(window);
            let percent = |m: Measured| if m.picks == 0 { "-".into() } else { format!("{:.1}", 100.0 * m.hit_rate()) };
            let decode = at(Window::Decode);
            let half = at(Window::SecondHalf);
            let [computed, uploaded] = decode.rates();
            let a_token = |bytes: u64| numbers::bytes(bytes / decode.tokens.max(1));
            let two_tiers = arguments.ram.is_some() && matches!(outcome.named, Named::Belady | Named::BeladyCap);
            writeln!(
                out,
                "{:<16} {:>7} {:>7} {:>7} {:>7} {:>7.1} {:>9.2} {:>9} {:>9} {:>9} {computed:>8.1} {uploaded:>8.1}",
                outcome.named.name(),
                percent(at(Window::Prefill)),
                percent(at(Window::First64)),
                percent(at(Window::Steady)),
                percent(half),
                100.0 * (best.window(Window::SecondHalf).hit_rate() - half.hit_rate()),
                decode.uploads_per_layer(grid.layers()),
                a_token(decode.bus_bytes),
                a_token(decode.ram_bytes),
                // The bound is one of the two upper tiers.
                if two_tiers { "-".to_owned() } else { a_token(decode.disk_bytes) },
            )?;
        }
    }
    writeln!(
        out,
        "\nbytes are a generated token's; tok/s with misses computed on the CPU, 'upload' with misses waited for"
    )?;
    Ok(())
}

fn as_json(arguments: &Arguments, trace: &Trace, tables: &[Table]) -> Json {
    let grid = trace.header.grid();
    let tables: Vec<Json> = tables
        .iter()
        .map(|(vram, best, outcomes)| {
            let policies: Vec<Json> = outcomes
                .iter()
                .map(|outcome| {
                    let windows: serde_json::Map<String, Json> = outcome
                        .windows
                        .iter()
                        .map(|(window, m)| {
                            let name = serde_json::to_value(window).ok();
                            let name = name.and_then(|n| n.as_str().map(str::to_owned)).unwrap_or_default();
                            let [computed, uploaded] = m.rates();
                            let value = json!({
                                "hit_rate": m.hit_rate(),
                                "regret": best.window(*window).hit_rate() - m.hit_rate(),
                                "uploads_per_layer_token": m.uploads_per_layer(grid.layers()),
                                "tokens_per_second_computed": computed,
                                "tokens_per_second_uploaded": uploaded,
                                "counts": m,
                            });
                            (name, value)
                        })
                        .collect();
                    json!({ "policy": outcome.named.name(), "windows": windows })
                })
                .collect();
            json!({ "vram": size(*vram), "slots": best.slots, "policies": policies })
        })
        .collect();
    json!({
        "model": trace.header.model,
        "tokens": trace.len(),
        "layers": grid.layers(),
        "experts": grid.experts,
        "used": grid.used,
        "expert_bytes": grid.total_bytes(),
        "pools": arguments.pools,
        "ram": arguments.ram.map(size),
        "results": tables,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_parts() {
        assert_eq!(capacity("20%"), Ok(Capacity::Fraction(0.2)));
        assert_eq!(capacity("24G"), Ok(Capacity::Bytes(24_000_000_000)));
        assert_eq!(capacity("1.5 GB"), Ok(Capacity::Bytes(1_500_000_000)));
        assert_eq!(capacity("512"), Ok(Capacity::Bytes(512)));
        for bad in ["", "x", "120%", "3Q", "-1G"] {
            assert!(capacity(bad).is_err(), "{bad}");
        }
    }
}
