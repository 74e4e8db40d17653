//! Memory of a loaded model: the flags that bound it, and the one line at the start that says what goes where.
//!
//! A model that is larger than memory gets a budget without being asked for one; nothing of that happens in silence. The
//! line goes to stderr where that is a terminal; that experts will be read from disk is told everywhere.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use super::numbers;
use super::terminal;
use crate::catalog::Home;
use crate::cores;
use crate::engine::{DEFAULT_CONTEXT, Engine, EngineConfig, GpuChoice, kept_gpu_rates};
use crate::experts::cost::{self, Context};
use crate::experts::rates::{self, Rates};
use crate::experts::rig::Rig;
use crate::experts::shape::Shape;
use crate::experts::tier::{Ram, Tiers};
use crate::gguf::{Gguf, Outline};
use crate::sizes;

/// How much memory.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine options")]
pub struct BudgetFlags {
    /// Memory for everything, as 4G (10^9 bytes) or 4GiB (2^30): experts beyond it stay on disk and are read when they are picked [default: what the
    /// machine has]
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse)]
    pub ram: Option<u64>,
    /// Keep the experts that are in RAM from being swapped out
    #[arg(long)]
    pub mlock: bool,
    /// Leave out the line that says what goes where
    #[arg(short, long)]
    pub quiet: bool,
}

/// Set by the flags: the line is printed far from them, where the model is loaded.
static QUIET: AtomicBool = AtomicBool::new(false);

impl BudgetFlags {
    /// As the engine wants it.
    pub fn tiers(&self) -> Option<Tiers> {
        QUIET.store(self.quiet, Ordering::Relaxed);
        let total = |bytes| Tiers { lock: self.mlock, ..Tiers::total(bytes) };
        match (self.ram, self.mlock) {
            (Some(bytes), _) => Some(total(bytes)),
            (None, true) => rates::ram_bytes().map(|bytes| total(Rig::usable_ram(bytes))),
            (None, false) => None,
        }
    }
}

/// Gives a model that is larger than memory a budget, and tells what goes where. What can not be known is left out: a
/// failure to plan is no failure to load.
pub fn prepare(gguf: &Gguf, config: &mut EngineConfig) {
    let Ok(shape) = Shape::read(&Outline::of(gguf)) else { return };
    let context = context(&shape, config);
    let machine = rates::ram_bytes().map(Rig::usable_ram);
    let needed = shape.tensor_bytes + cost::cache_bytes(&shape, context) + cost::OWN_BYTES;
    if let (None, Some(usable)) = (&config.tiers, machine)
        && needed > usable
        && shape.experts().is_some()
    {
        config.tiers = Some(Tiers::total(usable));
    }
    if QUIET.load(Ordering::Relaxed) {
        return;
    }
    let Some(ram) = ram(config) else { return };
    let Some(line) = line(gguf, config, &shape, context, ram) else { return };
    // A lost line is no reason to fail.
    let _ = writeln!(terminal::stderr(), "rynd: {line}");
}

/// `None` when there is nothing that must be said and nobody who reads along.
fn line(gguf: &Gguf, config: &EngineConfig, shape: &Shape, context: Context, ram: u64) -> Option<String> {
    let rig = |ram_rate, disk_rate| Rig::cpu_only("this machine", ram, ram_rate, disk_rate);
    let placed = cost::place(shape, &rig(1.0, 1.0), context);
    let disk = placed.disk.bytes();
    if disk == 0 && !std::io::stderr().is_terminal() {
        return None;
    }
    let bytes = numbers::bytes;
    let size = bytes(shape.tensor_bytes);
    let place = match shape.expert_bytes() {
        _ if disk == 0 => {
            format!("all in RAM, {} a token", bytes(shape.dense_bytes() + shape.expert_bytes_per_token()))
        }
        0 => format!("{} more than {} of RAM, so each token waits for the disk", bytes(disk), bytes(ram)),
        experts => format!(
            "{} of {} of experts in {} of RAM, the others are read from disk when picked",
            bytes(placed.ram.expert_bytes),
            bytes(experts),
            bytes(ram)
        ),
    };
    let cache = format!("cache {} for {} tokens", bytes(cost::cache_bytes(shape, context)), context.tokens);
    let speed =
        speed(gguf, config, shape, context, ram).map(|speed| format!("; about {speed} tok/s")).unwrap_or_default();
    Some(format!("{} ({size}): {place}; {cache}{speed}", shape.name))
}

