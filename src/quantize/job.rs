//! What a quantisation will do: each tensor's format and size, the metadata, the shards. A dry run ends here.
//!
//! Everything that can be refused without reading a weight is refused here, before an output exists.

use std::path::{Path, PathBuf};

use rynd_quant::Format;

use super::QuantizeError;
use super::imatrix::Imatrix;
use super::recipe::Recipe;
use super::source::{Source, SourceTensor};
use crate::files;
use crate::gguf::{Value, shard_path};

/// `general.quantization_version` of the block formats as they are now.
const QUANTIZATION_VERSION: u32 = 2;
/// Longest provenance string that llama.cpp writes.
const PROVENANCE_BYTES: usize = 127;

/// How to quantise.
#[derive(Debug)]
pub struct Options {
    pub recipe: Recipe,
    /// The matrix and the name of its file.
    pub imatrix: Option<(Imatrix, PathBuf)>,
    pub allow_requantize: bool,
    /// Bytes of tensors in one file of the output, at most, where a single tensor allows.
    pub split_bytes: Option<u64>,
}

/// A tensor of the output.
#[derive(Debug)]
pub struct Target {
    pub format: Format,
    pub bytes: u64,
    /// Importance by matrix and column: (matrices, row). `None` weighs all columns alike.
    pub importance: Option<Vec<f32>>,
}

/// A quantisation that is ready to run.
#[derive(Debug)]
pub struct Job {
    pub source: Source,
    pub targets: Vec<Target>, // one a tensor of the source, in its order
    pub metadata: Vec<(String, Value)>,
    /// First tensor of each shard, and the end of the last.
    pub shards: Vec<usize>,
    allow_requantize: bool,
    needs_importance: Vec<bool>,
}

impl Job {
    /// Plans the quantisation of this model.
    pub fn new(source: Source, options: &Options) -> Result<Job, QuantizeError> {
        let recipe = &options.recipe;
        let facts = source.facts();
        if let Some((imatrix, path)) = &options.imatrix {
            check_fit(&source, imatrix, path)?;
        }
        let mut targets = vec![];
        let mut needs_importance = vec![];
        for tensor in &source.tensors {
            let format = recipe.choose(&facts, &tensor.name, &tensor.shape, tensor.stays);
            let bytes = tensor.bytes_as(format).ok_or_else(|| QuantizeError::RowLength {
                tensor: tensor.name.clone(),
                row: tensor.row(),
                format,
            })?;
            let changes = format.is_quantized() && format != tensor.format;
            // Only an embedding that also serves as the output may have importance of another length: none of its own.
            let columns = (tensor.row() * tensor.matrices()) as usize;
            let importance = options.imatrix.as_ref().filter(|_| changes).and_then(|(m, _)| m.importance(&tensor.name));
            let importance = importance.filter(|all| all.len() == columns);
            let exempt = ["token_embd.weight", "per_layer_token_embd.weight", "output.weight"].contains(&&*tensor.name);
            needs_importance
                .push(changes && !exempt && importance.is_none() && recipe.file_type.needs_importance(format));
            targets.push(Target { format, bytes, importance });
        }
        Ok(Job {
            metadata: metadata(&source, options),
            shards: shards(&targets, options.split_bytes),
            source,
            targets,
            allow_requantize: options.allow_requantize,
            needs_importance,
        })
    }

    /// The first reason why the job can not run, if there is one. A dry run may tell it and show the sizes all the same.
    pub fn refusal(&self) -> Option<QuantizeError> {
        for ((tensor, target), &needs_importance) in self.tensors().zip(&self.needs_importance) {
            let (name, format) = (tensor.name.clone(), target.format);
            if tensor.format == format {
                continue;
            }
            if !format.has_encoder() {
                return Some(QuantizeError::NoEncoder { tensor: name, format });
            }
            if tensor.format.is_quantized() && !self.allow_requantize {
                return Some(QuantizeError::Requantize { tensor: name, format: tensor.format });
            }
            if needs_importance {
                return Some(QuantizeError::NeedsImportance { tensor: name, format });
            }
        }
        None
    }

    /// Tensors and what becomes of them, in the order of the output.
    pub fn tensors(&self) -> impl Iterator<Item = (&SourceTensor, &Target)> {
        self.source.tensors.iter().zip(&self.targets)
    }

    /// Bytes of the output's tensors.
    pub fn bytes(&self) -> u64 {
        self.targets.iter().map(|target| target.bytes).sum()
    }

