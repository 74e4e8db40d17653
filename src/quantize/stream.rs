//! The pipeline: slabs of rows are read ahead, encoded by all threads and written behind.
//!
//! Three threads hand slabs on through short queues, the middle one with a pool of workers. So what is in memory is a
//! handful of slabs whatever the size of a tensor, and a slow disk costs only what it cannot overlap. Buffers go back
//! to where they came from: fresh pages would cost more than the copies.

use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use super::QuantizeError;
use super::encode::{Codec, Slab};
use super::job::Job;
use super::source::Reader;

/// Bytes of a slab of the input, more or less.
const SLAB_BYTES: u64 = 4 << 20;
/// Slabs waiting before each stage.
const QUEUE: usize = 2;

/// What a job is doing.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub tensor: &'a str,
    /// Bytes of the input that are done.
    pub bytes: u64,
}

/// Rows of one tensor and their bytes.
struct Piece {
    tensor: usize,
    rows: Range<u64>,
    bytes: Vec<u8>,
}

/// Encodes all tensors of a job into `out`, in order. `watch` hears of every slab and may stop the work. `path` names
/// the output in errors.
pub fn run(
    job: &Job,
    threads: usize,
    out: &mut (impl Write + Send),
    path: &Path,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), QuantizeError> {
    let codec = Codec::new(threads)?;
    std::thread::scope(|scope| {
        let (read, slabs) = sync_channel::<Result<Piece, QuantizeError>>(QUEUE);
        let (encoded, blocks) = sync_channel::<Vec<u8>>(QUEUE);
        let (spent_slabs, free_slabs) = channel();
        let (spent_blocks, free_blocks) = channel();
        scope.spawn(move || read_all(job, &read, &free_slabs));
        let writer = scope.spawn(move || {
            blocks.iter().try_for_each(|bytes: Vec<u8>| {
                out.write_all(&bytes)?;
                // Nobody wants the buffer back at the end.
                let _ = spent_blocks.send(bytes);
                Ok(())
            })
        });

        let result = encode_all(job, &codec, slabs, encoded, &spent_slabs, &free_blocks, &mut watch);
        let written: std::io::Result<()> = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // When both failed, the writer failed first: the encoder only noticed that nobody listened.
        written.map_err(|cause| QuantizeError::Write { path: path.to_owned(), cause, bytes: job.bytes() })?;
        result
    })
}

/// Reads every tensor, slab by slab, until the other end is gone.
fn read_all(job: &Job, slabs: &std::sync::mpsc::SyncSender<Result<Piece, QuantizeError>>, free: &Receiver<Vec<u8>>) {
    let mut reader = Reader::new(&job.source);
    for (index, tensor) in job.source.tensors.iter().enumerate() {
        let row_bytes = tensor.bytes() / tensor.rows();
        let step = (SLAB_BYTES / row_bytes.max(1)).max(1).next_multiple_of(tensor.rows_together());
        let mut start = 0;
        while start < tensor.rows() {
            let rows = start..(start + step).min(tensor.rows());
            let mut bytes = free.try_recv().unwrap_or_default();
            let slab = reader.read(tensor, rows.clone(), &mut bytes);
            start = rows.end;
            let failed = slab.is_err();
            if slabs.send(slab.map(|()| Piece { tensor: index, rows, bytes })).is_err() || failed {
                return;
            }
        }
    }
}

fn encode_all(
    job: &Job,
    codec: &Codec,
    slabs: Receiver<Result<Piece, QuantizeError>>,
    encoded: std::sync::mpsc::SyncSender<Vec<u8>>,
    spent: &Sender<Vec<u8>>,
    free: &Receiver<Vec<u8>>,
    watch: &mut impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), QuantizeError> {
    let mut done = 0;
    for piece in slabs {
        let Piece { tensor, rows, bytes } = piece?;
        let (source, target) = (&job.source.tensors[tensor], &job.targets[tensor]);
        done += bytes.len() as u64;
        let mut blocks = free.try_recv().unwrap_or_default();
        codec.encode(&Slab { source, target, rows, bytes: &bytes }, &mut blocks)?;
        let _ = spent.send(bytes);
        if watch(Progress { tensor: &source.name, bytes: done }).is_break() {
            return Err(QuantizeError::Interrupted);
        }
        if encoded.send(blocks).is_err() {
            break; // the writer has failed and says why
        }
    }
    Ok(())
}
