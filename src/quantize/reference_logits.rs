//! Logits of a reference run on disk, 16 bits a value: what a quantised model is compared with.
//!
//! The file is the one that llama-perplexity writes with `--kl-divergence-base` and reads with `--kl-divergence`, so
//! either program's runs serve as the other's reference. It holds the text's tokens and, of the second half of each
//! chunk, a row of log-probabilities a token: linear codes between the row's largest and the larger of its smallest
//! and 16 below the largest, which is 9e-8 of a probability. Layout, little-endian: `_logits_`, u32 tokens a chunk, i32
//! vocabulary, i32 chunks, i32 tokens (chunks, context), then the rows: f32 step, f32 least, u16 codes, padded to even.

use std::io::{self, Read, Write};

use rayon::prelude::*;

const MAGIC: &[u8; 8] = b"_logits_";
/// Log-probabilities further below the largest than this are stored as if they were there.
const SPAN: f32 = 16.0;
/// Far above use; a damaged header asks for no more memory than this many tokens and vocabulary entries.
const MAX_TOKENS: u64 = 1 << 28;
const MAX_VOCAB: u32 = 1 << 24;

/// Why a file of logits can not be used.
#[derive(Debug, thiserror::Error)]
pub enum LogitsError {
    #[error("cannot read or write the logits: {0}")]
    Io(#[from] io::Error),
    #[error("this is no file of reference logits; make one with `rynd perplexity MODEL -f TEXT --save-logits FILE`")]
    NotLogits,
    #[error("the logits' header says {0}; the file is damaged: make it again")]
    Header(String),
    #[error("the file ends within chunk {chunk} of {chunks}; it is incomplete: make it again")]
    Truncated { chunk: usize, chunks: usize },
}

/// The text that was evaluated, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluated {
    /// Tokens of a chunk.
    pub context: usize,
    pub vocab: usize,
    pub tokens: Vec<u32>, // (chunks, context)
}

impl Evaluated {
    /// Chunks of the text.
    pub fn chunks(&self) -> usize {
        self.tokens.len() / self.context
    }

    /// The first position of a chunk whose logits count: what is before it only gives context.
    pub fn first(&self) -> usize {
        self.context / 2
    }

    /// Positions of a chunk that are scored, each by how it predicts the next token.
    pub fn rows(&self) -> usize {
        self.context - 1 - self.first()
    }

    /// The token that row `row` of a chunk should predict.
    pub fn target(&self, chunk: usize, row: usize) -> u32 {
        self.tokens[chunk * self.context + self.first() + row + 1]
    }

    fn row_codes(&self) -> usize {
        self.vocab.next_multiple_of(2)
    }
}

/// One position's log-probabilities, coded: `least + step * code`.
#[derive(Clone, Copy, Debug)]
pub struct CodedRow<'a> {
    pub step: f32,
    pub least: f32,
    pub codes: &'a [u16], // (vocab)
}

/// Writes the file as the rows come.
pub struct LogitsWriter<W: Write> {
    out: W,
    what: Evaluated,
    left: usize, // rows
    bytes: Vec<u8>,
}

impl<W: Write> LogitsWriter<W> {
    /// Starts the file.
    pub fn new(mut out: W, what: Evaluated) -> Result<LogitsWriter<W>, LogitsError> {
        out.write_all(MAGIC)?;
        let fields = [what.context as u32, what.vocab as u32, what.chunks() as u32];
        fields.iter().chain(&what.tokens).try_for_each(|n| out.write_all(&n.to_le_bytes()))?;
        Ok(LogitsWriter { out, left: what.chunks() * what.rows(), what, bytes: vec![] })
    }

    /// Adds logits (rows, vocab): those of each chunk begin at `Evaluated::first`.
    pub fn write(&mut self, logits: &[f32]) -> Result<(), LogitsError> {
        let rows = logits.len() / self.what.vocab;
        assert!(logits.len() == rows * self.what.vocab && rows <= self.left, "whole rows, and no more than announced");
        self.left -= rows;
        let row_bytes = 8 + 2 * self.what.row_codes();
        self.bytes.clear();
        self.bytes.resize(rows * row_bytes, 0);
        let rows = logits.par_chunks_exact(self.what.vocab).zip(self.bytes.par_chunks_exact_mut(row_bytes));
        rows.for_each(|(logits, bytes)| code(logits, bytes));
        Ok(self.out.write_all(&self.bytes)?)
    }

