//! `rynd plan --what-if`: the same model in other quantisations, by the recipes that `rynd quantize` follows.
//!
//! Sizes are those of files made from a full-precision original. A file type that needs an importance matrix is shown as
//! made with one.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use super::numbers;
use crate::experts::cost::{self, Context};
use crate::experts::rig::Rig;
use crate::experts::shape::{Shape, Tensor};
use crate::gguf::Outline;
use crate::quantize::recipe::ModelFacts;
use crate::quantize::{FileType, Recipe};

/// File types of the table, from good to small.
const TYPES: [&str; 12] =
    ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XS", "IQ2_XXS"];

/// One quantisation.
#[derive(Debug, Serialize)]
pub struct Row {
    pub file_type: &'static str,
    pub tensor_bytes: u64,
    pub expert_bytes: u64,
    pub bytes_per_token: u64,
    pub fits: bool,
    /// Stays on disk.
    pub disk_bytes: u64,
    /// Text that wanders, text that stays, at an empty context.
    pub tokens_per_second: [f64; 2],
}

/// The table for a machine and a context.
pub fn rows(outline: &Outline, shape: &Shape, rig: &Rig, context: Context) -> Result<Vec<Row>> {
    let number = |key: &str| {
        let value = outline.get(&format!("{}.{key}", shape.architecture)).and_then(crate::gguf::Value::as_u64);
        value.unwrap_or(0) as usize
    };
    let heads = [number("attention.head_count"), number("attention.head_count_kv")];
    let names = shape.tensors.iter().map(|tensor| tensor.name.as_str());
    let facts = ModelFacts::new(&shape.architecture, shape.layers.len(), number("expert_count"), heads, names);
    let mut rows = vec![];
    for name in TYPES {
        let Some(file_type) = FileType::from_name(name) else { continue };
        let recipe = Recipe { weighted: file_type.needs_importance(file_type.base), ..Recipe::new(file_type) };
        let tensor = |t: &Tensor| Tensor { format: recipe.choose(&facts, &t.name, &t.shape, t.format), ..t.clone() };
        let other = Shape::with_tensors(outline, shape.tensors.iter().map(tensor).collect())?;
        let placed = cost::place(&other, rig, context);
        let speed = |exponent| {
            let hits = cost::hits(&other, &placed, exponent);
            cost::decode(&other, rig, &placed, context, 0, hits).tokens_per_second
        };
        rows.push(Row {
            file_type: file_type.name,
            tensor_bytes: other.tensor_bytes,
            expert_bytes: other.experts().map_or(0, |(.., bytes)| bytes),
            bytes_per_token: other.dense_bytes() + other.expert_bytes_per_token(),
            fits: placed.fits(),
            disk_bytes: placed.disk.bytes(),
            tokens_per_second: [cost::WANDERS, cost::STAYS].map(speed),
        });
    }
    Ok(rows)
}

/// The table as text.
pub fn print(out: &mut impl Write, rows: &[Row]) -> Result<()> {
    writeln!(out, "{:<10} {:>9} {:>9} {:>10} {:>10}   fits", "what if", "size", "an expert", "a token", "tok/s")?;
    for row in rows {
        let [wanders, stays] = row.tokens_per_second;
        let figure = |speed: f64| if speed < 10.0 { format!("{speed:.1}") } else { format!("{speed:.0}") };
        let speed = match (figure(wanders), figure(stays)) {
            (low, high) if low == high => low,
            (low, high) => format!("{low}-{high}"),
        };
        let fits = if row.fits { "yes".to_owned() } else { format!("{} on disk", numbers::bytes(row.disk_bytes)) };
        let expert = if row.expert_bytes == 0 { "-".to_owned() } else { numbers::bytes(row.expert_bytes) };
        let (size, token) = (numbers::bytes(row.tensor_bytes), numbers::bytes(row.bytes_per_token));
        writeln!(out, "{:<10} {size:>9} {expert:>9} {token:>10} {speed:>10}   {fits}", row.file_type)?;
    }
    Ok(())
}
