//! `rynd plan`: what of a model goes where on a machine, and how fast that will be.
//!
//! Only headers are read: of a file, of the first parts of a split one, or over the network, so that the question can be
//! asked before a download of hundreds of gigabytes. Every figure is either counted from the header or follows from the
//! cost model (`experts::cost`), whose assumptions are printed with it.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::plan_what_if::{self, Row};
use super::terminal;
use super::{interrupt, load, numbers, plan_gpus};
use crate::backend::KvFormat;
use crate::catalog::{Catalog, Net, State, peek};
use crate::cores;
use crate::engine::DEFAULT_CONTEXT;
use crate::experts::cost::{self, Context, Decode, Hits, Placement, Prefill};
use crate::experts::rates::{self, Rates};
use crate::experts::rig::{RIGS, Rig};
use crate::experts::shape::Shape;
use crate::gguf::{Gguf, Outline};
use crate::sizes;

/// Say what of a model goes where on a machine, whether it fits, and how fast it will be
///
/// Reads headers only: of a file, of the first parts of a split one, or over the network for a model that is not here.
/// Without --rig the machine is this one with the GPUs that rynd would use, at their measured speeds; the other flags
/// change single figures of it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd plan model.gguf
  rynd plan model.gguf --ram 4G --ctx 8K
  rynd plan qwen3-coder-480b --rig 4x24g-256-8ch
  rynd plan hf:unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF:Q4_K_M --vram 24G,24G --ram 64G --bus 25
  rynd plan qwen3-coder-480b --rig m3-ultra-256 --what-if
  rynd plan model.gguf --json | jq .decode")]
