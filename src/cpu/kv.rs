//! The key-value cache of one layer on the CPU: pages of 64 tokens, one kv head after the other.
//!
//! Keys are transposed within a page (head_dim, 64) and values are not (64, head_dim): the layout that the page kernels
//! of `rynd_quant::attention` want. Q8_0 keeps 32 values of one token under one f16 scale, keys and values alike, and is
//! widened to f32 a page at a time.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rynd_quant::attention::{PAGE, PageKernels};

use super::threads::Shared;
use crate::backend::{BackendError, KvFormat};
use crate::plan::Kv;

/// Values under one scale in a Q8_0 cache.
const GROUP: usize = 32;

/// Keys or values of one layer.
enum Store {
    F32(Shared<f32>),                            // (pages, kv_heads, head_dim * 64)
    F16(Shared<f16>),                            // (pages, kv_heads, head_dim * 64)
    Q8_0 { q: Shared<i8>, scales: Shared<f16> }, // (pages, kv_heads, head_dim * 64), (.., head_dim / 32 * 64)
}

/// One layer's cache.
pub struct KvCache {
    keys: Store,
    values: Store,
    kv_heads: usize,
    head_dim: usize,
    /// Whose page tables name its pages.
    pub group: usize,
}

/// A worker's buffer for widened Q8_0 pages.
#[derive(Default)]
pub struct Widened(Vec<f32>);

impl KvCache {
    /// An empty cache of `pages` pages; memory is taken as it fills.
    pub fn new(kv: &Kv, format: KvFormat, pages: usize) -> Result<KvCache, BackendError> {
        let len = pages * kv.kv_heads * kv.head_dim * PAGE;
        let store = || -> Result<Store, BackendError> {
            const WHAT: &str = "the key-value cache";
            Ok(match format {
                KvFormat::F32 => Store::F32(Shared::zeroed(len, WHAT)?),
                KvFormat::F16 => Store::F16(Shared::zeroed(len, WHAT)?),
                KvFormat::Q8_0 => {
                    Store::Q8_0 { q: Shared::zeroed(len, WHAT)?, scales: Shared::zeroed(len / GROUP, WHAT)? }
                }
            })
        };
        if format == KvFormat::Q8_0 && !kv.head_dim.is_multiple_of(GROUP) {
            return Err(BackendError::Device(format!(
                "a q8_0 cache needs heads of a multiple of {GROUP} values, this model has {}; use --kv f16",
                kv.head_dim
            )));
        }
        Ok(KvCache { keys: store()?, values: store()?, kv_heads: kv.kv_heads, head_dim: kv.head_dim, group: kv.group })
    }

    /// Bytes when all pages are in use.
    pub fn bytes(&self) -> usize {
        let of = |store: &Store| match store {
            Store::F32(values) => 4 * values.len(),
            Store::F16(values) => 2 * values.len(),
            Store::Q8_0 { q, scales } => q.len() + 2 * scales.len(),
        };
        of(&self.keys) + of(&self.values)
    }

    /// Stores one head's key and value of the token at `slot` of `page`.
    ///
    /// # Safety
    /// The phase contract: no other worker touches this token's place of this head.
    pub unsafe fn store(&self, page: u32, slot: usize, head: usize, key: &[f32], value: &[f32]) {
        let d = self.head_dim;
        assert!(key.len() == d && value.len() == d && slot < PAGE && head < self.kv_heads);
        let base = (page as usize * self.kv_heads + head) * d * PAGE;
        // SAFETY: single elements of this token's place; raw writes, since a key's values interleave with those of
        // other tokens, which other workers may be writing.
        unsafe {
            match &self.keys {
                Store::F32(k) => put(k, key, |x| x, base + slot, PAGE),
                Store::F16(k) => put(k, key, f16::from_f32, base + slot, PAGE),
                Store::Q8_0 { q, scales } => {
                    for (g, group) in key.chunks_exact(GROUP).enumerate() {
                        let (scale, inverse) = group_scale(group);
                        put(scales, &[scale], f16::from_f32, base / GROUP + g * PAGE + slot, 1);
                        put(q, group, |x| quantize(x, inverse), base + g * GROUP * PAGE + slot, PAGE);
                    }
                }
            }
            match &self.values {
                Store::F32(v) => put(v, value, |x| x, base + slot * d, 1),
                Store::F16(v) => put(v, value, f16::from_f32, base + slot * d, 1),
                Store::Q8_0 { q, scales } => {
                    for (g, group) in value.chunks_exact(GROUP).enumerate() {
                        let (scale, inverse) = group_scale(group);
                        put(scales, &[scale], f16::from_f32, base / GROUP + slot * (d / GROUP) + g, 1);
                        put(q, group, |x| quantize(x, inverse), base + slot * d + g * GROUP, 1);
                    }
                }
            }
        }
    }

