//! The table of kernels: one row of function pointers for each format, filled once for the best instruction set.
//!
//! `Kernels::get()` detects the level at its first call; `RYND_SIMD=scalar|avx2|avx512|neon` caps it, and
//! `Kernels::from_env` tells a program's start whether that variable made sense. A matrix product fetches its `Linear`
//! once and then knows which activations it wants (`act`), and how to multiply one token (`matvec`) or many (`matmul`).
//!
//! Weights are GGML rows exactly as they lie in the file. Contracts are asserted here, once a call; the kernels behind
//! are private and trust them. Threads divide a product by rows, best in multiples of `ROW_TILE`.

use std::sync::OnceLock;

use crate::acts::{ActKind, ActRow, ActView, Quantised};
use crate::format::Format;
use crate::ints::int_layout;
use crate::simd;
use crate::vector::Vector;

/// Rows that a matmul unpacks together: a thread's share should be a multiple of it (any number works).
pub const ROW_TILE: usize = 32;

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Portable code, and the specification of the others.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL, VBMI, VNNI and GFNI (Ice Lake, Zen 4 and later).
    Avx512,
    /// 64-bit Arm with the dot product instructions.
    Neon,
}

impl Level {
    pub(crate) const ALL: [Level; 4] = [Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon];

    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Neon => "neon",
        }
    }

    /// Whether this machine runs it.
    pub fn available(self) -> bool {
        match self {
            Level::Scalar => true,
            Level::Avx2 => simd::has_avx2(),
            Level::Avx512 => simd::has_avx512(),
            Level::Neon => simd::has_neon(),
        }
    }

    fn best() -> Level {
        Level::ALL.into_iter().rev().find(|level| level.available()).unwrap_or(Level::Scalar)
    }
}

/// `RYND_SIMD` holds something else than a level that this machine runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LevelError {
    value: String,
}

impl std::fmt::Display for LevelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = Level::ALL.into_iter().filter(|level| level.available()).map(Level::name).collect();
        write!(f, "RYND_SIMD={:?}: this machine runs {}; set one of these or unset it", self.value, names.join(", "))
    }
}

impl std::error::Error for LevelError {}

/// Which rows of the activations a matmul reads. The i-th of them writes slot i of the output.
#[derive(Clone, Copy)]
pub enum Tokens<'a> {
    /// All tokens from the first to before the second.
    Range(usize, usize),
    /// These tokens, in any order: an expert's share of a batch.
    List(&'a [u32]),
}

impl Tokens<'_> {
    pub fn all(acts: &ActView<'_>) -> Tokens<'static> {
        Tokens::Range(0, acts.tokens())
    }

    pub fn len(&self) -> usize {
        match self {
            Tokens::Range(from, to) => to - from,
            Tokens::List(list) => list.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The activation row of slot `slot`.
    pub fn token(&self, slot: usize) -> usize {
        match self {
            Tokens::Range(from, _) => from + slot,
            Tokens::List(list) => list[slot] as usize,
        }
    }
}

/// Where a matmul writes: value (slot, row) goes to `start + slot * stride + row`.
///
/// A raw view, because several threads write different rows of one (slots, n) buffer at the same time.
#[derive(Clone, Copy)]
pub struct OutView {
    start: *mut f32,
    /// f32 values reachable from `start`.
    len: usize,
    stride: usize,
}

// SAFETY: it is an address; `Linear::matmul` states who may write through it.
unsafe impl Send for OutView {}
// SAFETY: as above.
unsafe impl Sync for OutView {}

impl OutView {
    /// A view of `out`, (slots, stride).
    pub fn new(out: &mut [f32], stride: usize) -> OutView {
        OutView { start: out.as_mut_ptr(), len: out.len(), stride }
    }

    /// # Safety
    /// `len` values from `start` must stay allocated while the view is used.
    pub unsafe fn from_raw(start: *mut f32, len: usize, stride: usize) -> OutView {
        OutView { start, len, stride }
    }

    /// The same slots with their first `rows` rows cut off.
    pub fn skip_rows(self, rows: usize) -> OutView {
        assert!(rows <= self.len, "{rows} rows of an output of {}", self.len);
        // SAFETY: inside the same buffer, or one past its end.
        OutView { start: unsafe { self.start.add(rows) }, len: self.len - rows, stride: self.stride }
    }

    fn check(&self, slots: usize, rows: usize) {
        let need = match slots.checked_sub(1) {
            Some(before) if rows > 0 => before.checked_mul(self.stride).and_then(|at| at.checked_add(rows)),
            _ => Some(0),
        };
        let fits = rows <= self.stride && need.is_some_and(|need| need <= self.len);
        assert!(fits, "{slots} x {rows} outputs do not fit {} values", self.len);
    }

    /// # Safety
    /// Slot and row must lie inside what `check` saw, and no other thread may use this value.
    pub(crate) unsafe fn at(&self, slot: usize, row: usize) -> *mut f32 {
        // SAFETY: by the caller.
        unsafe { self.start.add(slot * self.stride + row) }
    }
}

/// Weights of one product: whole rows of `k`, back to back.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub format: Format,
    pub bytes: &'a [u8], // (n, row_bytes)
    pub row_bytes: usize,
    pub n: usize,
    pub k: usize,
}

impl<'a> Rows<'a> {
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }
}

