//! A Hugging Face checkpoint folder as a source: `config.json`, safetensors and a tokenizer become GGUF's names, keys
//! and layout.
//!
//! Names and keys are those that llama.cpp's converter writes, so that files from either are the same model. Nothing
//! is converted ahead: experts are stacked and rotary rows reordered while the tensors stream by. Dense and
//! mixture-of-experts Qwen and Llama-like checkpoints in F32, F16 and BF16 are taken; anything else is refused by name.

mod config;
mod safetensors;
mod sentencepiece;
mod tensors;
mod vocab;

use std::path::Path;

use super::QuantizeError;
use super::source::Source;
use config::Config;

/// Opens a checkpoint folder.
pub fn open(folder: &Path) -> Result<Source, QuantizeError> {
    let config = Config::read(folder)?;
    let stored = safetensors::Checkpoint::open(folder)?;
    let tensors = tensors::convert(folder, &config, &stored)?;
    let mut metadata = config.metadata(folder, &tensors)?;
    metadata.extend(vocab::metadata(folder, &config)?);
    Ok(Source { path: folder.to_owned(), files: stored.files, metadata, tensors })
}

/// An error about a file of the checkpoint.
fn problem(path: &Path, problem: impl Into<String>) -> QuantizeError {
    QuantizeError::Checkpoint { path: path.to_owned(), problem: problem.into() }
}

/// A JSON file of the checkpoint; `None` when it is not there.
fn json(path: &Path) -> Result<Option<serde_json::Value>, QuantizeError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(QuantizeError::Read { path: path.to_owned(), cause }),
    };
    let value = serde_json::from_slice(&text);
    value.map(Some).map_err(|e| problem(path, format!("this is no valid JSON ({e}); download it again")))
}