/// The speed that the cost model gives with the rates kept for this machine; with a budget they are measured first. `None`
/// where GPUs may take part whose rates are known: then it is told when they are open.
fn speed(gguf: &Gguf, config: &EngineConfig, shape: &Shape, context: Context, ram: u64) -> Option<String> {
    let home = Home::from_env().ok()?;
    if waits_for_gpus(&home, config) {
        return None;
    }
    modelled(&rig(&home, gguf, config, ram)?, shape, context)
}

/// Whether the speed is told when it is known which GPUs take part.
fn waits_for_gpus(home: &Home, config: &EngineConfig) -> bool {
    config.gpu.choice != GpuChoice::Off && Rates::has_gpus(home)
}

/// This machine without GPUs, by its kept rates.
fn rig(home: &Home, gguf: &Gguf, config: &EngineConfig, ram: u64) -> Option<Rig> {
    let threads = cores::threads(config.threads);
    let rates = match config.tiers {
        Some(_) => Rates::of_this_machine(home, threads, Some(gguf)).ok()?,
        None => Rates::load(home, threads)?,
    };
    let disk = rates.disk(gguf.path()).unwrap_or(f64::INFINITY);
    Some(Rig::cpu_only("this machine", ram, rates.ram_bytes_per_second, disk))
}

/// Tokens a second on a rig, from text that wanders to text that stays; `None` where a rate that counts is unknown.
fn modelled(rig: &Rig, shape: &Shape, context: Context) -> Option<String> {
    let placed = cost::place(shape, rig, context);
    if placed.disk.bytes() > 0 && rig.disk_rate.is_infinite() {
        return None;
    }
    let speeds = [cost::WANDERS, cost::STAYS].map(|exponent| {
        let hits = cost::hits(shape, &placed, exponent);
        let speed = cost::decode(shape, rig, &placed, context, 0, hits).tokens_per_second;
        if speed < 10.0 { format!("{speed:.1}") } else { format!("{speed:.0}") }
    });
    Some(if speeds[0] == speeds[1] { speeds[0].clone() } else { speeds.join(" to ") })
}

/// Tells the speed that the cost model gives with what the model runs on, where that had to be waited for.
pub fn tell_speed(engine: &Engine, config: &EngineConfig) {
    if QUIET.load(Ordering::Relaxed) || !std::io::stderr().is_terminal() {
        return;
    }
    if let Some(speed) = speed_when_open(engine, config) {
        let whose = if engine.gpus().is_empty() { "CPU" } else { "GPUs" };
        // A lost line is no reason to fail.
        let _ = writeln!(terminal::stderr(), "rynd: about {speed} tok/s by the measured rates of the {whose}");
    }
}

/// `None` where it was told before, or the rates of a GPU are unknown.
fn speed_when_open(engine: &Engine, config: &EngineConfig) -> Option<String> {
    let home = Home::from_env().ok()?;
    if engine.gpus().is_empty() && !waits_for_gpus(&home, config) {
        return None;
    }
    let shape = Shape::read(&Outline::of(engine.gguf())).ok()?;
    let mut rig = rig(&home, engine.gguf(), config, ram(config)?)?;
    let mut unified = false;
    let gpus = engine.gpus().iter().zip(engine.gpu_shares()).map(|(gpu, share)| {
        let adapter = gpu.device().report();
        unified |= adapter.unified_memory;
        let usable = adapter.memory_bytes.map(Rig::usable_vram);
        Some((share.budget.or(usable).unwrap_or(share.bytes), kept_gpu_rates(adapter, &home)?))
    });
    let gpus: Vec<_> = gpus.collect::<Option<_>>()?;
    if !gpus.is_empty() {
        rig.set_measured(&gpus, unified && config.gpu.memory.is_none());
    }
    modelled(&rig, &shape, context(&shape, config))
}

/// The context that the engine will hold, all sessions together.
fn context(shape: &Shape, config: &EngineConfig) -> Context {
    let tokens = config.context.map_or_else(|| shape.context.min(DEFAULT_CONTEXT as u64), |n| n as u64);
    let kv = config.cache_format().bytes_per_value();
    Context { tokens: tokens * config.sessions.max(1) as u64, bytes_per_value: kv }
}

/// RAM that the model may take.
fn ram(config: &EngineConfig) -> Option<u64> {
    match config.tiers.as_ref().map(|tiers| tiers.ram) {
        Some(Ram::Total(bytes)) => Some(bytes),
        Some(Ram::Experts(_)) | None => rates::ram_bytes().map(Rig::usable_ram),
    }
}