pub struct Arguments {
    /// A GGUF file (of a split model any part), a short name of 'rynd list', or hf:owner/repo[:QUANT or FILE]
    #[arg(value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    machine: MachineFlags,
    /// Tokens of context, as 8192 or 32K [default: the model's, at most 32K]
    #[arg(short, long, value_name = "TOKENS", value_parser = |text: &str| sizes::parse_tokens(text).map(|n| n as u64))]
    ctx: Option<u64>,
    /// Format of cached keys and values: f32, f16 or q8_0
    #[arg(long, value_name = "FORMAT", default_value = "f16")]
    kv: KvFormat,
    /// How many percent of the router's picks are found in VRAM, or in RAM where there is no VRAM, instead of an estimate
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    hits: Option<f64>,
    /// Prompt tokens computed together
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', default_values = ["512", "2048", "4096", "8192"])]
    batch: Vec<u64>,
    /// Compare quantisations of this model
    #[arg(long)]
    what_if: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Which machine.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Machine")]
struct MachineFlags {
    /// This machine, with its measured speeds; the default
    #[arg(long, conflicts_with = "rig")]
    here: bool,
    /// A known machine: m3-ultra-256, 4x24g-256-8ch, 4x24g-256-2ch or 1x24g-128
    #[arg(long, value_name = "NAME", value_parser = parse_rig)]
    rig: Option<Rig>,
    /// Memory of each graphics card; 0 for none [default without --rig: the cards that are here]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = sizes::parse)]
    vram: Vec<u64>,
    /// RAM that rynd may use
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse)]
    ram: Option<u64>,
    /// GB/s between RAM and a card (PCIe 4 x16: 25, PCIe 5 x16: 52)
    #[arg(long, value_name = "GB/S", value_parser = parse_rate)]
    bus: Option<f64>,
    /// GB/s of reads from the disk
    #[arg(long, value_name = "GB/S", value_parser = parse_rate)]
    disk: Option<f64>,
    /// GB/s at which the CPU reads weights from RAM
    #[arg(long, value_name = "GB/S", value_parser = parse_rate)]
    ram_rate: Option<f64>,
    /// GB/s at which a card reads weights from its memory
    #[arg(long, value_name = "GB/S", value_parser = parse_rate)]
    vram_rate: Option<f64>,
    /// Worker threads [default: the cores that this process may use]
    #[arg(short, long, value_name = "N", value_parser = load::thread_count)]
    threads: Option<usize>,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    model: ModelRow,
    rig: Rig,
    context: u64,
    cache_format: String,
    placement: Placement,
    fits: bool,
    cache_bytes: u64,
    cache_bytes_per_token: u64,
    state_bytes: u64,
    /// For text that wanders and text that stays on its topic, at an empty context.
    decode: [Decode; 2],
    /// The same with the context full.
    decode_full: [Decode; 2],
    prefill: Vec<Prefill>,
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    what_if: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct ModelRow {
    name: String,
    file: String,
    architecture: String,
    formats: String,
    /// Of all tensors; files add their headers.
    tensor_bytes: u64,
    layers: usize,
    experts: u64,
    experts_used: u64,
    expert_bytes: u64,
    dense_bytes: u64,
    bytes_per_token: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    interrupt::watch()?;
    let (outline, local) = outline(&arguments.model)?;
    let shape = Shape::read(&outline)?;
    let mut notes = vec![];
    let rig = arguments.machine.rig(local.as_ref(), &mut notes)?;
    let report = report(arguments, &outline, &shape, rig, notes)?;
    let mut out = std::io::BufWriter::new(terminal::stdout());
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        print(&mut out, &report)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The headers of the model, and the open files where they are here and whole.
fn outline(model: &str) -> Result<(Outline, Option<Gguf>)> {
    let path = Path::new(model);
    if path.is_file() {
        return Ok((Outline::open(path)?, Gguf::open(path).ok()));
    }
    let catalog = Catalog::open()?;
    let found = catalog.find(model)?;
    if let State::Complete(resolved) = catalog.state(&found)? {
        let gguf = Gguf::open(resolved.path())?;
        return Ok((Outline::of(&gguf), Some(gguf)));
    }
    if std::io::stderr().is_terminal() {
        // A lost note is no reason to fail.
        let _ =
            writeln!(terminal::stderr(), "rynd: '{model}' is not on this machine; reading its header from the network");
    }
    Ok((peek(&Net::from_env(), &found, &interrupt::asked)?, None))
}

impl MachineFlags {
    fn rig(&self, model: Option<&Gguf>, notes: &mut Vec<String>) -> Result<Rig> {
        let mut rig = match &self.rig {
            Some(rig) => {
                notes.push(format!(
                    "rates of {} are makers' peaks times what kernels reach: 65% of VRAM, 72 to 75% of RAM; a card keeps \
                     a tenth and 1 GB for itself",
                    rig.name
                ));
                rig.clone()
            }
            None => self.here(model, notes)?,
        };
        if !self.vram.is_empty() {
            let cards: Vec<u64> = self.vram.iter().copied().filter(|&n| n > 0).collect();
            rig.set_cards(&cards);
            if self.vram_rate.is_none() && !cards.is_empty() {
                notes.push(format!(
                    "cards at {} a second; --vram-rate changes that",
                    numbers::bytes(rig.vram_rate as u64)
                ));
            }
        }
        // Memory that a GPU shares was counted as the GPU's.
        if let (Some(bytes), false) = (self.ram, rig.unified && self.rig.is_none()) {
            rig.ram_bytes = bytes;
        }
        for (given, rate) in [
            (self.bus, &mut rig.bus_rate),
            (self.disk, &mut rig.disk_rate),
            (self.ram_rate, &mut rig.ram_rate),
            (self.vram_rate, &mut rig.vram_rate),
        ] {
            if let Some(given) = given {
                *rate = given;
            }
        }
        Ok(rig)
    }

    /// This machine, measured now if it never was.
    fn here(&self, model: Option<&Gguf>, notes: &mut Vec<String>) -> Result<Rig> {
        let threads = cores::threads(self.threads);
        let home = Catalog::open()?.home;
        let rates = Rates::of_this_machine(&home, threads, model.filter(|_| self.disk.is_none()))?;
        let ram = match (self.ram, rates::ram_bytes()) {
            (Some(bytes), _) => bytes,
            (None, Some(bytes)) => Rig::usable_ram(bytes),
            (None, None) => bail!("this system does not tell its memory; give it with --ram SIZE"),
        };
        let disk = model.and_then(|gguf| rates.disk(gguf.path()));
        let disk = disk.or_else(|| rates.disk_bytes_per_second.values().copied().reduce(f64::max));
        if disk.is_none() && self.disk.is_none() {
            notes.push("the disk was never measured: 2 GB/s is a guess; --disk GB/S changes that".to_owned());
        }
        notes.push(format!("RAM and arithmetic measured here with {threads} threads and {} kernels", rates.simd));
        let mut rig = Rig::cpu_only("this machine", ram, rates.ram_bytes_per_second, disk.unwrap_or(2e9));
        rig.cpu_ops = Some(rates.batch_ops_per_second);
        rig.measured = true;
        if self.vram.is_empty() {
            plan_gpus::add(&mut rig, &home, threads, notes)?;
        }
        Ok(rig)
    }
}

fn report(arguments: &Arguments, outline: &Outline, shape: &Shape, rig: Rig, mut notes: Vec<String>) -> Result<Report> {
    let default = (DEFAULT_CONTEXT as u64).min(if shape.context > 0 { shape.context } else { u64::MAX });
    let tokens = arguments.ctx.unwrap_or(default);
    let context = Context { tokens, bytes_per_value: arguments.kv.bytes_per_value() };
    let placement = cost::place(shape, &rig, context);
    let hits = [cost::WANDERS, cost::STAYS].map(|exponent| arguments.hits(shape, &placement, exponent));
    let decode = |depth| hits.map(|hits| cost::decode(shape, &rig, &placement, context, depth, hits));
    if hits[0] != hits[1] {
        notes.push(
            "hit rates are estimates: a share r of the experts answers r^0.42 (text that wanders) to r^0.145 (text that \
             stays) of the picks; --hits PERCENT sets one"
                .to_owned(),
        );
    }
    if shape.guessed_layers > 0 {
        notes.push(format!(
            "{} of {} files were read; {} of {} layers are taken to be like the mean of the others",
            outline.parts() - outline.missing(),
            outline.parts(),
            shape.guessed_layers,
            shape.layers.len()
        ));
    }
    if rig.vram() > 0 {
        notes.push(format!("{:.0} us a layer for launches and for the sides to meet", rig.sync_seconds * 1e6));
    }
    let overlap = "prefill: copies, reads and arithmetic overlap (on a GPU with one queue they take turns); attention's own \
                   work is not counted";
    notes.push(overlap.to_owned());
    if rig.vram() > 0 && rig.gpu_ops.is_none() {
        notes.push("the cards' arithmetic is unknown, so prefill counts bytes only".to_owned());
    }
    let what_if = if arguments.what_if {
        plan_what_if::rows(outline, shape, &rig, context).context("the table of quantisations")?
    } else {
        vec![]
    };
    let experts = shape.experts().unwrap_or_default();
    Ok(Report {
        model: ModelRow {
            name: shape.name.clone(),
            file: outline.path().display().to_string(),
            architecture: shape.architecture.clone(),
            formats: shape.formats.clone(),
            tensor_bytes: shape.tensor_bytes,
            layers: shape.layers.len(),
            experts: experts.0,
            experts_used: experts.1,
            expert_bytes: experts.2,
            dense_bytes: shape.dense_bytes(),
            bytes_per_token: shape.dense_bytes() + shape.expert_bytes_per_token(),
        },
        context: tokens,
        cache_format: format!("{:?}", arguments.kv).to_lowercase(),
        fits: placement.fits(),
        cache_bytes: cost::cache_bytes(shape, context),
        cache_bytes_per_token: (shape.kv_values(1) as f64 * context.bytes_per_value) as u64,
        state_bytes: shape.state_bytes(),
        decode: decode(0),
        decode_full: decode(tokens),
        prefill: arguments.batch.iter().map(|&batch| cost::prefill(shape, &rig, &placement, batch.max(1))).collect(),
        placement,
        rig,
        notes,
        what_if,
    })
}

impl Arguments {
    /// The user's hit rate for the fastest tier that does not hold all experts, else the estimate.
    fn hits(&self, shape: &Shape, placement: &Placement, exponent: f64) -> Hits {
        let mut hits = cost::hits(shape, placement, exponent);
        if let Some(given) = self.hits {
            if placement.vram.bytes() > 0 {
                hits.vram = given;
                hits.memory = if placement.ram.expert_bytes == 0 { given } else { hits.memory.max(given) };
            } else {
                hits.memory = given;
            }
        }
        hits
    }
}

fn print(out: &mut impl Write, report: &Report) -> Result<()> {
    let (model, rig, placed) = (&report.model, &report.rig, &report.placement);
    let bytes = numbers::bytes;
    writeln!(out, "model     {} ({}), {}", model.name, model.architecture, bytes(model.tensor_bytes))?;
    writeln!(out, "weights   {}", model.formats)?;
    if model.experts > 0 {
        writeln!(
            out,
            "layers    {}, with {} experts of {} each, {} used a token",
            model.layers,
            model.experts,
            bytes(model.expert_bytes),
            model.experts_used
        )?;
    } else {
        writeln!(out, "layers    {}", model.layers)?;
    }
    let state =
        if report.state_bytes > 0 { format!(" and {} of state", bytes(report.state_bytes)) } else { String::new() };
    writeln!(
        out,
        "context   {} tokens: {} in {} ({} a token){state}",
        report.context,
        bytes(report.cache_bytes - report.state_bytes),
        report.cache_format,
        bytes(report.cache_bytes_per_token)
    )?;
    let rate = |rate: f64| format!("{:.1} GB/s", rate / 1e9);
    let cards = match (rig.vram_bytes.as_slice(), rig.unified) {
        ([], _) => String::new(),
        ([one], true) => format!("{} unified at {}, ", bytes(*one), rate(rig.vram_rate)),
        (cards, _) => format!(
            "{} of {} at {}, bus {}, ",
            if cards.len() == 1 { "a card".to_owned() } else { format!("{} cards", cards.len()) },
            bytes(cards[0]),
            rate(rig.vram_rate),
            rate(rig.bus_rate)
        ),
    };
    let ram =
        if rig.unified { String::new() } else { format!("RAM {} at {}, ", bytes(rig.ram_bytes), rate(rig.ram_rate)) };
    writeln!(out, "machine   {}: {cards}{ram}disk {}", rig.name, rate(rig.disk_rate))?;

    writeln!(out, "\n{:<9} {:>10} {:>10} {:>10} {:>10}", "", "dense", "experts", "cache", "together")?;
    let all = (placed.vram.expert_bytes + placed.ram.expert_bytes + placed.disk.expert_bytes).max(1) as f64;
    for (name, held, shown) in [
        (if rig.unified { "memory" } else { "VRAM" }, &placed.vram, rig.vram() > 0),
        ("RAM", &placed.ram, !rig.unified),
        ("disk", &placed.disk, true),
    ] {
        if !shown {
            continue;
        }
        let share = match held.expert_bytes {
            0 => String::new(),
            n => format!("   {:.0}% of the experts", n as f64 * 100.0 / all),
        };
        let cells = [held.dense_bytes, held.expert_bytes, held.cache_bytes, held.bytes()]
            .map(|n| if n == 0 { "-".to_owned() } else { bytes(n) });
        writeln!(out, "{name:<9} {:>10} {:>10} {:>10} {:>10}{share}", cells[0], cells[1], cells[2], cells[3])?;
    }
    writeln!(out, "{}", verdict(report))?;
    if placed.short_bytes > 0 {
        return notes(out, report);
    }

    writeln!(
        out,
        "\n{:<22} {:>9} {:>18} {:>10} {:>10} {:>10}",
        "a token reads",
        "tok/s",
        "hits",
        if rig.unified { "memory" } else { "VRAM" },
        "RAM",
        "disk"
    )?;
    let lines = [("text that wanders", 0), ("text that stays", 1)];
    let same = report.decode[0] == report.decode[1];
    for (name, i) in lines.into_iter().take(if same { 1 } else { 2 }) {
        let name = if same { "any text" } else { name };
        for (decode, full) in [(&report.decode[i], ""), (&report.decode_full[i], ", full context")] {
            let hits = match (placed.vram.expert_bytes > 0, placed.disk.expert_bytes > 0) {
                (true, true) if !rig.unified => {
                    format!("{:.0}% VRAM {:.1}% all", decode.hits.vram * 100.0, decode.hits.memory * 100.0)
                }
                (true, false) if decode.hits.vram < 1.0 => format!("{:.0}% VRAM", decode.hits.vram * 100.0),
                (_, true) => format!("{:.1}%", decode.hits.memory * 100.0),
                _ => "-".to_owned(),
            };
            let speed = decode.tokens_per_second;
            let speed = if speed < 10.0 { format!("{speed:.2}") } else { format!("{speed:.1}") };
            let cells = [decode.vram_bytes, decode.ram_bytes, decode.disk_bytes]
                .map(|n| if n == 0 { "-".to_owned() } else { bytes(n) });
            let label = if full.is_empty() { name } else { full.trim_start_matches(", ") };
            writeln!(out, "{label:<22} {speed:>9} {hits:>18} {:>10} {:>10} {:>10}", cells[0], cells[1], cells[2])?;
        }
    }
    writeln!(out, "\n{:<22} {:>9}", "a prompt, in batches", "tok/s")?;
    for prefill in &report.prefill {
        let way = match (prefill.way, rig.vram() > 0 && !rig.unified) {
            (cost::Way::Streamed, true) => "layers stream through VRAM, ",
            (cost::Way::Cpu, true) => "experts outside VRAM on the CPU, ",
            (cost::Way::Split, true) => "experts stream through VRAM or run on the CPU, both at once, ",
            _ => "",
        };
        let label = format!("of {}", prefill.batch);
        writeln!(out, "{label:<22} {:>9.1}   {way}bound by {}", prefill.tokens_per_second, prefill.bound)?;
    }
    if !report.what_if.is_empty() {
        writeln!(out)?;
        plan_what_if::print(out, &report.what_if)?;
    }
    notes(out, report)
}

/// One sentence: does it fit.
fn verdict(report: &Report) -> String {
    let placed = &report.placement;
    let bytes = numbers::bytes;
    if placed.short_bytes > 0 {
        return format!(
            "It does not run: cache and rynd itself need {} more; use a shorter --ctx or --kv q8_0.",
            bytes(placed.short_bytes)
        );
    }
    if placed.disk.dense_bytes > 0 {
        return format!(
            "It does not fit: {} that every token needs would be read from disk each time.",
            bytes(placed.disk.dense_bytes)
        );
    }
    if placed.disk.expert_bytes > 0 {
        return format!(
            "It does not fit: {} of experts stay on disk and are read when picked.",
            bytes(placed.disk.expert_bytes)
        );
    }
    let exclusive = !report.rig.unified
        && placed.vram.expert_bytes > 0
        && report.model.tensor_bytes + placed.ram.cache_bytes > report.rig.ram_bytes;
    if exclusive { "It fits, with nothing kept in both VRAM and RAM.".to_owned() } else { "It fits.".to_owned() }
}

fn notes(out: &mut impl Write, report: &Report) -> Result<()> {
    writeln!(out, "\nassumptions")?;
    for note in &report.notes {
        writeln!(out, "  {note}")?;
    }
    Ok(())
}

fn parse_rig(name: &str) -> Result<Rig, String> {
    Rig::named(name).ok_or_else(|| {
        let known: Vec<String> = RIGS.iter().map(|(name, what)| format!("{name} ({what})")).collect();
        format!("no machine is called '{name}'; known: {}", known.join("; "))
    })
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate * 1e9),
        _ => Err(format!("'{text}' is no speed in GB/s; write it like 25 or 6.5")),
    }
}

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.trim().trim_end_matches('%').parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err(format!("'{text}' is no percentage from 0 to 100")),
    }
}
