//! The architectures: one file each, from hyperparameters to a plan.
//!
//! An architecture file reads the metadata it needs, names its tensors and calls the builder once per step, top to
//! bottom. What several share (the attention block of the llama family, reading hyperparameters) is in this folder's
//! `hyper.rs` and `blocks.rs`. Nothing here touches weights or runs anything.

mod blocks;
mod gemma3;
mod hyper;
mod lfm2;
mod llama;
mod qwen;
mod qwen3next;

pub use hyper::{Hyper, RopeOverride};

use crate::gguf::Gguf;
use crate::plan::{Builder, Plan, PlanError};

/// An architecture's name in `general.architecture` and the function that writes its plan.
struct Architecture {
    name: &'static str,
    plan: fn(&mut Builder, &Hyper) -> Result<Outputs, PlanError>,
}

/// The slots that an architecture hands to `Builder::finish`.
struct Outputs {
    hidden: crate::plan::Slot,
    logits: crate::plan::Slot,
}

const ARCHITECTURES: [Architecture; 9] = [
    Architecture { name: "llama", plan: llama::plan },
    Architecture { name: "qwen2", plan: qwen::plan },
    Architecture { name: "qwen3", plan: qwen::plan },
    Architecture { name: "qwen3moe", plan: qwen::plan },
    Architecture { name: "gemma3", plan: gemma3::plan },
    Architecture { name: "lfm2moe", plan: lfm2::plan },
    Architecture { name: "qwen3next", plan: qwen3next::plan },
    Architecture { name: "qwen35", plan: qwen3next::plan },
    Architecture { name: "qwen35moe", plan: qwen3next::plan },
];

/// Names of the architectures that rynd runs.
pub fn known() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|arch| arch.name)
}

/// Layers behind the last one that guess further tokens (`nextn`): no pass computes them.
pub fn guessing_layers(gguf: &Gguf) -> Result<usize, PlanError> {
    let key = format!("{}.nextn_predict_layers", gguf.str("general.architecture")?);
    Ok(gguf.opt_u32(&key)?.unwrap_or(0) as usize)
}

/// The forward pass of the model in this file. `rope` overrides the file's rope scaling.
pub fn plan(gguf: &Gguf, rope: &RopeOverride) -> Result<Plan, PlanError> {
    let name = gguf.str("general.architecture")?;
    let mut builder = Builder::new(gguf, name);
    let Some(arch) = ARCHITECTURES.iter().find(|arch| arch.name == name) else {
        let known: Vec<&str> = known().collect();
        return Err(
            builder.unsupported(format!("architecture '{name}' is not supported; rynd runs {}", known.join(", ")))
        );
    };
    let hyper = Hyper::read(&builder, rope)?;
    let outputs = (arch.plan)(&mut builder, &hyper)?;
    Ok(builder.finish(outputs.hidden, outputs.logits, hyper.context))
}
