//! Activations of one matrix product: quantised once, then read by every row of the weights.
//!
//! Structure of arrays, so that the kernels load straight lines: int8 values, one f32 scale a block, and the sums of
//! 16 and 32 int8 values that cancel the offsets of unsigned weights. `Q8_K` has one scale for 256 values, `Q8_0` one
//! for 32; both are `d = amax / 127`, rounded half to even, and every instruction set gives the same integers.
//! `F32` activations are borrowed where they lie and never come here.
//!
//! One `Acts` is made at load, large enough for any step; then nothing allocates. Threads that run the same step in
//! lockstep share it: each calls `fill` for its own tokens, and after their barrier each takes a `view`.

use std::ops::Range;

use crate::aligned::Aligned;
use crate::kernels::Kernels;

/// What the kernels of a weight format want the activations to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ActKind {
    F32,
    /// int8 with a scale for each 32 values.
    Q8_0,
    /// int8 with a scale for each 256 values.
    Q8_K,
}

impl ActKind {
    /// Values that share one scale; `k` must be a multiple of it.
    pub fn block_len(self) -> usize {
        match self {
            ActKind::F32 => 1,
            ActKind::Q8_0 => 32,
            ActKind::Q8_K => 256,
        }
    }
}

/// How a buffer of activations is to be read: the same in every thread of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ActShape {
    /// `Q8_0` or `Q8_K`.
    pub kind: ActKind,
    pub tokens: usize,
    pub k: usize,
}

/// Buffers for quantised activations.
#[derive(Default)]
pub struct Acts {
    q: Aligned<i8>,       // (t, k)
    d: Aligned<f32>,      // (t, k / block_len)
    sums16: Aligned<i16>, // (t, k / 16)
    sums32: Aligned<i16>, // (t, k / 32)
}

impl Acts {
    /// Room for shapes of up to `values` = tokens x k.
    pub fn with_capacity(values: usize) -> Acts {
        let mut acts = Acts::default();
        acts.reserve(values);
        acts
    }

    /// Makes room for shapes of up to `values` = tokens x k; never shrinks.
    pub fn reserve(&mut self, values: usize) {
        self.q.grow(values);
        self.d.grow(values.div_ceil(32));
        self.sums16.grow(values.div_ceil(16));
        self.sums32.grow(values.div_ceil(32));
    }

    /// The largest tokens x k that fits.
    pub fn capacity(&self) -> usize {
        self.q.len()
    }

    /// Quantises `x` (t, k) on this thread.
    pub fn quantise(&mut self, kind: ActKind, k: usize, x: &[f32]) -> ActView<'_> {
        self.quantise_at(Kernels::get(), kind, k, x)
    }

    /// As `quantise`, by the kernels of a chosen level: for comparing them.
    pub fn quantise_at(&mut self, kernels: &Kernels, kind: ActKind, k: usize, x: &[f32]) -> ActView<'_> {
        assert!(k > 0 && x.len().is_multiple_of(k), "activations of {} values are no rows of {k}", x.len());
        let shape = ActShape { kind, tokens: x.len() / k, k };
        self.reserve(x.len());
        // SAFETY: `&mut self` keeps every other thread and view away; all tokens are filled before the view.
        unsafe {
            self.fill_at(kernels, shape, 0..shape.tokens, x);
            self.view(shape)
        }
    }

    /// Quantises the rows `tokens` of a batch of `shape`; `x` holds these rows alone, (tokens.len(), k).
    ///
    /// # Safety
    /// During the call no other thread may fill the same tokens, and no view or row of these `Acts` may be in use.
    pub unsafe fn fill(&self, shape: ActShape, tokens: Range<usize>, x: &[f32]) {
        // SAFETY: by the caller.
        unsafe { self.fill_at(Kernels::get(), shape, tokens, x) }
    }

    /// # Safety
    /// As `fill`.
    unsafe fn fill_at(&self, kernels: &Kernels, shape: ActShape, tokens: Range<usize>, x: &[f32]) {
        let ActShape { kind, k, .. } = shape;
        self.check(shape);
        assert!(tokens.start <= tokens.end && tokens.end <= shape.tokens, "tokens {tokens:?} of {}", shape.tokens);
        assert_eq!(x.len(), tokens.len() * k, "activations must be (tokens, k)");
        let first = tokens.start * k;
        // SAFETY: `check` proved that tokens * k values fit; the ranges of different tokens are disjoint because k is a
        // multiple of 32, and the caller keeps readers away.
        let into = unsafe {
            use std::slice::from_raw_parts_mut as slice;
            Quantised {
                q: slice(self.q.as_ptr().add(first), x.len()),
                d: slice(self.d.as_ptr().add(first / kind.block_len()), x.len() / kind.block_len()),
                sums16: slice(self.sums16.as_ptr().add(first / 16), x.len() / 16),
                sums32: slice(self.sums32.as_ptr().add(first / 32), x.len() / 32),
            }
        };
        kernels.quantise(kind, x, into);
    }

    /// The activations, for reading.
    ///
    /// # Safety
    /// Every token of `shape` was filled with this same shape, and no thread fills while the view lives.
    pub unsafe fn view(&self, shape: ActShape) -> ActView<'_> {
        self.check(shape);
        let ActShape { kind, tokens, k } = shape;
        let values = tokens * k;
        ActView {
            kind,
            tokens,
            k,
            x: &[],
            q: &self.q.as_slice()[..values],
            d: &self.d.as_slice()[..values / kind.block_len()],
            sums16: &self.sums16.as_slice()[..values / 16],
            sums32: &self.sums32.as_slice()[..values / 32],
        }
    }

    fn check(&self, shape: ActShape) {
        let ActShape { kind, tokens, k } = shape;
        assert!(kind != ActKind::F32, "f32 activations are borrowed, not quantised");
        assert!(k > 0 && k.is_multiple_of(kind.block_len()), "k = {k} is no multiple of {}", kind.block_len());
        let values = tokens.checked_mul(k);
        assert!(values.is_some_and(|v| v <= self.capacity()), "{tokens} x {k} activations exceed {}", self.capacity());
    }
}