    /// `s (g, 64) = q (g, head_dim) . keys` of one page and head.
    ///
    /// # Safety
    /// The phase contract: nobody stores into this page.
    pub unsafe fn scores(
        &self,
        kernels: &PageKernels,
        page: u32,
        head: usize,
        q: &[f32],
        wide: &mut Widened,
        s: &mut [f32],
    ) {
        let d = self.head_dim;
        let base = (page as usize * self.kv_heads + head) * d * PAGE;
        let range = base..base + d * PAGE;
        // SAFETY: the caller's contract.
        unsafe {
            match &self.keys {
                Store::F32(k) => (kernels.scores_f32)(q, k.get(range), d, s),
                Store::F16(k) => (kernels.scores_f16)(q, k.get(range), d, s),
                Store::Q8_0 { q: k, scales } => {
                    let k = k.get(range.clone());
                    let scales = scales.get(range.start / GROUP..range.end / GROUP);
                    wide.0.resize(d * PAGE, 0.0);
                    for (i, (row, k)) in wide.0.chunks_exact_mut(PAGE).zip(k.chunks_exact(PAGE)).enumerate() {
                        let scales = &scales[i / GROUP * PAGE..][..PAGE];
                        for ((out, &k), scale) in row.iter_mut().zip(k).zip(scales) {
                            *out = f32::from(k) * scale.to_f32();
                        }
                    }
                    (kernels.scores_f32)(q, &wide.0, d, s);
                }
            }
        }
    }

    /// `acc (g, head_dim) += p (g, 64)[.., tokens] . values` of one page and head.
    ///
    /// # Safety
    /// The phase contract: nobody stores into this page.
    pub unsafe fn mix(
        &self,
        kernels: &PageKernels,
        page: u32,
        head: usize,
        p: &[f32],
        tokens: std::ops::Range<usize>,
        wide: &mut Widened,
        acc: &mut [f32],
    ) {
        let d = self.head_dim;
        let base = (page as usize * self.kv_heads + head) * d * PAGE;
        let range = base..base + d * PAGE;
        // SAFETY: the caller's contract.
        unsafe {
            match &self.values {
                Store::F32(v) => (kernels.mix_f32)(p, v.get(range), d, tokens, acc),
                Store::F16(v) => (kernels.mix_f16)(p, v.get(range), d, tokens, acc),
                Store::Q8_0 { q: v, scales } => {
                    let v = v.get(range.clone());
                    let scales = scales.get(range.start / GROUP..range.end / GROUP);
                    wide.0.resize(d * PAGE, 0.0);
                    for (g, (out, v)) in wide.0.chunks_exact_mut(GROUP).zip(v.chunks_exact(GROUP)).enumerate() {
                        let scale = scales[g].to_f32();
                        for (out, &v) in out.iter_mut().zip(v) {
                            *out = f32::from(v) * scale;
                        }
                    }
                    (kernels.mix_f32)(p, &wide.0, d, tokens, acc);
                }
            }
        }
    }

    /// Bytes of one page.
    pub fn page_bytes(&self) -> usize {
        let len = self.kv_heads * self.head_dim * PAGE;
        let of = |store: &Store| match store {
            Store::F32(_) => 4 * len,
            Store::F16(_) => 2 * len,
            Store::Q8_0 { .. } => len + 2 * (len / GROUP),
        };
        of(&self.keys) + of(&self.values)
    }

