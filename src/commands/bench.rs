//! `rynd bench`: how fast, and how near to what the memory allows.
//!
//! Prompts and generation run on fixed pseudo-random ids, so a run's last logits, and their hash, depend only on the
//! model, the settings and the lengths: two builds that agree in numbers agree in hashes. Decode is held against the
//! read bandwidth measured on the same threads in the same run.

use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::counters::{self, GpuCounts};
use super::load::{self, ComputeFlags, ModelArg};
use super::memory::Memory;
use super::terminal;
use super::{bandwidth, numbers};
use crate::engine::{Engine, EngineConfig, Session, Wanted};

/// Measure prompt and generation speed
///
/// One line for each length, depth and thread count: tokens a second as mean +- standard deviation; for generation also
/// the bytes read a second (weights and cache) and their share of the measured read bandwidth. Below it, for each GPU,
/// what a token of each test takes of it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd bench model.gguf
  rynd bench model.gguf -p 0 -n 64 -d 0,4096 -t 1,2
  rynd bench model.gguf -p 128,512,2048 -n 0 -r 10 --json
  rynd bench model.gguf --gpu 0 -p 512 -n 32 --profile")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArg,
    /// Prompt lengths (0: none)
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', default_value = "512")]
    prompt: Vec<usize>,
    /// Generation lengths (0: none)
    #[arg(short = 'n', long, value_name = "LIST", value_delimiter = ',', default_value = "64")]
    generate: Vec<usize>,
    /// Tokens already in the cache when a test starts
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Worker threads [default: the physical cores]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = load::at_least_one())]
    threads: Vec<usize>,
    /// Timed runs of each test
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = load::at_least_one())]
    repetitions: usize,
    /// Time every GPU kernel by timestamps, in one more run of each test
    #[arg(long)]
    profile: bool,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeFlags,
}

