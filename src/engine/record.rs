//! Writes what the routers pick to a trace file, run by run.
//!
//! The file gets its name when recording ends, and none when a write failed. Every token is written with the phase that its
//! sequence has; a run of prompts alone after generated tokens begins a turn.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use half::f16;
use sha2::{Digest, Sha256};

use super::EngineError;
use crate::backend::{self, Env, PickLog};
use crate::experts::{Header, LayerInfo, Phase, TokenInfo, write_token};
use crate::files::Unfinished;
use crate::gguf::Gguf;
use crate::models::{self, RopeOverride};
use crate::plan::Plan;

/// Bytes of each router that go into the model's key.
const KEY_BYTES: usize = 4096;

/// The output in the making.
pub(super) struct Recorder {
    path: PathBuf,
    out: Option<Output>, // taken when it is complete, or when a write failed
    log: Arc<PickLog>,
    turn: u32,
    generated: bool,
    ids: Vec<u16>,
    weights: Vec<f16>,
}

enum Output {
    Plain(Unfinished),
    Gzip(Box<GzEncoder<Unfinished>>),
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Plain(out) => out.write(bytes),
            Output::Gzip(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Plain(out) => out.flush(),
            Output::Gzip(out) => out.flush(),
        }
    }
}

impl Recorder {
    /// Starts the file; what ends in `.gz` is compressed.
    pub(super) fn create(path: &Path, gguf: &Gguf, plan: &Plan, log: Arc<PickLog>) -> Result<Recorder, EngineError> {
        let Some(header) = expert_header(gguf, plan) else {
            return Err(EngineError::NothingToTrace { file: gguf.path().to_owned() });
        };
        let failed = |cause| EngineError::Trace { path: path.to_owned(), cause };
        let file = Unfinished::create(path).map_err(failed)?;
        let mut out = match path.extension().is_some_and(|e| e == "gz") {
            true => Output::Gzip(Box::new(GzEncoder::new(file, Compression::default()))),
            false => Output::Plain(file),
        };
        out.write_all(&header.encode()).map_err(failed)?;
        let path = path.to_owned();
        Ok(Recorder { path, out: Some(out), log, turn: 0, generated: false, ids: vec![], weights: vec![] })
    }

    /// Reads another log from now on.
    pub(super) fn follow(&mut self, log: Arc<PickLog>) {
        self.log = log;
    }

    /// Appends the run that has just ended.
    pub(super) fn run(&mut self, env: &Env) -> Result<(), EngineError> {
        let tokens = env.tokens;
        let Recorder { path, out: place, log, ids, weights, turn, generated } = self;
        let Some(out) = place else { return Ok(()) };
        let prompts = env.prompt_tokens();
        // A prompt after answers begins a turn, as long as there is one conversation.
        *turn += u32::from(prompts == tokens.len() && *generated);
        *generated = prompts < tokens.len();
        let written = log.with(|layers| {
            for (t, token) in tokens.iter().enumerate() {
                ids.clear();
                weights.clear();
                for picks in layers {
                    let (chosen, mixed) = picks.of(t, tokens.len());
                    ids.extend(chosen.iter().map(|id| *id as u16));
                    weights.extend(mixed.iter().map(|&weight| f16::from_f32(weight)));
                }
                let phase = match env.phase(t) {
                    backend::Phase::Prompt => Phase::Prefill,
                    backend::Phase::Decode => Phase::Decode,
                    backend::Phase::Draft => Phase::Verify,
                };
                let info = TokenInfo { turn: *turn, phase, index: token.pos, id: token.id };
                write_token(out, &info, ids, weights)?;
            }
            Ok(())
        });
        if written.is_err() {
            // A trace with a hole in it is none: dropped, it is removed.
            *place = None;
        }
        written.map_err(|cause| EngineError::Trace { path: path.clone(), cause })
    }

    /// Gives the file its name.
    pub(super) fn finish(mut self) -> Result<(), EngineError> {
        self.close().map_err(|cause| EngineError::Trace { path: self.path.clone(), cause })
    }

    fn close(&mut self) -> io::Result<()> {
        match self.out.take() {
            None => Ok(()),
            Some(Output::Plain(out)) => out.publish(),
            Some(Output::Gzip(out)) => out.finish()?.publish(),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Nobody is left to tell. After a panic what was recorded may be half a run.
        if !std::thread::panicking() {
            let _ = self.close();
        }
    }
}

/// What a trace of this file would say of it; `None` when it has no experts.
pub fn header_of(gguf: &Gguf) -> Result<Option<Header>, EngineError> {
    Ok(expert_header(gguf, &models::plan(gguf, &RopeOverride::default())?))
}

/// What a trace of this model says of it; `None` when it has no experts.
pub fn expert_header(gguf: &Gguf, plan: &Plan) -> Option<Header> {
    let mut layers = vec![];
    let (mut experts, mut used) = (0, 0);
    for mixture in &plan.mixtures {
        let op = mixture.experts;
        let parts = [op.gate, op.up, op.down].map(|id| plan.weight(id));
        let same_layer = plan.steps.iter().filter(|other| other.layer == mixture.layer);
        let dense = same_layer.filter(|other| !other.op.is_experts());
        (experts, used) = (parts[0].experts, op.used);
        layers.push(LayerInfo {
            layer: mixture.layer.unwrap_or(layers.len() as u32),
            expert_bytes: parts.iter().map(|weight| weight.expert_bytes() as u64).sum(),
            dense_bytes: dense.map(|other| plan.step_bytes(&other.op) as u64).sum(),
            layout: parts.map(|weight| weight.format.name()).join(" "),
        });
    }
    let first = layers.first()?;
    let quantization = first.layout.split(' ').next().unwrap_or_default().to_owned();
    Some(Header {
        model: gguf.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        model_hash: router_key(gguf, plan),
        quantization,
        experts,
        used,
        seed: None,
        layers,
    })
}

/// A key of the model's routers: the same experts in another quantisation have the same key, since routers are not
/// quantised; another model's differ.
pub fn router_key(gguf: &Gguf, plan: &Plan) -> String {
    let mut sum = Sha256::new();
    for mixture in &plan.mixtures {
        let weight = plan.weight(mixture.router.weight);
        let bytes = gguf.bytes(&gguf.tensors()[weight.tensor]);
        sum.update(weight.name.as_bytes());
        sum.update(
            [weight.experts, weight.rows, weight.k]
                .map(|n| n as u64)
                .iter()
                .flat_map(|n| n.to_le_bytes())
                .collect::<Vec<u8>>(),
        );
        sum.update(&bytes[..bytes.len().min(KEY_BYTES)]);
    }
    sum.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
