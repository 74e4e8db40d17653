//! Traces: the sequence of router picks of a run, with what is needed to judge a policy on it.
//!
//! Our own format is one line `rynd-trace 1`, one line of JSON (`Header`), then a record a token: phase u8, turn u32, index
//! u32, id u32, and per mixture layer and pick the expert u16 and its weight f16, all little-endian: ids of all layers
//! first, then weights. The CSV of public traces opens too (`csv`). Either may be gzipped. What is cut off in the middle of
//! a record, or names an expert that the header rules out, is refused.

use std::io::{self, Read, Write};

use half::f16;
use serde::{Deserialize, Serialize};

use super::Grid;
use super::mix::{mix, permutation};

pub(super) const MAGIC: &[u8] = b"rynd-trace 1\n";
const TOKEN_BYTES: usize = 13;
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Stands for the picks of a layer that a prompt token was not run through.
pub(super) const NOT_RUN: u16 = u16::MAX;

/// Why a trace can not be read. The caller names the file.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("this is no trace: it begins neither with 'rynd-trace 1' nor with the header of a trace in CSV")]
    NotATrace,
    #[error("the header is damaged: {0}; record the trace again")]
    Header(String),
    #[error("line {line}: {problem}; the trace is damaged or was cut off")]
    Line { line: u64, problem: String },
    #[error("the trace is cut off at byte {at}, in the middle of a token; record it again")]
    CutOff { at: usize },
    #[error("token {token}, layer {layer}: expert {expert} of {experts}; the trace is damaged")]
    NoSuchExpert { token: usize, layer: usize, expert: u16, experts: usize },
    #[error("token {token} lacks picks in layer {layer}; the trace is damaged or was cut off")]
    Missing { token: usize, layer: usize },
    #[error("it holds no tokens")]
    Empty,
    #[error("it can not be unpacked: {0}")]
    Gzip(#[from] io::Error),
    #[error("the traces are of different models: {0}")]
    Differs(String),
}

/// What a token was read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Part of a prompt.
    Prefill,
    /// Generated one at a time.
    Decode,
    /// A draft being checked.
    Verify,
}

/// One mixture layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Its number in the model, dense layers counted.
    pub layer: u32,
    /// Bytes of one expert.
    pub expert_bytes: u64,
    /// Bytes of everything else that a token reads in the layer; 0 when it is not known.
    #[serde(default)]
    pub dense_bytes: u64,
    /// Formats of gate, up and down; empty when they are not known.
    #[serde(default)]
    pub layout: String,
}

/// What a trace is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub model: String,
    /// Of the model file; empty when it is not known.
    #[serde(default)]
    pub model_hash: String,
    #[serde(default)]
    pub quantization: String,
    pub experts: usize,
    pub used: usize,
    /// Seed of the sampler, when there was one.
    #[serde(default)]
    pub seed: Option<u64>,
    pub layers: Vec<LayerInfo>,
}

impl Header {
    /// The layers as a pager sees them.
    pub fn grid(&self) -> Grid {
        let layers = self.layers.iter().map(|layer| (layer.layout.clone(), layer.expert_bytes));
        Grid::new(self.experts, self.used, layers)
    }

    /// How a file begins.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        // A header of strings and numbers has no case in which this fails.
        bytes.extend(serde_json::to_vec(self).unwrap_or_default());
        bytes.push(b'\n');
        bytes
    }

    fn row(&self) -> usize {
        self.layers.len() * self.used
    }
}

/// One token of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    pub turn: u32,
    pub phase: Phase,
    /// Position in the timeline.
    pub index: u32,
    /// Its id in the vocabulary; `u32::MAX` when it is not known.
    pub id: u32,
}

/// A trace in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    pub header: Header,
    pub tokens: Vec<TokenInfo>,
    pub ids: Vec<u16>,     // (tokens, layers, used)
    pub weights: Vec<f16>, // (tokens, layers, used); empty when they are not known
}

/// Appends one token's record; ids and weights: (layers, used).
pub fn write_token(out: &mut impl Write, token: &TokenInfo, ids: &[u16], weights: &[f16]) -> io::Result<()> {
    let phase = match token.phase {
        Phase::Prefill => 0,
        Phase::Decode => 1,
        Phase::Verify => 2,
    };
    out.write_all(&[phase])?;
    for value in [token.turn, token.index, token.id] {
        out.write_all(&value.to_le_bytes())?;
    }
    for id in ids {
        out.write_all(&id.to_le_bytes())?;
    }
    for weight in weights {
        out.write_all(&weight.to_le_bytes())?;
    }
    Ok(())
}

