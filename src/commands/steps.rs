//! The steps of a forward pass as a table: what `rynd inspect --plan` shows.

use std::io::{self, Write};

use serde::Serialize;

use super::numbers;
use crate::engine::Engine;

/// One step.
#[derive(Debug, Serialize)]
pub struct StepRow {
    step: usize,
    layer: Option<u32>,
    op: &'static str,
    side: String,
    reads: Vec<SlotRow>,
    writes: Vec<SlotRow>,
    weights: Vec<WeightRow>,
    /// Weight bytes that one decoded token reads.
    bytes_per_token: usize,
}

#[derive(Debug, Serialize)]
struct SlotRow {
    slot: u32,
    /// "t": the run's tokens; "r": those whose logits are wanted.
    rows: &'static str,
    width: usize,
}

#[derive(Debug, Serialize)]
struct WeightRow {
    name: String,
    format: &'static str,
    /// (experts,) rows, k.
    shape: Vec<usize>,
}

/// Every step of the engine's plan.
pub fn rows(engine: &Engine) -> Vec<StepRow> {
    let plan = engine.plan();
    plan.steps
        .iter()
        .enumerate()
        .map(|(at, step)| {
            let slots = |slots: Vec<_>| {
                let row = |slot| {
                    let info = plan.slot(slot);
                    SlotRow { slot: slot.0, rows: if info.taken { "r" } else { "t" }, width: info.width }
                };
                slots.into_iter().map(row).collect()
            };
            let weight = |&id: &_| {
                let weight = plan.weight(id);
                let experts = (weight.experts > 1).then_some(weight.experts);
                let rows = (weight.rows > 1 || weight.experts > 1).then_some(weight.rows);
                WeightRow {
                    name: weight.name.clone(),
                    format: weight.format.name(),
                    shape: experts.into_iter().chain(rows).chain([weight.k]).collect(),
                }
            };
            StepRow {
                step: at,
                layer: step.layer,
                op: step.op.name(),
                side: format!("{:?}", step.side).to_lowercase(),
                reads: slots(step.op.reads()),
                writes: slots(step.op.writes()),
                weights: step.op.weights().iter().map(weight).collect(),
                bytes_per_token: plan.step_bytes(&step.op),
            }
        })
        .collect()
}

/// The table, a line a step and one a weight below it.
pub fn print(out: &mut impl Write, rows: &[StepRow]) -> io::Result<()> {
    writeln!(
        out,
        "step layer side  op          reads -> writes (t tokens, r rows with logits); weights; bytes a token"
    )?;
    for row in rows {
        let layer = row.layer.map_or(String::new(), |layer| layer.to_string());
        let size = if row.bytes_per_token > 0 { numbers::bytes(row.bytes_per_token as u64) } else { String::new() };
        let (at, side, op) = (row.step, &row.side, row.op);
        let flow = format!("{} -> {}", slots(&row.reads), slots(&row.writes));
        writeln!(out, "{}", format!("{at:>4} {layer:>5} {side:<5} {op:<11} {flow:<56} {size:>9}").trim_end())?;
        for weight in &row.weights {
            let shape: Vec<String> = weight.shape.iter().map(usize::to_string).collect();
            writeln!(out, "{:23}{} {} ({})", "", weight.name, weight.format, shape.join(", "))?;
        }
    }
    let total: usize = rows.iter().map(|row| row.bytes_per_token).sum();
    writeln!(out, "{} steps read {} of weights a token", rows.len(), numbers::bytes(total as u64))
}

fn slots(slots: &[SlotRow]) -> String {
    let one = |slot: &SlotRow| format!("s{} ({}, {})", slot.slot, slot.rows, slot.width);
    if slots.is_empty() { String::from("ids") } else { slots.iter().map(one).collect::<Vec<_>>().join(", ") }
}
