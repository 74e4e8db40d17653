//! The output: one GGUF or several, each of which gets its name only when all are complete.

use std::io::{self, Write};
use std::path::Path;

use super::QuantizeError;
use super::job::Job;
use crate::gguf::{GgufError, Writer};

/// The files of the output in the making. Takes the tensors' bytes in order, as one stream.
pub struct Output {
    writers: Vec<Writer>,
    bytes: Vec<u64>, // of tensors, by file
    current: usize,
    written: u64, // to the current file
}

impl Output {
    /// Starts the files of a job.
    pub fn create(job: &Job, out: &Path) -> Result<Output, QuantizeError> {
        let paths = job.paths(out);
        let (mut writers, mut bytes) = (vec![], vec![]);
        for (no, path) in paths.iter().enumerate() {
            let mut writer = Writer::create(path)?;
            if no == 0 {
                job.metadata.iter().try_for_each(|(key, value)| writer.set(key, value.clone()))?;
            } else if let Some((key, alignment)) = job.metadata.iter().find(|(key, _)| key == "general.alignment") {
                writer.set(key, alignment.clone())?;
            }
            if paths.len() > 1 {
                writer.set("split.no", no as u16)?;
                writer.set("split.count", paths.len() as u16)?;
                writer.set("split.tensors.count", job.targets.len() as i32)?;
            }
            let range = job.shards[no]..job.shards[no + 1];
            for (tensor, target) in job.source.tensors[range.clone()].iter().zip(&job.targets[range.clone()]) {
                writer.declare(&tensor.name, target.format, &tensor.shape)?;
            }
            writers.push(writer);
            bytes.push(job.targets[range].iter().map(|target| target.bytes).sum());
        }
        Ok(Output { writers, bytes, current: 0, written: 0 })
    }

    /// Gives all files their names.
    pub fn finish(self) -> Result<(), GgufError> {
        self.writers.into_iter().try_for_each(Writer::finish)
    }
}

impl Write for Output {
    fn write(&mut self, blocks: &[u8]) -> io::Result<usize> {
        while self.written == self.bytes[self.current] && self.current + 1 < self.writers.len() {
            self.current += 1;
            self.written = 0;
        }
        let left = self.bytes[self.current] - self.written;
        let n = blocks.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = self.writers[self.current].write(&blocks[..n])?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writers[self.current].flush()
    }
}