    /// Appends a page's bytes.
    pub fn save_page(&mut self, page: u32, out: &mut Vec<u8>) {
        let len = self.kv_heads * self.head_dim * PAGE;
        let at = |len: usize| page as usize * len..(page as usize + 1) * len;
        for store in [&mut self.keys, &mut self.values] {
            match store {
                Store::F32(s) => out.extend_from_slice(bytemuck::cast_slice(&s.as_mut()[at(len)])),
                Store::F16(s) => out.extend_from_slice(bytemuck::cast_slice(s.as_mut()[at(len)].reinterpret_cast())),
                Store::Q8_0 { q, scales } => {
                    out.extend_from_slice(bytemuck::cast_slice(&q.as_mut()[at(len)]));
                    let scales = scales.as_mut()[at(len / GROUP)].reinterpret_cast();
                    out.extend_from_slice(bytemuck::cast_slice(scales));
                }
            }
        }
    }

    /// Overwrites a page with what `save_page` gave; returns what is left of the bytes.
    pub fn load_page<'b>(&mut self, page: u32, bytes: &'b [u8]) -> &'b [u8] {
        let len = self.kv_heads * self.head_dim * PAGE;
        let at = |len: usize| page as usize * len..(page as usize + 1) * len;
        let mut rest = bytes;
        let mut fill = |to: &mut [u8]| {
            let (head, tail) = rest.split_at(to.len());
            to.copy_from_slice(head);
            rest = tail;
        };
        for store in [&mut self.keys, &mut self.values] {
            match store {
                Store::F32(s) => fill(bytemuck::cast_slice_mut(&mut s.as_mut()[at(len)])),
                Store::F16(s) => fill(bytemuck::cast_slice_mut(s.as_mut()[at(len)].reinterpret_cast_mut())),
                Store::Q8_0 { q, scales } => {
                    fill(bytemuck::cast_slice_mut(&mut q.as_mut()[at(len)]));
                    fill(bytemuck::cast_slice_mut(scales.as_mut()[at(len / GROUP)].reinterpret_cast_mut()));
                }
            }
        }
        rest
    }

    /// Copies a page to another.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let len = self.kv_heads * self.head_dim * PAGE;
        for store in [&mut self.keys, &mut self.values] {
            match store {
                Store::F32(s) => copy(s, len, from, to),
                Store::F16(s) => copy(s, len, from, to),
                Store::Q8_0 { q, scales } => {
                    copy(q, len, from, to);
                    copy(scales, len / GROUP, from, to);
                }
            }
        }
    }
}

fn copy<T: Copy + Default>(store: &mut Shared<T>, len: usize, from: u32, to: u32) {
    store.as_mut().copy_within(from as usize * len..(from as usize + 1) * len, to as usize * len);
}

/// Writes converted values at `at`, `at + stride`, ...
///
/// # Safety
/// The phase contract for exactly these places.
unsafe fn put<T: Copy + Default>(
    store: &Shared<T>,
    values: &[f32],
    convert: impl Fn(f32) -> T,
    at: usize,
    stride: usize,
) {
    assert!(at + (values.len() - 1) * stride < store.len());
    for (i, &x) in values.iter().enumerate() {
        // SAFETY: in bounds by the assertion; the caller rules out other accesses to these places.
        unsafe { store.as_ptr().add(at + i * stride).write(convert(x)) };
    }
}

/// The scale of a group, as f16 will hold it, and its inverse.
fn group_scale(group: &[f32]) -> (f32, f32) {
    // Not by `max`, which would leave a NaN out: so it makes the scale one, and with it every score.
    let amax = group.iter().fold(0.0_f32, |m, x| if x.is_nan() || x.abs() > m { x.abs() } else { m });
    let scale = f16::from_f32(amax / 127.0).to_f32();
    (scale, if scale > 0.0 { 1.0 / scale } else { 0.0 })
}

fn quantize(x: f32, inverse: f32) -> i8 {
    (x * inverse).round().clamp(-127.0, 127.0) as i8
}
