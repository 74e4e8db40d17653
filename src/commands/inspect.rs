//! `rynd inspect`: what is in a model file, and what running it would read.
//!
//! A file of an architecture that rynd does not run is still shown; only what needs the plan is then missing, and the
//! reason is told. Nothing is printed that was not read from the header or counted from the plan.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::load::{self, ComputeFlags, ModelArg};
use super::steps::StepRow;
use super::terminal;
use super::{input, numbers, steps, trace};
use crate::engine::{Engine, EngineConfig, GpuOptions, Outline};
use crate::gguf::{Gguf, Value};

/// Arrays with more items than this are shortened.
const SHOWN_ITEMS: usize = 8;

/// Characters of a string that are shown as text.
const SHOWN_CHARS: usize = 100;

/// Show a model file: metadata, sizes, tensors, and the steps that rynd runs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd inspect model.gguf
  rynd inspect model.gguf --tensors | grep blk.0
  rynd inspect model.gguf --plan
  rynd inspect model.gguf --plan --gpu 0 --gpu-layers 20
  rynd inspect model.gguf --json | jq .formats
  rynd inspect model.gguf --trace-step 1,2,3 -v")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArg,
    /// List the tensors
    #[arg(long)]
    tensors: bool,
    /// List the steps of a forward pass
    #[arg(long)]
    plan: bool,
    /// Print everything asked for as JSON
    #[arg(long)]
    json: bool,
    /// Run these token ids step by step, as usual and with --exact, and print the first step where the two part
    #[arg(long, value_name = "IDS", conflicts_with_all = ["json", "exact"])]
    trace_step: Option<String>,
    /// The normalised squared error at which --trace-step speaks of parting; int8 activations alone cost up to 0.02
    #[arg(long, value_name = "NMSE", default_value = "0.05", requires = "trace_step")]
    threshold: f64,
    /// With --trace-step: print every step's error
    #[arg(short, long, requires = "trace_step")]
    verbose: bool,
    /// With --plan: tokens of context that caches are placed and dispatches counted for
    #[arg(short, long, value_name = "TOKENS", value_parser = load::at_least_one())]
    ctx: Option<usize>,
    #[command(flatten)]
    compute: ComputeFlags,
}

#[derive(Debug, Serialize)]
struct Report {
    file: String,
    shards: usize,
    file_bytes: u64,
    version: u32,
    architecture: Option<String>,
    name: Option<String>,
    parameters: u64,
    /// By format: tensors, parameters, bytes.
    formats: BTreeMap<&'static str, FormatRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<ModelRow>,
    /// Why `model` is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_runnable: Option<String>,
    metadata: serde_json::Map<String, Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Vec<StepRow>>,
}

