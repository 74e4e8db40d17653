//! The importance matrix: how large the inputs of each weight column were over a text.
//!
//! On disk it is llama.cpp's GGUF (a pair of tensors each weight, `NAME.in_sum2` and `NAME.counts`: sums of squares by
//! column and rows seen, one set an expert), so that matrices from either program serve both; the older `.dat` is read
//! too. An expert that the text never reached has a count of 0, and all its columns count alike.

use std::collections::BTreeMap;
use std::path::Path;

use rynd_quant::Format;

use super::QuantizeError;
use crate::gguf::{Array, Gguf, GgufError, Value, Writer};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Squared inputs of one weight tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    pub sums: Vec<f32>,   // (matrices, row)
    pub counts: Vec<f32>, // (matrices): input rows summed up
}

/// Squared inputs of a model's weights, by tensor name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    pub entries: BTreeMap<String, Entry>,
    /// The texts it was made from.
    pub datasets: Vec<String>,
    pub chunks: u32,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
}

impl Imatrix {
    /// Reads a file in either format.
    pub fn read(path: &Path) -> Result<Imatrix, QuantizeError> {
        let imatrix = match Gguf::open(path) {
            Ok(gguf) => Imatrix::from_gguf(&gguf),
            Err(GgufError::NotGguf { .. }) if path.is_file() => {
                let bytes =
                    std::fs::read(path).map_err(|cause| QuantizeError::Read { path: path.to_owned(), cause })?;
                Imatrix::from_legacy(&bytes).ok_or_else(|| {
                    "this is no importance matrix; make one with 'rynd imatrix MODEL -f TEXT -o FILE'".to_owned()
                })
            }
            Err(e) => return Err(e.into()),
        };
        let imatrix = imatrix.map_err(|problem| QuantizeError::Imatrix { path: path.to_owned(), problem })?;
        imatrix.check().map_err(|problem| QuantizeError::Imatrix { path: path.to_owned(), problem })?;
        Ok(imatrix)
    }

    fn from_gguf(gguf: &Gguf) -> Result<Imatrix, String> {
        if gguf.get("general.type").and_then(Value::as_str) != Some("imatrix") {
            return Err(
                "this is a GGUF, but no importance matrix; make one with 'rynd imatrix MODEL -f TEXT -o FILE'".into()
            );
        }
        let values = |name: &str| {
            let tensor =
                gguf.tensor(name).ok_or_else(|| format!("tensor '{name}' is missing; make the matrix again"))?;
            if tensor.format != Format::F32 {
                return Err(format!("tensor '{name}' is {}, not F32; make the matrix again", tensor.format));
            }
            let mut values = vec![0.0; tensor.bytes / 4];
            tensor.format.decode(gguf.bytes(tensor), &mut values);
            Ok(values)
        };
        let mut imatrix = Imatrix {
            chunks: gguf.u32("imatrix.chunk_count").unwrap_or(0),
            chunk_tokens: gguf.u32("imatrix.chunk_size").unwrap_or(0),
            datasets: gguf.strs("imatrix.datasets").map_or(vec![], |all| all.iter().map(|s| (*s).to_owned()).collect()),
            ..Imatrix::default()
        };
        for tensor in gguf.tensors() {
            if let Some(name) = tensor.name.strip_suffix(SUMS) {
                let entry = Entry { sums: values(&tensor.name)?, counts: values(&format!("{name}{COUNTS}"))? };
                imatrix.entries.insert(name.to_owned(), entry);
            }
        }
        Ok(imatrix)
    }

