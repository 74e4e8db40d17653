//! The steps of a forward pass as a table: what `rynd inspect --plan` shows.

use std::io::{self, Write};

use serde::Serialize;

use super::numbers;
use crate::engine::{Outline, Side};

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
    /// Weight bytes that one decoded token reads; of a move, the bytes that cross.
    bytes_per_token: usize,
    /// GPU dispatches of one decoded token.
    dispatches: usize,
    /// Of a move: the side it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
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

/// Every step of a placed plan; dispatches are those of a token in a context of so many tokens.
pub fn rows(outline: &Outline, context: usize) -> Vec<StepRow> {
    let plan = &outline.plan;
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
            let from = outline.moved_from(at);
            let crossing: usize = step.op.writes().iter().map(|slot| plan.slot(*slot).width * 4).sum();
            StepRow {
                step: at,
                layer: step.layer,
                op: step.op.name(),
                side: name(step.side),
                reads: slots(step.op.reads()),
                writes: slots(step.op.writes()),
                weights: step.op.weights().iter().map(weight).collect(),
                bytes_per_token: if from.is_some() { crossing } else { plan.step_bytes(&step.op) },
                dispatches: outline.dispatches(at, context),
                from: from.map(name),
            }
        })
        .collect()
}

fn name(side: Side) -> String {
    match side {
        Side::Cpu => "cpu".to_owned(),
        Side::Gpu(gpu) => format!("gpu{gpu}"),
    }
}

/// The table, a line a step and one a weight below it.
pub fn print(out: &mut impl Write, rows: &[StepRow]) -> io::Result<()> {
    writeln!(
        out,
        "step layer side  op          reads -> writes (t tokens, r rows with logits); weights; bytes and dispatches a token"
    )?;
    for row in rows {
        let layer = row.layer.map_or(String::new(), |layer| layer.to_string());
        let size = if row.bytes_per_token > 0 { numbers::bytes(row.bytes_per_token as u64) } else { String::new() };
        let dispatches = if row.dispatches > 0 { row.dispatches.to_string() } else { String::new() };
        let (at, side, op) = (row.step, &row.side, row.op);
        let flow = match &row.from {
            Some(from) => format!("{} from {from} to {side}", slots(&row.reads)),
            None => format!("{} -> {}", slots(&row.reads), slots(&row.writes)),
        };
        let line = format!("{at:>4} {layer:>5} {side:<5} {op:<11} {flow:<56} {size:>9} {dispatches:>3}");
        writeln!(out, "{}", line.trim_end())?;
        for weight in &row.weights {
            let shape: Vec<String> = weight.shape.iter().map(usize::to_string).collect();
            writeln!(out, "{:23}{} {} ({})", "", weight.name, weight.format, shape.join(", "))?;
        }
    }
    let moves = rows.iter().filter(|row| row.from.is_some());
    let (count, crossing): (usize, usize) = moves.fold((0, 0), |(n, b), row| (n + 1, b + row.bytes_per_token));
    let weights: usize = rows.iter().filter(|row| row.from.is_none()).map(|row| row.bytes_per_token).sum();
    writeln!(out, "{} steps read {} of weights a token", rows.len() - count, numbers::bytes(weights as u64))?;
    let mut sides: Vec<&str> = rows.iter().map(|row| row.side.as_str()).collect();
    sides.sort_unstable();
    sides.dedup();
    if sides == ["cpu"] {
        return Ok(());
    }
    for side in sides {
        let here = || rows.iter().filter(|row| row.side == side && row.from.is_none());
        let bytes: usize = here().map(|row| row.bytes_per_token).sum();
        let dispatches: usize = here().map(|row| row.dispatches).sum();
        let dispatches = if side == "cpu" { String::new() } else { format!(" in {dispatches} dispatches") };
        writeln!(out, "{side}: {} steps, {}{dispatches}", here().count(), numbers::bytes(bytes as u64))?;
    }
    writeln!(out, "{count} moves, {} a token", numbers::bytes(crossing as u64))
}

fn slots(slots: &[SlotRow]) -> String {
    let one = |slot: &SlotRow| format!("s{} ({}, {})", slot.slot, slot.rows, slot.width);
    if slots.is_empty() { String::from("ids") } else { slots.iter().map(one).collect::<Vec<_>>().join(", ") }
}
