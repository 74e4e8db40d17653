//! The output: one GGUF or several, which get their names together, when all are complete.
//!
//! Only the file that is being written is open. What a stopped job leaves behind is nothing: complete shards have no
//! name yet and are removed too.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::QuantizeError;
use super::job::Job;
use crate::files::Unfinished;
use crate::gguf::{GgufError, Writer};

/// The files of the output in the making. Takes the tensors' bytes in order, as one stream.
pub struct Output<'a> {
    job: &'a Job,
    paths: Vec<PathBuf>,
    complete: Vec<Unfinished>,
    writer: Option<Writer>, // of the file after the complete ones
    left: u64,              // of its tensors' bytes
}

impl<'a> Output<'a> {
    /// Starts the first file of a job.
    pub fn create(job: &'a Job, out: &Path) -> Result<Output<'a>, QuantizeError> {
        let mut output = Output { job, paths: job.paths(out), complete: vec![], writer: None, left: 0 };
        output.open()?;
        Ok(output)
    }

    /// Starts the next file.
    fn open(&mut self) -> Result<(), GgufError> {
        let (job, no) = (self.job, self.complete.len());
        let mut writer = Writer::create(&self.paths[no])?;
        if no == 0 {
            job.metadata.iter().try_for_each(|(key, value)| writer.set(key, value.clone()))?;
        } else if let Some((key, alignment)) = job.metadata.iter().find(|(key, _)| key == "general.alignment") {
            writer.set(key, alignment.clone())?;
        }
        if self.paths.len() > 1 {
            writer.set("split.no", no as u16)?;
            writer.set("split.count", self.paths.len() as u16)?;
            writer.set("split.tensors.count", job.targets.len() as i32)?;
        }
        let range = job.shards[no]..job.shards[no + 1];
        for (tensor, target) in job.source.tensors[range.clone()].iter().zip(&job.targets[range.clone()]) {
            writer.declare(&tensor.name, target.format, &tensor.shape)?;
        }
        self.left = job.targets[range].iter().map(|target| target.bytes).sum();
        self.writer = Some(writer);
        Ok(())
    }

    /// Gives all files their names.
    pub fn finish(mut self) -> Result<(), QuantizeError> {
        if let Some(writer) = self.writer.take() {
            self.complete.push(writer.seal()?);
        }
        let bytes = self.job.bytes();
        self.complete.into_iter().try_for_each(|file| {
            let path = file.path().to_owned();
            file.publish().map_err(|cause| QuantizeError::Write { path, cause, bytes })
        })
    }
}

impl Write for Output<'_> {
    fn write(&mut self, blocks: &[u8]) -> io::Result<usize> {
        if self.left == 0 && self.complete.len() + 1 < self.paths.len() {
            if let Some(writer) = self.writer.take() {
                self.complete.push(writer.seal().map_err(cause)?);
            }
            self.open().map_err(cause)?;
        }
        let Some(writer) = &mut self.writer else { return Ok(0) };
        let n = blocks.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = writer.write(&blocks[..n])?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Writer::flush)
    }
}

/// The cause alone: the caller names the file.
fn cause(error: GgufError) -> io::Error {
    match error {
        GgufError::Io { cause, .. } => cause,
        other => io::Error::other(other),
    }
}
