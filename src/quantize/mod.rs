//! GGUF or a checkpoint in, GGUF out, in another precision; and the measures of what that costs.
//!
//! A `Source` is the input as a list of tensors, a `Recipe` chooses each one's format, a `Job` is the two together with
//! everything that can be known or refused before a weight is read, and `stream` does the work in bounded memory. The
//! importance matrix says which columns matter; `divergence` says how far the result's predictions are from those of
//! the original.

pub mod collect;
pub mod divergence;
mod encode;
mod error;
pub mod file_type;
mod hf;
pub mod imatrix;
pub mod job;
pub mod kind;
mod output;
pub mod recipe;
pub mod reference_logits;
pub mod source;
pub mod stream;

use std::ops::ControlFlow;
use std::path::Path;

pub use error::QuantizeError;
pub use file_type::FileType;
pub use imatrix::Imatrix;
pub use job::{Job, Options};
pub use recipe::Recipe;
pub use source::Source;
pub use stream::Progress;

/// Does a job: when it returns, `out` (or its shards) is complete under its name; otherwise nothing is there.
pub fn quantize(
    job: &Job,
    threads: usize,
    out: &Path,
    watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), QuantizeError> {
    job.check_paths(out)?;
    if let Some(refusal) = job.refusal() {
        return Err(refusal);
    }
    job::check_room(out, job.bytes())?;
    let mut output = output::Output::create(job, out)?;
    stream::run(job, threads, &mut output, out, watch)?;
    output.finish()
}
