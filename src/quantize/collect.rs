//! Making an importance matrix: the model reads a text, and the squared inputs of its matrices are summed up.
//!
//! Chunks, the BOS in front of each and what is counted are llama-imatrix's: every token of every chunk, all layers,
//! routers included; the output matrix only on request, since weighting it has not been found to help.

use std::ops::ControlFlow;

use super::imatrix::{Entry, Imatrix};
use crate::engine::{Engine, EngineError, Session, Wanted};
use crate::plan::WeightId;

/// Lets the model read one chunk (ids) on a fresh timeline. `go_on` may stop it between batches.
///
/// Every token's logits are computed, because the last layer skips tokens whose logits nobody wants; `see` gets them,
/// batch by batch, with the number of tokens done.
pub fn read_chunk(
    engine: &mut Engine,
    ids: &[u32],
    see: impl FnMut(usize, &[f32]) -> ControlFlow<()>,
) -> Result<(), EngineError> {
    let mut session = Session::new();
    let result = session.extend(engine, ids, Wanted::All, see);
    session.clear();
    result
}

/// What was summed up so far, `chunks` chunks of `chunk_tokens` tokens. Empty unless the engine observes its inputs.
pub fn collected(engine: &Engine, datasets: Vec<String>, chunks: u32, chunk_tokens: u32, output: bool) -> Imatrix {
    let mut imatrix = Imatrix { datasets, chunks, chunk_tokens, ..Imatrix::default() };
    let Some(sums) = engine.input_sums() else { return imatrix };
    for (id, weight) in engine.plan().weights.iter().enumerate() {
        let wanted = weight.name.starts_with("blk.") || output && weight.name == "output.weight";
        if !wanted {
            continue;
        }
        let seen = sums.of(WeightId(id as u32));
        if !seen.rows.is_empty() {
            let counts = seen.rows.iter().map(|&rows| rows as f32).collect();
            imatrix.entries.insert(weight.name.clone(), Entry { sums: seen.squares, counts });
        }
    }
    imatrix
}
