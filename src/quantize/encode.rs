//! One slab of rows: decoded, checked and encoded by all threads, a few rows at a time.

use std::ops::Range;

use rayon::prelude::*;
use rynd_quant::EncodeError;

use super::QuantizeError;
use super::job::Target;
use super::source::SourceTensor;

/// Weights of a task: small enough that the decoded rows stay in a core's cache, large enough to be worth handing out.
const TASK_WEIGHTS: u64 = 1 << 15;

/// Rows of a tensor in the input's format.
pub struct Slab<'a> {
    pub source: &'a SourceTensor,
    pub target: &'a Target,
    pub rows: Range<u64>,
    pub bytes: &'a [u8],
}

/// The threads that encode.
pub struct Codec {
    pool: rayon::ThreadPool,
}

impl Codec {
    /// `threads` workers.
    pub fn new(threads: usize) -> Result<Codec, QuantizeError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| QuantizeError::Threads { problem: e.to_string() })?;
        Ok(Codec { pool })
    }

    /// Encodes a slab into `out`, whatever was in it before.
    pub fn encode(&self, slab: &Slab, out: &mut Vec<u8>) -> Result<(), QuantizeError> {
        let (source, target) = (slab.source, slab.target);
        let rows = (slab.rows.end - slab.rows.start) as usize;
        let [from, to] = [slab.bytes.len() / rows, (target.bytes / source.rows()) as usize]; // bytes of a row
        if source.format == target.format && source.format.is_quantized() {
            out.clear();
            out.extend_from_slice(slab.bytes);
            return Ok(());
        }
        out.resize(rows * to, 0);
        let mut tasks = vec![];
        let mut rest = &mut out[..];
        for rows in tasks_of(source, slab.rows.clone()) {
            let n = (rows.end - rows.start) as usize;
            let first = (rows.start - slab.rows.start) as usize;
            let (blocks, tail) = rest.split_at_mut(n * to);
            rest = tail;
            tasks.push((rows, &slab.bytes[first * from..(first + n) * from], blocks));
        }
        self.pool.install(|| {
            tasks
                .into_par_iter()
                .try_for_each_init(Vec::new, |weights, (rows, bytes, blocks)| task(slab, rows, bytes, blocks, weights))
        })
    }
}

/// Cuts rows into tasks that do not cross from one matrix into the next: each has its own importance.
fn tasks_of(source: &SourceTensor, rows: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let step = (TASK_WEIGHTS / source.row()).max(1);
    let matrix = source.matrix_rows();
    let mut start = rows.start;
    std::iter::from_fn(move || {
        let end = (start + step).min(rows.end).min((start / matrix + 1) * matrix);
        let task = start..end;
        start = end;
        (!task.is_empty()).then_some(task)
    })
}

fn task(
    slab: &Slab,
    rows: Range<u64>,
    bytes: &[u8],
    blocks: &mut [u8],
    weights: &mut Vec<f32>,
) -> Result<(), QuantizeError> {
    let (source, target) = (slab.source, slab.target);
    let k = source.row() as usize;
    weights.resize((rows.end - rows.start) as usize * k, 0.0);
    source.format.decode(bytes, weights);
    let bad = |index: usize, problem: String| QuantizeError::BadWeight {
        tensor: source.name.clone(),
        row: rows.start + (index / k) as u64,
        column: (index % k) as u64,
        problem,
    };
    if source.format == target.format {
        // A copy keeps infinities, which some masks are made of; NaN is never meant.
        if let Some(index) = weights.iter().position(|x| x.is_nan()) {
            return Err(bad(index, "the weight is NaN".into()));
        }
        blocks.copy_from_slice(bytes);
        return Ok(());
    }
    let matrix = (rows.start / source.matrix_rows()) as usize;
    let importance = target.importance.as_ref().map(|all| &all[matrix * k..(matrix + 1) * k]);
    target.format.encode(weights, k, blocks, importance).map_err(|cause| match cause {
        EncodeError::NotFinite { index, value } => bad(index, format!("the weight is {value}")),
        cause => QuantizeError::Encode { tensor: source.name.clone(), cause },
    })
}