/// The tokens of one matmul and where their results go.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub acts: ActView<'a>,
    pub tokens: Tokens<'a>,
    pub out: OutView,
}

/// Unsafe because the instructions must exist; sizes were checked by `Linear`.
pub(crate) type Matvec = unsafe fn(&Rows<'_>, &ActRow<'_>, &mut [f32]);
/// As `Matvec`; besides, nobody else may touch the outputs.
pub(crate) type Matmul = unsafe fn(&Rows<'_>, &Batch<'_>);
pub(crate) type Quantise = unsafe fn(ActKind, &[f32], Quantised<'_>);

/// How kernels read weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Design {
    /// Portable code, and the specification of the others.
    Scalar,
    /// Row by row as they lie, in registers: for one token and for a few.
    Rows,
    /// Four rows at once as they lie, for one token.
    Rows4,
    /// Many rows unpacked side by side once, then multiplied with all tokens.
    Tile,
}

impl Design {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Design::Scalar => "scalar",
            Design::Rows => "rows",
            Design::Rows4 => "rows4",
            Design::Tile => "tile",
        }
    }
}

/// The products with weights of one format.
#[derive(Clone, Copy)]
pub struct Linear {
    pub(crate) format: Format,
    pub(crate) act: ActKind,
    pub(crate) matvec: Matvec,
    /// Batches of up to `few_tokens`.
    pub(crate) few: Matmul,
    pub(crate) few_tokens: usize,
    pub(crate) matmul: Matmul,
}

impl Linear {
    /// One kernel for one token and one for all numbers of them.
    pub(crate) fn new(format: Format, act: ActKind, matvec: Matvec, matmul: Matmul) -> Linear {
        Linear { format, act, matvec, few: matmul, few_tokens: 0, matmul }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// What the activations must be. The rows' `k` is a multiple of its block.
    pub fn act(&self) -> ActKind {
        self.act
    }

    /// `out[r]` = row r of `rows` (out.len(), k) times the activations of one token.
    pub fn matvec(&self, rows: &[u8], k: usize, act: ActRow<'_>, out: &mut [f32]) {
        let rows = self.rows(rows, k, out.len(), act.kind(), act.k());
        // SAFETY: the table holds only kernels of a level that this machine runs, and the sizes agree.
        unsafe { (self.matvec)(&rows, &act, out) }
    }

    /// `out(slot, r)` = row r of `rows` (n_rows, k) times the activations of the slot's token.
    ///
    /// # Safety
    /// The memory behind `out` must be alive, and nobody else may read or write these n_rows of these slots meanwhile.
    pub unsafe fn matmul(
        &self,
        rows: &[u8],
        k: usize,
        n_rows: usize,
        acts: &ActView<'_>,
        tokens: Tokens<'_>,
        out: OutView,
    ) {
        let rows = self.rows(rows, k, n_rows, acts.kind(), acts.k());
        match tokens {
            Tokens::Range(from, to) => assert!(from <= to && to <= acts.tokens(), "tokens {from}..{to}"),
            Tokens::List(list) => assert!(list.iter().all(|t| (*t as usize) < acts.tokens()), "token out of range"),
        }
        out.check(tokens.len(), n_rows);
        if tokens.is_empty() || n_rows == 0 {
            return;
        }
        let matmul = if tokens.len() <= self.few_tokens { self.few } else { self.matmul };
        // SAFETY: as in `matvec`; the caller vouches for the outputs.
        unsafe { matmul(&rows, &Batch { acts: *acts, tokens, out }) }
    }

    fn rows<'a>(&self, bytes: &'a [u8], k: usize, n: usize, kind: ActKind, act_k: usize) -> Rows<'a> {
        let Some(row_bytes) = self.format.row_bytes(k) else {
            panic!("rows of {k} weights are no whole blocks of {}", self.format)
        };
        assert_eq!(Some(bytes.len()), row_bytes.checked_mul(n), "{n} rows of {k} {} weights", self.format);
        assert_eq!((kind, act_k), (self.act, k), "activations for {} weights", self.format);
        Rows { format: self.format, bytes, row_bytes, n, k }
    }
}