#[derive(Debug, Default, Serialize)]
struct FormatRow {
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

/// What the plan tells.
#[derive(Debug, Serialize)]
struct ModelRow {
    layers: usize,
    vocabulary: usize,
    context: usize,
    steps: usize,
    weight_bytes_per_token: usize,
    cache_format: String,
    cache_bytes_per_token: f64,
}

#[derive(Debug, Serialize)]
struct TensorRow {
    name: String,
    format: &'static str,
    /// Innermost dimension first, as in the file.
    shape: Vec<u64>,
    bytes: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut out = std::io::BufWriter::new(terminal::stdout());
    if let Some(ids) = &arguments.trace_step {
        let ids = input::ids(ids)?;
        trace::compare(&arguments.model, &arguments.compute, &ids, arguments.threshold, arguments.verbose, &mut out)?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let gguf = arguments.model.open()?;
    let config = arguments.compute.config();
    // Without --plan nothing depends on where steps run, and no adapter need be asked.
    let gpu = if arguments.plan { config.gpu.clone() } else { GpuOptions::default() };
    let config = EngineConfig { gpu, context: arguments.ctx, tiers: None, ..config };
    let outline = Engine::outline(&gguf, &config).map_err(anyhow::Error::from);
    if let (true, Err(_)) = (arguments.plan, &outline) {
        return outline.map(|_| ExitCode::SUCCESS);
    }
    let report = report(arguments, &gguf, outline);
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        print(&mut out, &report)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn report(arguments: &Arguments, gguf: &Gguf, outline: Result<Outline>) -> Report {
    let mut formats: BTreeMap<&'static str, FormatRow> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let row = formats.entry(tensor.format.name()).or_default();
        row.tensors += 1;
        row.parameters += tensor.shape.iter().product::<u64>();
        row.bytes += tensor.bytes as u64;
    }
    let text = |key: &str| gguf.get(key).and_then(Value::as_str).map(str::to_owned);
    let row = |tensor: &crate::gguf::TensorInfo| TensorRow {
        name: tensor.name.clone(),
        format: tensor.format.name(),
        shape: tensor.shape.to_vec(),
        bytes: tensor.bytes as u64,
    };
    let kv = arguments.compute.kv_format();
    let model = outline.as_ref().ok().map(|outline| {
        let plan = &outline.plan;
        ModelRow {
            layers: plan.layers,
            vocabulary: plan.vocab,
            context: plan.context,
            steps: plan.steps.iter().filter(|step| step.op.name() != "move").count(),
            weight_bytes_per_token: plan.bytes_per_token(),
            cache_format: format!("{kv:?}").to_lowercase(),
            cache_bytes_per_token: plan.kv_bytes_per_token(kv.bytes_per_value()),
        }
    });
    Report {
        file: gguf.path().display().to_string(),
        shards: gguf.shards().len(),
        file_bytes: gguf.file_bytes(),
        version: gguf.version(),
        architecture: text("general.architecture"),
        name: text("general.name"),
        parameters: formats.values().map(|row| row.parameters).sum(),
        formats,
        model,
        not_runnable: outline.as_ref().err().map(|e| format!("{e:#}")),
        metadata: gguf.metadata().map(|(key, value)| (key.to_owned(), shortened(value))).collect(),
        tensors: arguments.tensors.then(|| gguf.tensors().iter().map(row).collect()),
        plan: outline.ok().filter(|_| arguments.plan).map(|outline| steps::rows(&outline, arguments.ctx.unwrap_or(1))),
    }
}

/// The value as JSON; a long array as its length and its first items.
fn shortened(value: &Value) -> Json {
    match value {
        Value::Array(array) => {
            let first: Vec<Json> = array.iter().take(SHOWN_ITEMS).map(|item| shortened(&item)).collect();
            if array.len() <= SHOWN_ITEMS {
                Json::Array(first)
            } else {
                json!({ "items": array.len(), "first": first })
            }
        }
        other => serde_json::to_value(other).unwrap_or(Json::Null),
    }
}

fn print(out: &mut impl Write, report: &Report) -> Result<()> {
    let parts = if report.shards > 1 { format!(" in {} parts", report.shards) } else { String::new() };
    writeln!(out, "file          {} ({}{parts})", report.file, numbers::bytes(report.file_bytes))?;
    if let Some(name) = &report.name {
        writeln!(out, "name          {name}")?;
    }
    writeln!(out, "architecture  {}", report.architecture.as_deref().unwrap_or("unknown"))?;
    let count = numbers::count(report.parameters);
    let bits = report.formats.values().map(|row| row.bytes).sum::<u64>() as f64 * 8.0 / report.parameters.max(1) as f64;
    writeln!(out, "parameters    {count}, {bits:.2} bits each")?;
    for (format, row) in &report.formats {
        let (size, count) = (numbers::bytes(row.bytes), numbers::count(row.parameters));
        writeln!(out, "  {format:<10}  {:>4} tensors, {count}, {size}", row.tensors)?;
    }
    if let Some(model) = &report.model {
        writeln!(out, "layers        {}, in {} steps", model.layers, model.steps)?;
        writeln!(out, "vocabulary    {}", model.vocabulary)?;
        writeln!(out, "context       {} tokens", model.context)?;
        writeln!(out, "decode reads  {} of weights a token", numbers::bytes(model.weight_bytes_per_token as u64))?;
        writeln!(
            out,
            "cache         {} a token in {}, {} for the whole context",
            numbers::bytes(model.cache_bytes_per_token as u64),
            model.cache_format,
            numbers::bytes((model.cache_bytes_per_token * model.context as f64) as u64)
        )?;
    }
    if let Some(reason) = &report.not_runnable {
        writeln!(out, "rynd can not run it: {reason}")?;
    }
    let plain = report.tensors.is_none() && report.plan.is_none();
    if plain {
        writeln!(out, "\nmetadata")?;
        for (key, value) in &report.metadata {
            writeln!(out, "  {key} = {}", metadata_text(value))?;
        }
    }
    if let Some(tensors) = &report.tensors {
        writeln!(out)?;
        let width = tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
        for tensor in tensors {
            let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
            let (shape, size) = (shape.join(" x "), numbers::bytes(tensor.bytes));
            writeln!(out, "{:<width$}  {:<8} {shape:>22}  {size:>8}", tensor.name, tensor.format)?;
        }
    }
    if let Some(plan) = &report.plan {
        writeln!(out)?;
        steps::print(out, plan)?;
    }
    Ok(())
}

/// A metadata value on one line, cut where it is long.
fn metadata_text(value: &Json) -> String {
    match value {
        Json::String(text) if text.chars().count() > SHOWN_CHARS => {
            let start: String = text.chars().take(SHOWN_CHARS).collect();
            format!("{} ... ({} characters)", Json::String(start), text.chars().count())
        }
        Json::Object(array) => {
            let first = array.get("first").map(Json::to_string).unwrap_or_default();
            let items = array.get("items").and_then(Json::as_u64).unwrap_or(0);
            format!("{}, ... ({items} items)", first.trim_end_matches(']'))
        }
        other => other.to_string(),
    }
}