    /// Weights in the model.
    pub fn weights(&self) -> u64 {
        self.source.tensors.iter().map(|tensor| tensor.row() * tensor.rows()).sum()
    }

    /// The paths of the output's files.
    pub fn paths(&self, out: &Path) -> Vec<PathBuf> {
        match self.shards.len() - 1 {
            1 => vec![out.to_owned()],
            count => (1..=count as u32).map(|no| shard_path(out, no, count as u32)).collect(),
        }
    }

    /// Refuses an output that is one of the input's files.
    pub fn check_paths(&self, out: &Path) -> Result<(), QuantizeError> {
        let real = |path: &PathBuf| path.canonicalize().ok();
        let inputs: Vec<PathBuf> = self.source.files.iter().filter_map(real).collect();
        match self.paths(out).into_iter().find(|path| real(path).is_some_and(|path| inputs.contains(&path))) {
            Some(path) => Err(QuantizeError::SameFile { path }),
            None => Ok(()),
        }
    }
}

/// Refuses an output that the disk has no room for: hours of work would be lost at its end.
pub fn check_room(out: &Path, needed: u64) -> Result<(), QuantizeError> {
    // Where nobody knows, or the bytes go to no disk, the work itself will tell.
    let Ok(Some(folder)) = files::folder_for(out) else { return Ok(()) };
    match fs4::available_space(&folder) {
        Ok(free) if free < needed => Err(QuantizeError::NoRoom { path: out.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// Refuses a matrix of another model.
fn check_fit(source: &Source, imatrix: &Imatrix, path: &Path) -> Result<(), QuantizeError> {
    let misfit = |problem| QuantizeError::Imatrix { path: path.to_owned(), problem };
    let mut found = false;
    for tensor in &source.tensors {
        let Some(entry) = imatrix.entries.get(&tensor.name) else { continue };
        found = true;
        let [row, matrices] = [tensor.row() as usize, tensor.matrices() as usize];
        if entry.sums.len() != row * matrices && tensor.name != "token_embd.weight" {
            return Err(misfit(format!(
                "the importance matrix holds {} columns for '{}', which has {matrices} x {row} in {}; make one for this \
                 model with 'rynd imatrix'",
                entry.sums.len(),
                tensor.name,
                source.path.display(),
            )));
        }
    }
    if found {
        return Ok(());
    }
    let example = imatrix.entries.keys().next().map_or(String::new(), |name| format!(" (it has '{name}')"));
    Err(misfit(format!(
        "the importance matrix has nothing for any tensor of {}{example}; make one for this model with 'rynd imatrix'",
        source.path.display(),
    )))
}

/// The input's metadata, with what a quantised file says of itself.
fn metadata(source: &Source, options: &Options) -> Vec<(String, Value)> {
    let mut metadata: Vec<(String, Value)> =
        source.metadata.iter().filter(|(key, _)| !key.starts_with("split.")).cloned().collect();
    let mut set = |key: &str, value: Value| match metadata.iter_mut().find(|(k, _)| k == key) {
        Some((_, old)) => *old = value,
        None => metadata.push((key.to_owned(), value)),
    };
    set("general.quantization_version", QUANTIZATION_VERSION.into());
    set("general.file_type", options.recipe.file_type.id.into());
    if let Some((imatrix, path)) = &options.imatrix {
        set("quantize.imatrix.file", clipped(&path.to_string_lossy()).into());
        if let Some(dataset) = imatrix.datasets.first() {
            set("quantize.imatrix.dataset", clipped(dataset).into());
        }
        set("quantize.imatrix.entries_count", (imatrix.entries.len() as u32).into());
        if imatrix.chunks > 0 {
            set("quantize.imatrix.chunks_count", imatrix.chunks.into());
        }
    }
    metadata
}

fn clipped(text: &str) -> &str {
    let mut end = text.len().min(PROVENANCE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Cuts before each tensor that would make a shard too large.
fn shards(targets: &[Target], limit: Option<u64>) -> Vec<usize> {
    let mut shards = vec![0];
    let mut bytes = 0;
    for (i, target) in targets.iter().enumerate() {
        if limit.is_some_and(|limit| bytes > 0 && bytes + target.bytes > limit) {
            shards.push(i);
            bytes = 0;
        }
        bytes += target.bytes;
    }
    shards.push(targets.len());
    shards
}