/// What is timed.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Prompt,
    Generate,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Test {
    kind: Kind,
    tokens: usize,
    depth: usize,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    test: Test,
    threads: usize,
    tokens_per_second: f64,
    deviation: f64,
    samples: Vec<f64>,
    /// Weights and cache that a generated token reads.
    bytes_per_token: Option<f64>,
    gigabytes_per_second: Option<f64>,
    share_of_bandwidth: Option<f64>,
    logits_hash: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gpus: Vec<GpuCounts>,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    model_bytes: u64,
    simd: &'static str,
    cache: String,
    exact: bool,
    batch: usize,
    load_ms: f64,
    bandwidth: Vec<Bandwidth>,
    lines: Vec<Line>,
    memory: Option<Memory>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Bandwidth {
    threads: usize,
    bytes_per_second: f64,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let tests = tests(arguments);
    let Some(context) = tests.iter().map(|test| test.depth + test.tokens).max() else {
        bail!("there is nothing to measure: every length is 0; give -p or -n");
    };
    let thread_counts: Vec<Option<usize>> = match arguments.threads.as_slice() {
        [] => vec![None],
        some => some.iter().map(|&n| Some(n)).collect(),
    };
    let bar = ProgressBar::new((thread_counts.len() * tests.len()) as u64).with_style(style());
    let mut report: Option<Report> = None;
    for threads in thread_counts {
        let config = EngineConfig { threads, context: Some(context), ..arguments.compute.config() };
        bar.set_message("loading");
        let start = Instant::now();
        let mut engine = arguments.model.load(&config)?;
        let loaded = start.elapsed();
        bar.set_message("memory bandwidth");
        let threads = engine.threads();
        let bandwidth = Bandwidth { threads, bytes_per_second: bandwidth::read_bytes_per_second(threads) };
        let report = report.get_or_insert_with(|| Report {
            model: arguments.model.name().to_owned(),
            model_bytes: engine.gguf().file_bytes(),
            simd: rynd_quant::Kernels::get().level().name(),
            cache: format!("{:?}", arguments.compute.kv_format()).to_lowercase(),
            exact: arguments.compute.exact,
            batch: engine.batch(),
            load_ms: loaded.as_secs_f64() * 1e3,
            bandwidth: vec![],
            lines: vec![],
            memory: None,
        });
        report.bandwidth.push(bandwidth);
        let mut session = Session::new();
        for &test in &tests {
            bar.set_message(name(test));
            report.lines.push(measure(&mut engine, &mut session, test, arguments, bandwidth)?);
            bar.inc(1);
        }
        report.memory = Memory::now();
        if arguments.profile && engine.gpus().is_empty() {
            bail!("--profile times GPU kernels, and no GPU is in use; name one with --gpu, see 'rynd devices'");
        }
    }
    bar.finish_and_clear();
    let Some(report) = report else { return Ok(ExitCode::SUCCESS) };
    let mut out = terminal::stdout();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        print(&mut out, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Every test, by depth: the cache is filled once for all tests of a depth.
fn tests(arguments: &Arguments) -> Vec<Test> {
    let lengths =
        |kind, list: &[usize]| -> Vec<(Kind, usize)> { list.iter().filter(|&&n| n > 0).map(|&n| (kind, n)).collect() };
    let mut all = lengths(Kind::Prompt, &arguments.prompt);
    all.extend(lengths(Kind::Generate, &arguments.generate));
    arguments
        .depth
        .iter()
        .flat_map(|&depth| all.iter().map(move |&(kind, tokens)| Test { kind, tokens, depth }))
        .collect()
}

/// Times one test; the session's first `depth` tokens are reused where they are there already.
fn measure(
    engine: &mut Engine,
    session: &mut Session,
    test: Test,
    arguments: &Arguments,
    bandwidth: Bandwidth,
) -> Result<Line> {
    let ids = ids(test.depth + test.tokens, engine.plan().vocab);
    session.truncate(test.depth);
    if session.ids().len() < test.depth {
        let missing = session.ids().len()..test.depth;
        session.extend(engine, &ids[missing], Wanted::Last, |_, _| ControlFlow::Continue(()))?;
    }
    // Untimed: pages the weights in and wakes the threads.
    let warm_up = if matches!(test.kind, Kind::Prompt) { test.tokens } else { test.tokens.min(4) };
    once(engine, session, test, &ids[..test.depth + warm_up])?;
    let mut samples = vec![];
    let mut hash = 0;
    engine.reset_counters();
    for _ in 0..arguments.repetitions {
        let (time, logits_hash) = once(engine, session, test, &ids)?;
        samples.push(numbers::rate(test.tokens, time));
        hash = logits_hash;
    }
    let (mean, deviation) = numbers::mean_and_deviation(&samples);
    let mut gpus = counters::counts(engine, test.tokens * arguments.repetitions);
    if arguments.profile && !gpus.is_empty() {
        if !engine.time_kernels(true) {
            bail!("--profile needs timestamps, which a GPU here does not have; 'rynd devices' shows it");
        }
        once(engine, session, test, &ids)?;
        gpus.iter_mut().zip(engine.gpus()).for_each(|(counts, gpu)| counts.add_times(gpu));
        engine.time_kernels(false);
    }
    let bytes = match test.kind {
        Kind::Prompt => None,
        Kind::Generate => Some(bytes_per_token(engine, test, arguments)),
    };
    Ok(Line {
        test,
        threads: engine.threads(),
        tokens_per_second: mean,
        deviation,
        samples,
        bytes_per_token: bytes,
        gigabytes_per_second: bytes.map(|bytes| bytes * mean / 1e9),
        share_of_bandwidth: bytes.map(|bytes| bytes * mean / bandwidth.bytes_per_second),
        logits_hash: format!("{hash:016x}"),
        gpus,
    })
}

/// One run from `test.depth` to the end of `ids`; its time and the hash of its last logits.
fn once(engine: &mut Engine, session: &mut Session, test: Test, ids: &[u32]) -> Result<(Duration, u64)> {
    session.truncate(test.depth);
    let new = &ids[test.depth..];
    let mut last = vec![];
    let mut keep = |logits: &[f32]| {
        last.clear();
        last.extend_from_slice(logits);
        ControlFlow::Continue(())
    };
    let start = Instant::now();
    match test.kind {
        Kind::Prompt => session.extend(engine, new, Wanted::Last, |_, logits| keep(logits))?,
        Kind::Generate => {
            for &id in new {
                let _ = keep(session.decode(engine, id, Wanted::Last)?);
            }
        }
    }
    let time = start.elapsed();
    Ok((time, numbers::hash(&last)))
}

/// Weight bytes of one decoded token, and the cache bytes it reads half-way through the test.
fn bytes_per_token(engine: &Engine, test: Test, arguments: &Arguments) -> f64 {
    let plan = engine.plan();
    let held = (test.depth + test.tokens / 2) as f64;
    let per_value = arguments.compute.kv_format().bytes_per_value();
    let cache: f64 = plan
        .kv
        .iter()
        .map(|kv| {
            let seen = kv.window.map_or(held, |window| held.min(f64::from(window)));
            seen * (2 * kv.kv_heads * kv.head_dim) as f64 * per_value
        })
        .sum();
    plan.bytes_per_token() as f64 + cache
}

/// Fixed ids that look random: Knuth's multiplicative generator, its upper bits.
fn ids(n: usize, vocab: usize) -> Vec<u32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocab as u64) as u32
        })
        .collect()
}