/// Where quantised values go: whole rows of k, back to back.
pub(crate) struct Quantised<'a> {
    pub q: &'a mut [i8],
    pub d: &'a mut [f32],
    pub sums16: &'a mut [i16],
    pub sums32: &'a mut [i16],
}

/// The activations of a batch of tokens.
#[derive(Clone, Copy, PartialEq)]
pub struct ActView<'a> {
    kind: ActKind,
    tokens: usize,
    k: usize,
    pub(crate) x: &'a [f32],      // (t, k), of kind F32
    pub(crate) q: &'a [i8],       // (t, k), of the other kinds, and so the rest
    pub(crate) d: &'a [f32],      // (t, k / block_len)
    pub(crate) sums16: &'a [i16], // (t, k / 16)
    pub(crate) sums32: &'a [i16], // (t, k / 32)
}

impl<'a> ActView<'a> {
    /// Borrows `x` (t, k) as activations of kind `F32`.
    pub fn f32(x: &'a [f32], k: usize) -> ActView<'a> {
        assert!(k > 0 && x.len().is_multiple_of(k), "activations of {} values are no rows of {k}", x.len());
        ActView { kind: ActKind::F32, tokens: x.len() / k, k, x, q: &[], d: &[], sums16: &[], sums32: &[] }
    }

    pub fn kind(&self) -> ActKind {
        self.kind
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub fn k(&self) -> usize {
        self.k
    }

    /// One token's activations.
    pub fn row(&self, token: usize) -> ActRow<'a> {
        assert!(token < self.tokens, "token {token} of {}", self.tokens);
        let k = self.k;
        let part = |per: usize| token * (k / per)..(token + 1) * (k / per);
        match self.kind {
            ActKind::F32 => ActRow::f32(&self.x[part(1)]),
            ActKind::Q8_0 | ActKind::Q8_K => ActRow {
                kind: self.kind,
                k,
                x: &[],
                q: &self.q[part(1)],
                d: &self.d[part(self.kind.block_len())],
                sums16: &self.sums16[part(16)],
                sums32: &self.sums32[part(32)],
            },
        }
    }
}

/// The activations of one token.
#[derive(Clone, Copy)]
pub struct ActRow<'a> {
    kind: ActKind,
    k: usize,
    pub(crate) x: &'a [f32],      // (k)
    pub(crate) q: &'a [i8],       // (k)
    pub(crate) d: &'a [f32],      // (k / block_len)
    pub(crate) sums16: &'a [i16], // (k / 16)
    pub(crate) sums32: &'a [i16], // (k / 32)
}

impl<'a> ActRow<'a> {
    /// Borrows `x` (k) as activations of kind `F32`.
    pub fn f32(x: &'a [f32]) -> ActRow<'a> {
        ActRow { kind: ActKind::F32, k: x.len(), x, q: &[], d: &[], sums16: &[], sums32: &[] }
    }

    pub fn kind(&self) -> ActKind {
        self.kind
    }

    pub fn k(&self) -> usize {
        self.k
    }
    /// A batch of this token alone.
    pub(crate) fn as_view(&self) -> ActView<'a> {
        let ActRow { kind, k, x, q, d, sums16, sums32 } = *self;
        ActView { kind, tokens: 1, k, x, q, d, sums16, sums32 }
    }
}