    /// The format before GGUF: i32 entries; each i32 length, name, i32 calls, i32 values, f32 values; then i32 chunks,
    /// i32 length and the text's name. Values are mean squares times calls.
    fn from_legacy(bytes: &[u8]) -> Option<Imatrix> {
        let mut at = 0_usize;
        let mut take = |n: usize| {
            let part = bytes.get(at..at.checked_add(n)?)?;
            at += n;
            Some(part)
        };
        let number = |bytes: &[u8]| Some(i32::from_le_bytes(bytes.try_into().ok()?));
        let size = |bytes: &[u8]| usize::try_from(number(bytes)?).ok();
        let mut imatrix = Imatrix::default();
        for _ in 0..size(take(4)?)? {
            let length = size(take(4)?)?;
            let name = String::from_utf8(take(length)?.to_vec()).ok()?;
            let calls = number(take(4)?)?.max(1);
            let n = size(take(4)?)?;
            let mut sums = vec![0.0; n];
            Format::F32.decode(take(n.checked_mul(4)?)?, &mut sums);
            imatrix.entries.insert(name, Entry { sums, counts: vec![calls as f32] });
        }
        if let Some(chunks) = take(4) {
            imatrix.chunks = number(chunks)?.max(0) as u32;
            let length = size(take(4)?)?;
            imatrix.datasets.push(String::from_utf8(take(length)?.to_vec()).ok()?);
        }
        Some(imatrix)
    }

    fn check(&self) -> Result<(), String> {
        if self.entries.is_empty() {
            return Err("the importance matrix is empty; make it again".into());
        }
        for (name, entry) in &self.entries {
            let bad = |x: &f32| !(0.0..f32::INFINITY).contains(x);
            if let Some(x) = entry.sums.iter().chain(&entry.counts).copied().find(bad) {
                return Err(format!("the importance of '{name}' holds {x}; make the matrix again"));
            }
            if entry.counts.is_empty() || !entry.sums.len().is_multiple_of(entry.counts.len()) {
                let [sums, counts] = [entry.sums.len(), entry.counts.len()];
                return Err(format!("'{name}' has {sums} sums for {counts} matrices; make the matrix again"));
            }
        }
        Ok(())
    }

    /// Mean squared input by matrix and column of this tensor, (matrices, row); 1 where the text never came by.
    pub fn importance(&self, name: &str) -> Option<Vec<f32>> {
        let entry = self.entries.get(name)?;
        let row = entry.sums.len() / entry.counts.len();
        let sets = entry.sums.chunks_exact(row).zip(&entry.counts);
        let mean = |(sums, &count): (&[f32], &f32)| -> Vec<f32> {
            if count > 0.0 { sums.iter().map(|sum| sum / count).collect() } else { vec![1.0; row] }
        };
        Some(sets.flat_map(mean).collect())
    }

    /// (tensor, matrices that the text never reached, matrices) where there are any.
    pub fn unreached(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        let count = |entry: &Entry| entry.counts.iter().filter(|&&count| count == 0.0).count();
        self.entries
            .iter()
            .map(move |(name, entry)| (name.as_str(), count(entry), entry.counts.len()))
            .filter(|(_, unreached, _)| *unreached > 0)
    }

    /// Writes the GGUF.
    pub fn write(&self, path: &Path) -> Result<(), QuantizeError> {
        self.write_to(Writer::create(path)?)
    }

    /// Writes the GGUF into a file that was begun before.
    pub fn write_to(&self, mut writer: Writer) -> Result<(), QuantizeError> {
        writer.set("general.type", "imatrix")?;
        writer.set("imatrix.datasets", Array::of_strings(&self.datasets))?;
        writer.set("imatrix.chunk_count", self.chunks)?;
        writer.set("imatrix.chunk_size", self.chunk_tokens)?;
        for (name, entry) in &self.entries {
            let matrices = entry.counts.len() as u64;
            writer.declare(&format!("{name}{SUMS}"), Format::F32, &[entry.sums.len() as u64 / matrices, matrices])?;
            writer.declare(&format!("{name}{COUNTS}"), Format::F32, &[1, matrices])?;
        }
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        for (name, entry) in &self.entries {
            writer.write_tensor(&format!("{name}{SUMS}"), &bytes(&entry.sums))?;
            writer.write_tensor(&format!("{name}{COUNTS}"), &bytes(&entry.counts))?;
        }
        Ok(writer.finish()?)
    }
}