fn name(test: Test) -> String {
    let kind = match test.kind {
        Kind::Prompt => "pp",
        Kind::Generate => "tg",
    };
    let depth = if test.depth > 0 { format!(" @ d{}", test.depth) } else { String::new() };
    format!("{kind}{}{depth}", test.tokens)
}

fn print(out: &mut impl Write, report: &Report) -> Result<()> {
    let exact = if report.exact { ", exact" } else { "" };
    writeln!(
        out,
        "{} ({}), {}, cache {}, batch {}{exact}, loaded in {}",
        report.model,
        numbers::bytes(report.model_bytes),
        report.simd,
        report.cache,
        report.batch,
        numbers::duration(Duration::from_secs_f64(report.load_ms / 1e3))
    )?;
    for bandwidth in &report.bandwidth {
        let speed = bandwidth.bytes_per_second / 1e9;
        writeln!(out, "memory reads at {speed:.1} GB/s with {} threads", bandwidth.threads)?;
    }
    writeln!(out, "\n{:<16} {:>7} {:>20} {:>7} {:>8}  logits", "test", "threads", "tok/s", "GB/s", "of reads")?;
    for line in &report.lines {
        let speed = format!("{:.2} ± {:.2}", line.tokens_per_second, line.deviation);
        let read = line.gigabytes_per_second.map_or(String::new(), |gb| format!("{gb:.1}"));
        let share = line.share_of_bandwidth.map_or(String::new(), |share| format!("{:.0}%", share * 100.0));
        let (name, threads, hash) = (name(line.test), line.threads, &line.logits_hash);
        writeln!(out, "{name:<16} {threads:>7} {speed:>20} {read:>7} {share:>8}  {hash}")?;
    }
    let rows = report.lines.iter().flat_map(|line| line.gpus.iter().map(move |gpu| (name(line.test), gpu)));
    counters::print(out, &rows.collect::<Vec<_>>())?;
    if let Some(memory) = report.memory {
        writeln!(
            out,
            "\nmemory: {} resident: {} of the model's file (of {} mapped) and {} of our own",
            numbers::bytes(memory.resident_bytes),
            numbers::bytes(memory.file_bytes),
            numbers::bytes(report.model_bytes),
            numbers::bytes(memory.anonymous_bytes)
        )?;
    }
    Ok(())
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar())
}
