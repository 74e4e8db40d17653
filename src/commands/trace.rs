//! `rynd inspect --trace-step`: where do two ways of computing part?
//!
//! The model runs step by step twice, as usual and in exact mode, and every slot that a step writes is compared. A wrong
//! kernel shows as a jump at one step; rounding shows as a slow rise.

use std::io::{self, Write};
use std::ops::ControlFlow;

use anyhow::Result;

use super::load::{ComputeFlags, ModelArg};
use crate::engine::{Engine, EngineConfig, GpuOptions};

/// Compares the two ways and prints the first step whose normalised error is above `threshold`; with `verbose`, all.
pub fn compare(
    model: &ModelArg,
    compute: &ComputeFlags,
    ids: &[u32],
    threshold: f64,
    verbose: bool,
    out: &mut impl Write,
) -> Result<()> {
    let n = ids.len().max(1);
    let usual_config = EngineConfig { context: Some(n), batch: n, exact: false, ..compute.config() };
    let exact_config = EngineConfig { exact: true, gpu: GpuOptions::default(), ..usual_config.clone() };
    let mut usual = vec![]; // one entry a written slot: its values (t, width)
    model.load(&usual_config)?.trace(ids, |_, _, values| {
        usual.push(values.to_vec());
        ControlFlow::Continue(())
    })?;
    let mut exact = model.load(&exact_config)?;
    let names: Vec<String> = (0..exact.plan().steps.len()).map(|at| step_name(&exact, at)).collect();
    let picks: Vec<bool> = exact.plan().steps.iter().map(|step| step.op.name() == "router").collect();
    let mut at = 0;
    let mut largest = (0.0, 0);
    let mut parted = false;
    let mut failure: Option<io::Error> = None;
    let mut chosen: Option<[Vec<f32>; 2]> = None; // a router's ids, found and wanted, until their weights are there
    exact.trace(ids, |step, slot, wanted| {
        let found = &usual[at];
        at += 1;
        let (mut found, mut wanted) = (found.clone(), wanted.to_vec());
        if picks[step] {
            let Some([found_ids, wanted_ids]) = chosen.take() else {
                chosen = Some([found, wanted]);
                return ControlFlow::Continue(());
            };
            found = beside(&found_ids, &found, ids.len());
            wanted = beside(&wanted_ids, &wanted, ids.len());
        }
        let (found, wanted) = (&found[..], &wanted[..]);
        let difference = if picks[step] { compare_picks(found, wanted, ids.len()) } else { nmse(found, wanted) };
        if difference > largest.0 {
            largest = (difference, step);
        }
        let parts_here = !parted && difference > threshold;
        parted |= parts_here;
        let mut print = || {
            if verbose || parts_here {
                let mark = if parts_here { "  <- the first above the threshold" } else { "" };
                writeln!(out, "{step:>4}  NMSE {difference:8.2e}  s{:<4} {}{mark}", slot.0, names[step])?;
            }
            if parts_here { describe(out, found, wanted, ids.len(), picks[step]) } else { Ok(()) }
        };
        if let Err(e) = print() {
            failure = Some(e);
        }
        if failure.is_some() || (parted && !verbose) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    if !parted {
        let (difference, step) = largest;
        writeln!(
            out,
            "no step parts from the exact one by more than NMSE {threshold:.0e}; the largest is {difference:.2e}, at \
             step {step}: {}",
            names[step].trim()
        )?;
    }
    Ok(())
}

/// "layer  3  linear      attn_norm, attn_q, attn_k, attn_v".
fn step_name(engine: &Engine, at: usize) -> String {
    let plan = engine.plan();
    let step = &plan.steps[at];
    let layer = step.layer.map_or(String::from("        "), |layer| format!("layer {layer:>2}"));
    let prefix = step.layer.map_or(String::new(), |layer| format!("blk.{layer}."));
    let weights = step.op.weights();
    let weights = weights.iter().filter_map(|&id| {
        let name = plan.weight(id).name.as_str();
        name.strip_prefix(&prefix).unwrap_or(name).strip_suffix(".weight")
    });
    format!("{layer}  {:<10}  {}", step.op.name(), weights.collect::<Vec<_>>().join(", "))
}

/// `sum (a - b)^2 / sum b^2`: the error's share of the signal. Values that are no numbers count as infinitely wrong.
fn nmse(found: &[f32], wanted: &[f32]) -> f64 {
    let pairs = found.iter().zip(wanted);
    let error: f64 = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    let signal: f64 = wanted.iter().map(|&b| f64::from(b).powi(2)).sum();
    match error {
        e if e.is_nan() => f64::INFINITY,
        0.0 => 0.0,
        e => e / signal,
    }
}

/// Of each token its ids and then their weights: (t, 2 * used).
fn beside(ids: &[f32], weights: &[f32], tokens: usize) -> Vec<f32> {
    let used = (ids.len() / tokens.max(1)).max(1);
    ids.chunks(used).zip(weights.chunks(used)).flat_map(|(ids, weights)| [ids, weights].concat()).collect()
}

/// Picks (t, 2 * used): 1 when the ids differ as sets, else the weights' error, in the order of the ids.
fn compare_picks(found: &[f32], wanted: &[f32], tokens: usize) -> f64 {
    let width = wanted.len() / tokens.max(1);
    let rows = found.chunks(width.max(1)).zip(wanted.chunks(width.max(1)));
    rows.map(|(found, wanted)| {
        let (found, wanted) = (sorted_picks(found), sorted_picks(wanted));
        if found.iter().map(|pick| pick.0).ne(wanted.iter().map(|pick| pick.0)) {
            return 1.0;
        }
        let weights = |picks: &[(u32, f32)]| picks.iter().map(|pick| pick.1).collect::<Vec<f32>>();
        nmse(&weights(&found), &weights(&wanted))
    })
    .fold(0.0, f64::max)
}

/// (expert, weight), by rising expert.
fn sorted_picks(row: &[f32]) -> Vec<(u32, f32)> {
    let (ids, weights) = row.split_at(row.len() / 2);
    let mut picks: Vec<(u32, f32)> = ids.iter().map(|id| *id as u32).zip(weights.iter().copied()).collect();
    picks.sort_by_key(|pick| pick.0);
    picks
}

/// Where in the slot the difference is largest.
fn describe(out: &mut impl Write, found: &[f32], wanted: &[f32], tokens: usize, picks: bool) -> io::Result<()> {
    let width = (wanted.len() / tokens.max(1)).max(1);
    if picks {
        for (token, (found, wanted)) in found.chunks(width).zip(wanted.chunks(width)).enumerate() {
            let (found, wanted) = (sorted_picks(found), sorted_picks(wanted));
            writeln!(out, "      token {token}: picks {found:?}, exact {wanted:?}")?;
        }
        return Ok(());
    }
    let differences = found.iter().zip(wanted).map(|(a, b)| (a - b).abs());
    let worst = differences.enumerate().fold((0, -1.0_f32), |worst, (i, d)| {
        if d.is_nan() || d > worst.1 { (i, if d.is_nan() { f32::INFINITY } else { d }) } else { worst }
    });
    let at = worst.0;
    writeln!(
        out,
        "      of ({tokens}, {width}) values the worst is token {}, column {}: {} instead of {}",
        at / width,
        at % width,
        found[at],
        wanted[at]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_a_share_of_the_signal_and_not_a_number_is_infinitely_wrong() {
        assert_eq!(nmse(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert_eq!(nmse(&[0.0, 2.0], &[1.0, 2.0]), 0.2);
        assert_eq!(nmse(&[f32::NAN, 2.0], &[1.0, 2.0]), f64::INFINITY);
    }

    #[test]
    fn picks_are_compared_as_sets() {
        let row = |ids: [f32; 2], weights: [f32; 2]| beside(&ids, &weights, 1);
        let wanted = row([3.0, 1.0], [0.5, 0.5]);
        assert_eq!(compare_picks(&row([1.0, 3.0], [0.5, 0.5]), &wanted, 1), 0.0);
        assert_eq!(compare_picks(&row([1.0, 2.0], [0.5, 0.5]), &wanted, 1), 1.0);
        assert_eq!(beside(&[1.0, 2.0], &[0.25, 0.75], 2), [1.0, 0.25, 2.0, 0.75]);
    }
}
