//! `rynd logits`: what the model computes, as NumPy arrays: for comparing with other implementations.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::input::{self, TextFlags};
use super::load::{self, EngineFlags, ModelArg};
use super::npy::NpyWriter;
use crate::engine::{Engine, Session, Wanted};
use crate::files::Unfinished;
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
    let open = |path: &Option<PathBuf>| path.as_deref().map(Out::open).transpose();
    let (hidden, output) = (open(&arguments.hidden)?, open(&arguments.output)?);
    let mut engine = load::start(gguf, &config)?;
    if let Some(out) = hidden {
        write_hidden(&mut engine, &ids, out)?;
    }
    if let Some(out) = output {
        write_logits(&mut engine, &ids, arguments.all, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_logits(engine: &mut Engine, ids: &[u32], all: bool, out: Out) -> Result<()> {
    let vocab = engine.plan().vocab;
    let positions = if all { ids.len() } else { 1 };
    let wanted = if all { Wanted::All } else { Wanted::Last };
    let context = out.context();
    let (mut out, mut npy, mut failure) = (Some(out), None, None);
    // The header waits for the first logits: a prompt that can not be run leaves nothing on standard output either.
    let mut write = |logits: &[f32]| -> io::Result<()> {
        if let Some(out) = out.take() {
            npy = Some(NpyWriter::new(out, &[positions, vocab])?);
        }
        npy.as_mut().map_or(Ok(()), |npy| npy.write(logits))
    };
    let result = Session::new().extend(engine, ids, wanted, |_, logits| match write(logits) {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            failure = Some(e);
            ControlFlow::Break(())
        }
    });
    match failure {
        Some(failure) => return Err(failure).with_context(context),
        None => result?,
    }
    npy.map_or(Ok(()), |npy| npy.finish().and_then(Out::publish)).with_context(context)
}

/// The residual stream before the first layer and after each: (layers + 1, positions, width).
fn write_hidden(engine: &mut Engine, ids: &[u32], out: Out) -> Result<()> {
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
    let context = out.context();
    let mut npy = NpyWriter::new(out, &[layers + 1, ids.len(), width]).with_context(&context)?;
    states.iter().try_for_each(|state| npy.write(state)).with_context(&context)?;
    npy.finish().and_then(Out::publish).with_context(context)
}

/// Where an array goes. A file is tried before the work begins, and gets its name when the array is complete.
enum Out {
    Stdout(BufWriter<StdoutLock<'static>>),
    File(Unfinished),
}

impl Out {
    fn open(path: &Path) -> Result<Out> {
        if path == Path::new("-") {
            return Ok(Out::Stdout(BufWriter::new(io::stdout().lock())));
        }
        let context = || format!("can not create {}; check that the folder exists and is writable", path.display());
        Unfinished::create(path).map(Out::File).with_context(context)
    }

    /// What an error of writing is about.
    fn context(&self) -> impl Fn() -> String + use<> {
        let name = match self {
            Out::Stdout(_) => "standard output".to_owned(),
            Out::File(file) => file.path().display().to_string(),
        };
        move || format!("can not write {name}")
    }

    fn publish(self) -> io::Result<()> {
        match self {
            Out::Stdout(mut out) => out.flush(),
            Out::File(file) => file.publish(),
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Out::Stdout(out) => out.write(bytes),
            Out::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Out::Stdout(out) => out.flush(),
            Out::File(file) => file.flush(),
        }
    }
}
