//! `rynd logits`: what the model computes, as NumPy arrays: for comparing with other implementations.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::input::{self, TextFlags};
use super::load::{self, EngineFlags, ModelArg};
use super::npy::NpyWriter;
use crate::engine::{Engine, Session, Wanted};
use crate::tokenizer::Encode;

/// Write the logits of a prompt as a NumPy array
///
/// The array is float32 (positions, vocabulary): the last position's, or all with --all. Texts are tokenized as
/// 'rynd run --raw' does.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd logits model.gguf --ids 1,2,3 --all --exact -o logits.npy
  rynd logits model.gguf -p 'def fib(n):' -o - | python3 -c 'import numpy,sys; ...'
  rynd logits model.gguf --ids 1,2,3 --exact --hidden hidden.npy")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    text: TextFlags,
    /// Token ids instead of a text
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file"])]
    ids: Option<String>,
    /// Every position, not only the last
    #[arg(long)]
    all: bool,
    /// Where the logits go ('-' is standard output)
    #[arg(short, long, value_name = "FILE.npy", required_unless_present = "hidden")]
    output: Option<PathBuf>,
    /// Also write the residual stream, (layers + 1, positions, width): the embeddings, then after each layer
    #[arg(long, value_name = "FILE.npy")]
    hidden: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let gguf = arguments.model.open()?;
    let ids = match &arguments.ids {
        Some(ids) => input::ids(ids)?,
        None => {
            let how = Encode { add_special: true, parse_special: true };
            load::tokenizer(&gguf)?.encode(&arguments.text.read_prompt()?, how)
        }
    };
    let mut config = arguments.engine.config();
    if arguments.hidden.is_some() {
        // A trace is one batch.
        config.batch = config.batch.max(ids.len());
    }
    let mut engine = load::start(gguf, &config)?;
    if let Some(path) = &arguments.hidden {
        write_hidden(&mut engine, &ids, path)?;
    }
    if let Some(path) = &arguments.output {
        write_logits(&mut engine, &ids, arguments.all, path)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_logits(engine: &mut Engine, ids: &[u32], all: bool, path: &Path) -> Result<()> {
    let vocab = engine.plan().vocab;
    let positions = if all { ids.len() } else { 1 };
    let wanted = if all { Wanted::All } else { Wanted::Last };
    let mut npy: Option<NpyWriter<Box<dyn Write>>> = None;
    let mut failure = None;
    // The file is made when the first logits are there: a prompt that can not be run leaves nothing behind.
    let mut write = |logits: &[f32]| -> Result<()> {
        let npy = match &mut npy {
            Some(npy) => npy,
            None => npy.insert(create(path, &[positions, vocab])?),
        };
        npy.write(logits).with_context(|| format!("can not write {}", path.display()))
    };
    let result = Session::new().extend(engine, ids, wanted, |_, logits| match write(logits) {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            failure = Some(e);
            ControlFlow::Break(())
        }
    });
    match failure {
        Some(failure) => return Err(failure),
        None => result?,
    }
    npy.map_or(Ok(()), NpyWriter::finish).with_context(|| format!("can not write {}", path.display()))
}

/// The residual stream before the first layer and after each: (layers + 1, positions, width).
fn write_hidden(engine: &mut Engine, ids: &[u32], path: &Path) -> Result<()> {
    let plan = engine.plan();
    let (hidden, layers) = (plan.hidden, plan.layers);
    let width = plan.slot(hidden).width;
    let layer_of: Vec<Option<u32>> = plan.steps.iter().map(|step| step.layer).collect();
    let mut states: Vec<Vec<f32>> = vec![vec![]; layers + 1];
    let mut last = 0;
    engine.trace(ids, |step, slot, values| {
        if slot == hidden {
            // The last write of a layer wins; what comes behind the last layer is not a layer's output.
            match layer_of[step] {
                Some(layer) => last = layer as usize + 1,
                None if last > 0 => return ControlFlow::Break(()),
                None => {}
            }
            states[last].clear();
            states[last].extend_from_slice(values);
        }
        ControlFlow::Continue(())
    })?;
    let mut npy = create(path, &[layers + 1, ids.len(), width])?;
    let context = || format!("can not write {}", path.display());
    states.iter().try_for_each(|state| npy.write(state)).with_context(context)?;
    npy.finish().with_context(context)
}

fn create(path: &Path, shape: &[usize]) -> Result<NpyWriter<Box<dyn Write>>> {
    let out: Box<dyn Write> = if path == Path::new("-") {
        Box::new(BufWriter::new(io::stdout().lock()))
    } else {
        let file = File::create(path).with_context(|| format!("can not create {}", path.display()))?;
        Box::new(BufWriter::new(file))
    };
    NpyWriter::new(out, shape).with_context(|| format!("can not write {}", path.display()))
}
