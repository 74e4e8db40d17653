//! Files built byte by byte, without the help of the module under test, and what the tests say of errors.

use std::path::{Path, PathBuf};

use rynd::gguf::{Gguf, GgufError};

#[derive(Clone)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    pub fn header(version: u32, tensors: u64, keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }
    pub fn u32(mut self, v: u32) -> Raw {
        self.0.extend(v.to_le_bytes());
        self
    }
    pub fn u64(mut self, v: u64) -> Raw {
        self.0.extend(v.to_le_bytes());
        self
    }
    pub fn str(self, s: &str) -> Raw {
        self.u64(s.len() as u64).bytes(s.as_bytes())
    }
    pub fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }
    pub fn key_u32(self, key: &str, v: u32) -> Raw {
        self.str(key).u32(4).u32(v)
    }
    pub fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Raw {
        let start = self.str(name).u32(shape.len() as u32);
        shape.iter().fold(start, |raw, &n| raw.u64(n)).u32(kind).u64(offset)
    }
    /// Pads to the default alignment and appends that many bytes of data.
    pub fn data(mut self, bytes: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 7);
        self.0
    }
}

pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Gguf, GgufError> {
    Gguf::from_bytes(Path::new("m.gguf"), bytes.into().into())
}

/// The error must name the file, say all of `parts`, and what to do next.
#[track_caller]
pub fn fails(bytes: impl Into<Vec<u8>>, parts: &[&str]) {
    says(parse(bytes).err(), &[&["m.gguf"], parts].concat());
}

#[track_caller]
pub fn says(error: Option<GgufError>, parts: &[&str]) {
    let error = error.expect("this file must be refused").to_string();
    for part in parts {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
    let next = ["download", "convert", "update rynd", "try again", "give the path", "git lfs", "get the", "check"];
    assert!(next.iter().any(|step| error.contains(step)), "no next step in: {error}");
}

pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new(name: &str) -> TempDir {
        let dir = std::env::temp_dir().join(format!("rynd-gguf-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(&self.0).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn fixtures() -> Vec<PathBuf> {
    let mut files = vec![];
    for dir in ["tests/fixtures/quantized", "tests/fixtures/models"] {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let path = if path.is_dir() { path.join("model.gguf") } else { path };
            if path.extension().is_some_and(|e| e == "gguf") && path.exists() {
                files.push(path);
            }
        }
    }
    assert!(files.len() >= 5, "fixtures are missing: {files:?}");
    files
}