/// The kernels of one level.
pub struct Kernels {
    level: Level,
    linear: Vec<Linear>, // by Format as usize
    exact: Vec<Linear>,
    quantise: Quantise,
    vector: Vector,
}

impl Kernels {
    /// The best kernels for this machine, or what `RYND_SIMD` names if it makes sense.
    pub fn get() -> &'static Kernels {
        static CHOSEN: OnceLock<&'static Kernels> = OnceLock::new();
        CHOSEN.get_or_init(|| Kernels::from_env().unwrap_or_else(|_| Kernels::of(Level::best())))
    }

    /// As `get`, but an unknown `RYND_SIMD` is an error: ask this once, when the program starts.
    pub fn from_env() -> Result<&'static Kernels, LevelError> {
        let Some(value) = std::env::var_os("RYND_SIMD").filter(|value| !value.is_empty()) else {
            return Ok(Kernels::of(Level::best()));
        };
        let named = Level::ALL.into_iter().find(|level| value.eq_ignore_ascii_case(level.name()));
        let kernels = named.and_then(Kernels::at);
        kernels.ok_or_else(|| LevelError { value: value.to_string_lossy().into_owned() })
    }

    /// The kernels of one level, if this machine runs it.
    pub fn at(level: Level) -> Option<&'static Kernels> {
        level.available().then(|| Kernels::of(level))
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// The products with int8 activations where the format has them.
    pub fn linear(&self, format: Format) -> &Linear {
        &self.linear[format as usize]
    }

    /// The products with weights decoded to f32 and f32 activations: slow, and the measure of the others.
    pub fn exact(&self, format: Format) -> &Linear {
        &self.exact[format as usize]
    }

    /// The products by each design that this level has for a format: for comparing them.
    pub fn designs(&self, format: Format) -> Vec<(Design, Linear)> {
        simd::designs(self.level, format)
    }

    /// The small f32 kernels.
    pub fn vector(&self) -> &Vector {
        &self.vector
    }

    pub(crate) fn quantise(&self, kind: ActKind, x: &[f32], into: Quantised<'_>) {
        let values = x.len();
        assert!(into.q.len() == values && into.d.len() == values / kind.block_len());
        assert!(into.sums16.len() == values / 16 && into.sums32.len() == values / 32);
        // SAFETY: the level is available, and the sizes agree.
        unsafe { (self.quantise)(kind, x, into) }
    }

    fn of(level: Level) -> &'static Kernels {
        static TABLES: [OnceLock<Kernels>; 4] = [const { OnceLock::new() }; 4];
        TABLES[level as usize].get_or_init(|| Kernels::build(level))
    }

    fn build(level: Level) -> Kernels {
        let linear = |format| {
            let designs = simd::designs(level, format);
            chosen(&designs, simd::few_tokens(level, format)).unwrap_or_else(|| simd::scalar::linear(format))
        };
        let exact = |format| simd::exact(level, format).unwrap_or_else(|| simd::scalar::exact(format));
        Kernels {
            level,
            linear: Format::all().map(linear).collect(),
            exact: Format::all().map(exact).collect(),
            quantise: simd::quantise(level),
            vector: simd::vector(level),
        }
    }
}

/// One token by the design that reads rows best, up to `few_tokens` by rows, more by tiles.
fn chosen(designs: &[(Design, Linear)], few_tokens: usize) -> Option<Linear> {
    let by = |design| designs.iter().find(|(one, _)| *one == design).map(|(_, linear)| *linear);
    let rows = by(Design::Rows);
    let one = by(Design::Rows4).or(rows);
    let mut linear = by(Design::Tile).or(rows)?;
    linear.matvec = one.unwrap_or(linear).matvec;
    if let Some(rows) = rows {
        (linear.few, linear.few_tokens) = (rows.matmul, few_tokens);
    }
    Some(linear)
}

/// The activations that int8 kernels of this format take, the same at every level.
pub(crate) fn act_kind(format: Format) -> ActKind {
    int_layout(format).map_or(ActKind::F32, |layout| layout.act)
}
