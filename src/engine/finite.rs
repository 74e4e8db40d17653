//! What a run computes must be numbers: logits that are none end it with an error that names the first step that made them.
//!
//! On the way of every token only the wanted logits are looked at. That is enough, because no kernel swallows a value that
//! is no number (`rynd_quant`'s tests hold them to it): it reaches the logits, of this token or of one that attends to it.
//! The step is then found by running the batch again, step by step. Kernels of a GPU make no such promise.

use super::{Engine, EngineError, split};
use crate::backend::{Backend, Env};
use crate::plan::{Op, SlotKind, WeightId};

/// Values that are looked at together: the loop inside has no branch, so it is a few instructions for many values.
const CHUNK: usize = 1024;

/// Whether a row of logits can not be sampled from. A token that is ruled out (-inf) is none the worse.
pub(super) fn is_broken(logits: &[f32]) -> bool {
    let broken = |chunk: &[f32]| chunk.iter().fold(false, |broken, &x| broken | x.is_nan() | (x == f32::INFINITY));
    logits.chunks(CHUNK).any(broken)
}

impl Engine {
    /// Whether a logit of the run, of which only the largest were read, is no number.
    pub(super) fn has_broken_logits(&mut self, env: &Env) -> Result<bool, EngineError> {
        let mut logits = vec![0.0; env.rows.len() * self.plan.vocab];
        split(&mut self.backend)?.read(self.plan.logits, &mut logits)?;
        Ok(is_broken(&logits))
    }

    /// Why the logits of this run are no numbers.
    pub(super) fn first_broken_step(&mut self, env: &Env) -> EngineError {
        let file = self.gguf.path().to_owned();
        let found = match self.search(env) {
            Ok(found) => found,
            Err(e) => return e,
        };
        let Some((at, value)) = found else {
            return EngineError::NotFinite {
                file,
                what: "the last step gives".into(),
                value: "a value that is no number",
            };
        };
        let step = &self.plan.steps[at];
        let layer = step.layer.map_or(String::new(), |layer| format!(" of layer {layer}"));
        let (name, mut weights) = (step.op.name(), step.op.weights());
        if let Op::Attention(attention) = &step.op {
            // The norms of what lies in the cache.
            let stores = self.plan.steps.iter().filter(|s| matches!(&s.op, Op::RopeStore(op) if op.kv == attention.kv));
            weights.extend(stores.flat_map(|store| store.op.weights()));
        }
        let what = match weights.iter().find_map(|&id| self.broken_weight(id)) {
            Some((tensor, place)) => {
                format!("value {place} of tensor '{tensor}' is no number, so step {at} ({name}{layer}) gives")
            }
            None => format!("step {at} ({name}{layer}) is the first that gives"),
        };
        EngineError::NotFinite { file, what, value }
    }

    /// The first step that writes a value that is not finite, and the value. Nothing is learned from this run.
    fn search(&mut self, env: &Env) -> Result<Option<(usize, &'static str)>, EngineError> {
        let mut values = vec![];
        split(&mut self.backend)?.begin(env)?;
        for at in self.plan.sections.forward() {
            split(&mut self.backend)?.run(at..at + 1, env)?;
            let op = &self.plan.steps[at].op;
            if matches!(op, Op::Move(_)) {
                continue;
            }
            for slot in op.writes() {
                let info = self.plan.slot(slot);
                let rows = if info.taken { env.rows.len() } else { env.tokens.len() };
                if info.kind == SlotKind::U32 || rows * info.width == 0 {
                    continue;
                }
                values.resize(rows * info.width, 0.0);
                split(&mut self.backend)?.read(slot, &mut values)?;
                if let Some(x) = values.iter().find(|x| !x.is_finite()) {
                    return Ok(Some((at, if x.is_nan() { "NaN" } else { "infinity" })));
                }
            }
        }
        Ok(None)
    }

    /// The tensor's name and the place of its first value that is not finite.
    fn broken_weight(&self, id: WeightId) -> Option<(&str, usize)> {
        let weight = self.plan.weight(id);
        let bytes = self.gguf.bytes(&self.gguf.tensors()[weight.tensor]);
        let mut row = vec![0.0; weight.k];
        bytes.chunks_exact(weight.row_bytes().max(1)).enumerate().find_map(|(at, bytes)| {
            weight.format.decode(bytes, &mut row);
            row.iter().position(|x| !x.is_finite()).map(|column| (weight.name.as_str(), at * weight.k + column))
        })
    }
}