    /// Ends the file, of which all rows must be written, and gives the writer back.
    pub fn finish(mut self) -> Result<W, LogitsError> {
        assert_eq!(self.left, 0, "fewer rows than announced");
        self.out.flush()?;
        Ok(self.out)
    }
}

fn code(logits: &[f32], bytes: &mut [u8]) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = logits.iter().copied().fold(f32::INFINITY, f32::min).max(most - SPAN);
    let step = (most - least) / 65535.0;
    let (head, codes) = bytes.split_at_mut(8);
    head[..4].copy_from_slice(&step.to_le_bytes());
    head[4..].copy_from_slice(&(least - log_sum_exp(logits)).to_le_bytes());
    if step > 0.0 {
        for (logit, bytes) in logits.iter().zip(codes.chunks_exact_mut(2)) {
            let code = ((logit - least).max(0.0) / step).round_ties_even() as u16;
            bytes.copy_from_slice(&code.to_le_bytes());
        }
    }
}

/// `ln(sum(exp(logits)))`.
pub(super) fn log_sum_exp(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - most).exp())).sum();
    most + sum.ln() as f32
}

/// Reads the file, chunk by chunk.
pub struct LogitsReader<R: Read> {
    input: R,
    what: Evaluated,
    read: usize, // chunks
    bytes: Vec<u8>,
    codes: Vec<u16>, // (rows, row_codes)
    scales: Vec<[f32; 2]>,
}

impl<R: Read> LogitsReader<R> {
    /// Reads the header.
    pub fn new(mut input: R) -> Result<LogitsReader<R>, LogitsError> {
        let mut magic = [0; 8];
        if input.read_exact(&mut magic).is_err() || &magic != MAGIC {
            return Err(LogitsError::NotLogits);
        }
        let [context, vocab, chunks] = [number(&mut input)?, number(&mut input)?, number(&mut input)?];
        let count = u64::from(context) * u64::from(chunks);
        if context < 4 || vocab == 0 || vocab > MAX_VOCAB || chunks == 0 || count > MAX_TOKENS {
            let problem = format!("{chunks} chunks of {context} tokens and a vocabulary of {vocab}");
            return Err(LogitsError::Header(problem));
        }
        let mut tokens = vec![];
        for _ in 0..count {
            let token = number(&mut input)?;
            if token >= vocab {
                return Err(LogitsError::Header(format!("token {token} of a vocabulary of {vocab}")));
            }
            tokens.push(token);
        }
        let what = Evaluated { context: context as usize, vocab: vocab as usize, tokens };
        Ok(LogitsReader { input, what, read: 0, bytes: vec![], codes: vec![], scales: vec![] })
    }

    /// What was evaluated.
    pub fn evaluated(&self) -> &Evaluated {
        &self.what
    }

    /// Reads the next chunk; `None` after the last.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<CodedRow<'_>>>, LogitsError> {
        if self.read == self.what.chunks() {
            return Ok(None);
        }
        let row_codes = self.what.row_codes();
        let row_bytes = 8 + 2 * row_codes;
        self.bytes.resize(self.what.rows() * row_bytes, 0);
        self.input.read_exact(&mut self.bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => LogitsError::Truncated { chunk: self.read + 1, chunks: self.what.chunks() },
            _ => e.into(),
        })?;
        self.read += 1;
        self.codes.clear();
        self.scales.clear();
        for row in self.bytes.chunks_exact(row_bytes) {
            let float = |at: usize| f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
            self.scales.push([float(0), float(4)]);
            self.codes.extend(row[8..].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])));
        }
        let rows = self.codes.chunks_exact(row_codes).zip(&self.scales);
        let vocab = self.what.vocab;
        Ok(Some(rows.map(|(codes, &[step, least])| CodedRow { step, least, codes: &codes[..vocab] }).collect()))
    }
}

fn number(input: &mut impl Read) -> Result<u32, LogitsError> {
    let mut bytes = [0; 4];
    match input.read_exact(&mut bytes) {
        Ok(()) => Ok(u32::from_le_bytes(bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Err(LogitsError::Header("more than the file holds".into()))
        }
        Err(e) => Err(e.into()),
    }
}