impl Trace {
    /// Reads a whole file of any known format.
    pub fn parse(bytes: &[u8]) -> Result<Trace, TraceError> {
        let mut unpacked = vec![];
        let bytes = if bytes.starts_with(&GZIP) {
            flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut unpacked)?;
            &unpacked
        } else {
            bytes
        };
        let trace = if let Some(rest) = bytes.strip_prefix(MAGIC) {
            Trace::parse_own(bytes.len() - rest.len(), rest)?
        } else {
            super::csv::parse(bytes)?
        };
        if trace.tokens.is_empty() {
            return Err(TraceError::Empty);
        }
        Ok(trace)
    }

    fn parse_own(start: usize, rest: &[u8]) -> Result<Trace, TraceError> {
        let end = rest.iter().position(|&b| b == b'\n').ok_or_else(|| TraceError::Header("it does not end".into()))?;
        let header: Header = serde_json::from_slice(&rest[..end]).map_err(|e| TraceError::Header(e.to_string()))?;
        header.check()?;
        let row = header.row();
        let record = TOKEN_BYTES + 4 * row;
        let body = &rest[end + 1..];
        let mut trace = Trace { header, tokens: vec![], ids: vec![], weights: vec![] };
        for (i, bytes) in body.chunks(record).enumerate() {
            let at = start + end + 1 + i * record;
            if bytes.len() < record {
                return Err(TraceError::CutOff { at: at + bytes.len() });
            }
            let phase = match bytes[0] {
                0 => Phase::Prefill,
                1 => Phase::Decode,
                2 => Phase::Verify,
                _ => return Err(TraceError::Header(format!("byte {at} is no phase"))),
            };
            let word = |n: usize| u32::from_le_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
            let token = TokenInfo { phase, turn: word(1), index: word(5), id: word(9) };
            let half = |n: usize| u16::from_le_bytes([bytes[n], bytes[n + 1]]);
            let ids = (0..row).map(|n| half(TOKEN_BYTES + 2 * n));
            trace.ids.extend(ids);
            trace.weights.extend((0..row).map(|n| f16::from_bits(half(TOKEN_BYTES + 2 * (row + n)))));
            trace.tokens.push(token);
        }
        trace.check_ids()?;
        Ok(trace)
    }

    pub(super) fn check_ids(&self) -> Result<(), TraceError> {
        let (experts, used, layers) = (self.header.experts, self.header.used, self.header.layers.len());
        for (row, ids) in self.ids.chunks_exact(used).enumerate() {
            let (token, layer) = (row / layers, row % layers);
            let not_run = ids.iter().filter(|&&id| id == NOT_RUN).count();
            if not_run == used && self.tokens[token].phase == Phase::Prefill {
                continue;
            }
            if not_run > 0 {
                return Err(TraceError::Missing { token, layer });
            }
            if let Some(&expert) = ids.iter().find(|&&id| usize::from(id) >= experts) {
                return Err(TraceError::NoSuchExpert { token, layer, expert, experts });
            }
        }
        Ok(())
    }

    /// A whole file in our own format.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.header.encode();
        let row = self.header.row();
        let unknown = vec![f16::ZERO; row];
        for (i, token) in self.tokens.iter().enumerate() {
            let weights = if self.weights.is_empty() { &unknown } else { &self.weights[i * row..(i + 1) * row] };
            // A Vec takes everything.
            let _ = write_token(&mut bytes, token, &self.ids[i * row..(i + 1) * row], weights);
        }
        bytes
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// A token's picks in a mixture layer: (used); empty where a program left a prompt token out of the last layer,
    /// since nobody asks for its logits.
    pub fn picks(&self, token: usize, layer: usize) -> &[u16] {
        let used = self.header.used;
        let at = (token * self.header.layers.len() + layer) * used;
        let ids = &self.ids[at..at + used];
        if ids[0] == NOT_RUN { &[] } else { ids }
    }

    /// A trace of a text that was only read is replayed as if it had been generated: the picks are the same.
    pub fn as_decode(mut self) -> Trace {
        if self.tokens.iter().all(|token| token.phase == Phase::Prefill) {
            self.tokens.iter_mut().for_each(|token| token.phase = Phase::Decode);
        }
        self
    }

    /// One trace after the other, each as a turn of its own.
    pub fn join(traces: &[Trace]) -> Result<Trace, TraceError> {
        let (first, rest) = traces.split_first().ok_or(TraceError::Empty)?;
        let mut all = first.clone();
        for next in rest {
            let (a, b) = (&all.header, &next.header);
            if (a.experts, a.used, a.layers.len()) != (b.experts, b.used, b.layers.len()) {
                return Err(TraceError::Differs(format!(
                    "'{}' has {} layers of {} experts, {} used, '{}' {} of {}, {} used",
                    a.model,
                    a.layers.len(),
                    a.experts,
                    a.used,
                    b.model,
                    b.layers.len(),
                    b.experts,
                    b.used
                )));
            }
            if all.weights.is_empty() != next.weights.is_empty() {
                all.weights.clear();
            } else {
                all.weights.extend_from_slice(&next.weights);
            }
            let turn = all.tokens.last().map_or(0, |token| token.turn + 1);
            all.ids.extend_from_slice(&next.ids);
            all.tokens.extend(next.tokens.iter().map(|token| TokenInfo { turn: turn + token.turn, ..*token }));
        }
        Ok(all)
    }

    /// The control that keeps how popular experts are and removes their order: decoded tokens at random places.
    pub fn shuffled(&self, seed: u64) -> Trace {
        let mut trace = self.clone();
        let decode: Vec<usize> = (0..self.len()).filter(|&t| self.tokens[t].phase != Phase::Prefill).collect();
        let row = self.header.row();
        for (i, from) in permutation(decode.len(), seed).into_iter().enumerate() {
            let (to, from) = (decode[i] * row, decode[from] * row);
            trace.ids[to..to + row].copy_from_slice(&self.ids[from..from + row]);
            if !self.weights.is_empty() {
                trace.weights[to..to + row].copy_from_slice(&self.weights[from..from + row]);
            }
        }
        trace
    }

    /// The control without any structure: every pick at random, all different within a layer and token.
    pub fn uniform(&self, seed: u64) -> Trace {
        let mut trace = self.clone();
        let experts = self.header.experts as u64;
        let run = |ids: &&mut [u16]| ids[0] != NOT_RUN;
        let rows = trace.ids.chunks_exact_mut(self.header.used);
        for (row, ids) in rows.enumerate().filter(|(_, ids)| run(ids)) {
            let mut draw = mix(seed ^ mix(row as u64));
            for i in 0..ids.len() {
                loop {
                    draw = mix(draw);
                    ids[i] = (draw % experts) as u16;
                    if !ids[..i].contains(&ids[i]) {
                        break;
                    }
                }
            }
        }
        trace
    }

    /// The same picks by other experts: in each layer, this part of the experts trade places at random. Joined to the
    /// original it is a change of topic with nothing (1.0) or much (0.3) in common.
    pub fn relabelled(&self, part: f64, seed: u64) -> Trace {
        let mut trace = self.clone();
        let (experts, layers) = (self.header.experts, self.header.layers.len());
        let maps: Vec<Vec<u16>> = (0..layers)
            .map(|layer| {
                let order = permutation(experts, mix(seed ^ layer as u64));
                let moved = &order[..(part.clamp(0.0, 1.0) * experts as f64).round() as usize];
                let mut map: Vec<u16> = (0..experts as u16).collect();
                // Turning the circle of the chosen ones by one place moves each.
                for (i, &from) in moved.iter().enumerate() {
                    map[from] = moved[(i + 1) % moved.len()] as u16;
                }
                map
            })
            .collect();
        let run = |ids: &&mut [u16]| ids[0] != NOT_RUN;
        let rows = trace.ids.chunks_exact_mut(self.header.used);
        for (row, ids) in rows.enumerate().filter(|(_, ids)| run(ids)) {
            ids.iter_mut().for_each(|id| *id = maps[row % layers][usize::from(*id)]);
        }
        trace
    }
}

impl Header {
    pub(super) fn check(&self) -> Result<(), TraceError> {
        let problem = match self {
            h if h.layers.is_empty() => "it names no layers",
            h if h.used == 0 || h.used > h.experts => "the number of experts used is not between 1 and all",
            h if h.experts > usize::from(u16::MAX) => "it has more experts than a trace can name",
            _ => return Ok(()),
        };
        Err(TraceError::Header(problem.to_owned()))
    }
}
