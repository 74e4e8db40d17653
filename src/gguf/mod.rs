//! TEMPORARY stand-in until the gguf branch lands.
use rynd_quant::Format;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GgufError(String);
#[derive(Debug, Clone)]
pub enum Value {
    U(u64),
    I(i64),
    F(f64),
    B(bool),
    S(String),
    A(Vec<Value>),
}
pub struct TensorInfo {
    pub name: String,
    pub format: Format,
    pub shape: Vec<u64>,
    pub bytes: usize,
    off: usize,
}
struct Inner {
    path: PathBuf,
    map: memmap2::Mmap,
    meta: HashMap<String, Value>,
    tensors: Vec<TensorInfo>,
    idx: HashMap<String, usize>,
    data: usize,
}
#[derive(Clone)]
pub struct Gguf(Arc<Inner>);
struct C<'a>(&'a [u8], usize);
impl C<'_> {
    fn n(&mut self, n: usize) -> u64 {
        let mut v = 0u64;
        for i in 0..n {
            v |= (self.0[self.1 + i] as u64) << (8 * i);
        }
        self.1 += n;
        v
    }
    fn s(&mut self) -> String {
        let n = self.n(8) as usize;
        self.1 += n;
        String::from_utf8_lossy(&self.0[self.1 - n..self.1]).into_owned()
    }
    fn v(&mut self, t: u64) -> Value {
        match t {
            0 => Value::U(self.n(1)),
            1 => Value::I(self.n(1) as i8 as i64),
            2 => Value::U(self.n(2)),
            3 => Value::I(self.n(2) as i16 as i64),
            4 => Value::U(self.n(4)),
            5 => Value::I(self.n(4) as i32 as i64),
            6 => Value::F(f32::from_bits(self.n(4) as u32) as f64),
            7 => Value::B(self.n(1) != 0),
            8 => Value::S(self.s()),
            9 => {
                let t = self.n(4);
                let n = self.n(8);
                Value::A((0..n).map(|_| self.v(t)).collect())
            }
            10 => Value::U(self.n(8)),
            11 => Value::I(self.n(8) as i64),
            _ => Value::F(f64::from_bits(self.n(8))),
        }
    }
}
impl Gguf {
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let f = std::fs::File::open(path).map_err(|e| GgufError(format!("{}: {e}", path.display())))?;
        let map = unsafe { memmap2::Mmap::map(&f) }.map_err(|e| GgufError(e.to_string()))?;
        let mut c = C(&map, 8);
        let nt = c.n(8);
        let nk = c.n(8);
        let mut meta = HashMap::new();
        for _ in 0..nk {
            let k = c.s();
            let t = c.n(4);
            let v = c.v(t);
            meta.insert(k, v);
        }
        let mut tensors = vec![];
        let mut idx = HashMap::new();
        for i in 0..nt {
            let name = c.s();
            let nd = c.n(4);
            let shape: Vec<u64> = (0..nd).map(|_| c.n(8)).collect();
            let format = Format::from_ggml_id(c.n(4) as u32).unwrap();
            let off = c.n(8) as usize;
            let bytes = format.row_bytes(shape[0] as usize).unwrap() * shape[1..].iter().product::<u64>() as usize;
            idx.insert(name.clone(), i as usize);
            tensors.push(TensorInfo { name, format, shape, bytes, off });
        }
        let data = c.1.next_multiple_of(32);
        Ok(Gguf(Arc::new(Inner { path: path.to_owned(), map, meta, tensors, idx, data })))
    }
    pub fn path(&self) -> &Path {
        &self.0.path
    }
    pub fn get(&self, k: &str) -> Option<&Value> {
        self.0.meta.get(k)
    }
    pub fn opt_u32(&self, k: &str) -> Result<Option<u32>, GgufError> {
        Ok(match self.get(k) {
            Some(Value::U(v)) => Some(*v as u32),
            Some(Value::I(v)) => Some(*v as u32),
            _ => None,
        })
    }
    pub fn u32(&self, k: &str) -> Result<u32, GgufError> {
        self.opt_u32(k)?.ok_or(GgufError(k.into()))
    }
    pub fn opt_f32(&self, k: &str) -> Result<Option<f32>, GgufError> {
        Ok(match self.get(k) {
            Some(Value::F(v)) => Some(*v as f32),
            _ => None,
        })
    }
    pub fn f32(&self, k: &str) -> Result<f32, GgufError> {
        self.opt_f32(k)?.ok_or(GgufError(k.into()))
    }
    pub fn opt_str(&self, k: &str) -> Result<Option<&str>, GgufError> {
        Ok(match self.get(k) {
            Some(Value::S(v)) => Some(v),
            _ => None,
        })
    }
    pub fn str(&self, k: &str) -> Result<&str, GgufError> {
        self.opt_str(k)?.ok_or(GgufError(k.into()))
    }
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.0.tensors
    }
    pub fn tensor(&self, n: &str) -> Option<&TensorInfo> {
        self.0.idx.get(n).map(|&i| &self.0.tensors[i])
    }
    pub fn bytes(&self, t: &TensorInfo) -> &[u8] {
        &self.0.map[self.0.data + t.off..][..t.bytes]
    }
}
