//! The CSV of public routing traces.
//!
//! Lines that begin with `#` are the header: `key=value` pairs of the model, then `layer=N expert_bytes=B` of each layer.
//! The records are `turn,phase,step,layer,slot,expert[,weight]`, phase 0 for the prompt and 1 for generated tokens; the
//! columns are found by their names and others ignored. A generated token that lacks a pick is refused; prompt tokens are
//! often left out of the last layer, since nobody asks for their logits.

use std::collections::HashMap;

use half::f16;

use super::trace::{Header, LayerInfo, NOT_RUN, Phase, TokenInfo, Trace, TraceError};

/// Columns of a record.
struct Columns {
    turn: usize,
    phase: usize,
    step: usize,
    layer: usize,
    slot: usize,
    expert: usize,
    weight: Option<usize>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Trace, TraceError> {
    if !bytes.starts_with(b"# route_trace") {
        return Err(TraceError::NotATrace);
    }
    let header = header(bytes)?;
    let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(bytes);
    let columns = columns(&mut reader)?;
    let by_layer: HashMap<u32, usize> = header.layers.iter().enumerate().map(|(i, l)| (l.layer, i)).collect();
    let (layers, used) = (header.layers.len(), header.used);
    let row = layers * used;
    let mut trace = Trace { header, tokens: vec![], ids: vec![], weights: vec![] };
    let mut places: HashMap<(u32, u32), usize> = HashMap::new();
    let mut record = csv::StringRecord::new();
    loop {
        let line = reader.position().line();
        let bad = |problem: String| TraceError::Line { line, problem };
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => return Err(bad(e.to_string())),
        }
        let line = record.position().map_or(line, csv::Position::line);
        let bad = |problem: String| TraceError::Line { line, problem };
        let number = |at: usize| -> Result<u32, TraceError> {
            let text = record.get(at).unwrap_or_default();
            text.trim().parse().map_err(|_| bad(format!("'{text}' is no whole number")))
        };
        let (turn, step) = (number(columns.turn)?, number(columns.step)?);
        let token = *places.entry((turn, step)).or_insert_with(|| {
            trace.tokens.push(TokenInfo { turn, phase: Phase::Decode, index: step, id: u32::MAX });
            trace.ids.resize(trace.ids.len() + row, NOT_RUN);
            if columns.weight.is_some() {
                trace.weights.resize(trace.weights.len() + row, f16::ZERO);
            }
            trace.tokens.len() - 1
        });
        trace.tokens[token].phase = match number(columns.phase)? {
            0 => Phase::Prefill,
            1 => Phase::Decode,
            2 => Phase::Verify,
            n => return Err(bad(format!("{n} is no phase"))),
        };
        let layer = number(columns.layer)?;
        let layer = *by_layer.get(&layer).ok_or_else(|| bad(format!("layer {layer} is not in the header")))?;
        let slot = number(columns.slot)? as usize;
        if slot >= used {
            return Err(bad(format!("pick {slot}, where the header says {used} are used")));
        }
        let at = token * row + layer * used + slot;
        trace.ids[at] = number(columns.expert)?.try_into().map_err(|_| bad("there is no such expert".into()))?;
        if let Some(weight) = columns.weight {
            let text = record.get(weight).unwrap_or_default();
            let value: f32 = text.trim().parse().map_err(|_| bad(format!("'{text}' is no weight")))?;
            trace.weights[at] = f16::from_f32(value);
        }
    }
    trace.check_ids()?;
    Ok(trace)
}

fn header(bytes: &[u8]) -> Result<Header, TraceError> {
    let bad = |problem: String| TraceError::Header(problem);
    let mut header = Header {
        model: String::new(),
        model_hash: String::new(),
        quantization: String::new(),
        experts: 0,
        used: 0,
        seed: None,
        layers: vec![],
    };
    let comments = bytes.split(|&b| b == b'\n').take_while(|line| line.first() == Some(&b'#'));
    for line in comments {
        let line = String::from_utf8_lossy(line);
        let pairs = line.trim_start_matches('#').split_whitespace().filter_map(|word| word.split_once('='));
        let number = |text: &str| text.parse::<u64>().map_err(|_| bad(format!("'{text}' is no whole number")));
        let mut layer = None;
        for (key, value) in pairs {
            match key {
                "model" => header.model = value.to_owned(),
                "model_hash" => header.model_hash = value.to_owned(),
                "quantization" => header.quantization = value.to_owned(),
                "n_expert" => header.experts = number(value)? as usize,
                "n_expert_used" => header.used = number(value)? as usize,
                "layer" => {
                    let info = LayerInfo {
                        layer: number(value)? as u32,
                        expert_bytes: 0,
                        dense_bytes: 0,
                        layout: String::new(),
                    };
                    layer = Some(info);
                }
                "expert_bytes" | "dense_bytes" => {
                    let info = layer.as_mut().ok_or_else(|| bad(format!("'{key}' names no layer")))?;
                    let field = if key == "expert_bytes" { &mut info.expert_bytes } else { &mut info.dense_bytes };
                    *field = number(value)?;
                }
                _ => {}
            }
        }
        // A layer without experts is none of ours.
        header.layers.extend(layer.filter(|info| info.expert_bytes > 0));
    }
    header.check()?;
    Ok(header)
}

fn columns(reader: &mut csv::Reader<&[u8]>) -> Result<Columns, TraceError> {
    let names = reader.headers().map_err(|e| TraceError::Header(e.to_string()))?.clone();
    let find = |name: &str| names.iter().position(|column| column.trim() == name);
    let need = |name: &str| find(name).ok_or_else(|| TraceError::Header(format!("there is no column '{name}'")));
    Ok(Columns {
        turn: need("turn")?,
        phase: need("phase")?,
        step: need("step")?,
        layer: need("layer")?,
        slot: need("slot")?,
        expert: need("expert")?,
        weight: find("weight"),
    })
}
