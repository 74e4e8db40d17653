//! The key-value cache, the rotary embedding that fills it, and attention over its pages.
//!
//! Work is cut into tiles of neighbouring tokens of one sequence, times key-value heads, times chunks of the query heads
//! that share one. When these are too few to fill a GPU, the context is split as well and the parts are merged by
//! a second dispatch; a short context is one dispatch.

use bytemuck::NoUninit;

use super::{NONE, RunShape, Setup};
use crate::backend::{KvFormat, Token};
use crate::gpu::device::Device;
use crate::gpu::error::GpuError;
use crate::gpu::kernels::{AttentionShape, Kernel};
use crate::gpu::pipelines::{Call, Recorder};
use crate::plan::{self, Heads, Kv, KvId, Norm, Op, PAGE_TOKENS, RopeId, RopeLayout};

/// Workgroups that a step is split into at most, for one token and for a batch.
const NARROW_WORKGROUPS: usize = 512;
const WIDE_WORKGROUPS: usize = 256;
/// Pages of a part, at least: below this the merging costs more than the idle cores.
const PART_PAGES: usize = 2;
const MAX_PARTS: usize = 64;

/// One layer's cache on the device.
pub(in crate::gpu) struct KvBuffers {
    pub keys: wgpu::Buffer,
    pub values: wgpu::Buffer,
    pub key_page_bytes: u64,
    pub value_page_bytes: u64,
}

/// What to do about a cache that one binding can not hold.
const SMALLER: &str = "lower -c, or use --kv q8_0";

impl KvBuffers {
    /// An empty cache of `pages` pages, which may become `all`.
    pub(in crate::gpu) fn new(
        device: &Device,
        kv: &Kv,
        format: KvFormat,
        [pages, all]: [usize; 2],
    ) -> Result<KvBuffers, GpuError> {
        let page_bytes = page_bytes(kv, format);
        device.check_binding("cached keys", page_bytes * all as u64, SMALLER)?;
        let buffer = |what: &str| device.storage(what, page_bytes * pages as u64, SMALLER);
        Ok(KvBuffers {
            keys: buffer("cached keys")?,
            values: buffer("cached values")?,
            key_page_bytes: page_bytes,
            value_page_bytes: page_bytes,
        })
    }

    /// The same keys, or values, in a buffer of so many pages, as far as they fit; `None` when it has that size. The other
    /// buffer is there until the copy is done, and is returned.
    pub(in crate::gpu) fn resize(
        &mut self,
        device: &Device,
        part: Part,
        pages: usize,
    ) -> Result<Option<wgpu::Buffer>, GpuError> {
        let (what, buffer, page_bytes) = match part {
            Part::Keys => ("cached keys", &mut self.keys, self.key_page_bytes),
            Part::Values => ("cached values", &mut self.values, self.value_page_bytes),
        };
        let bytes = page_bytes * pages as u64;
        if buffer.size() == bytes {
            return Ok(None);
        }
        let new = device.storage(what, bytes, SMALLER)?;
        let mut encoder = device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &new, 0, bytes.min(buffer.size()));
        device.queue().submit([encoder.finish()]);
        Ok(Some(std::mem::replace(buffer, new)))
    }
}

/// Half of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) enum Part {
    Keys,
    Values,
}

/// Bytes of the keys, or of the values, of one page.
pub(in crate::gpu) fn page_bytes(kv: &Kv, format: KvFormat) -> u64 {
    let d = kv.head_dim;
    // Words of one head of one page, keys or values: see shaders/lib/kv_read_*.wgsl.
    let words = match format {
        KvFormat::F32 => d * PAGE_TOKENS,
        KvFormat::F16 => d / 2 * PAGE_TOKENS,
        KvFormat::Q8_0 => d / 4 * PAGE_TOKENS + d.div_ceil(64) * PAGE_TOKENS,
    };
    (words * kv.kv_heads * 4) as u64
}

/// How the query heads of one key-value head are cut, and the tokens that fill a tile.
#[derive(Clone, Copy)]
pub(in crate::gpu) struct AttentionPlan {
    shape: AttentionShape,
    chunk: usize,
    chunks: usize,
    tile_tokens: usize,
}

impl AttentionPlan {
    fn of(shape: AttentionShape, group: usize) -> AttentionPlan {
        let chunk = group.min(shape.rows as usize);
        AttentionPlan { shape, chunk, chunks: group.div_ceil(chunk), tile_tokens: (shape.rows as usize / chunk).max(1) }
    }

    fn narrow(heads: Heads) -> AttentionPlan {
        let group = heads.heads / heads.kv_heads;
        AttentionPlan::of(AttentionShape::narrow(heads.head_dim, group), group)
    }

    fn wide(heads: Heads) -> AttentionPlan {
        AttentionPlan::of(AttentionShape::wide(heads.head_dim), heads.heads / heads.kv_heads)
    }
}

/// The ways in which the steps want a run's tokens cut into tiles.
#[derive(Default)]
pub(in crate::gpu) struct TileSets(Vec<usize>); // tokens of a tile

impl TileSets {
    pub(in crate::gpu) fn new<'a>(ops: impl Iterator<Item = &'a Op>) -> TileSets {
        let mut sets: Vec<usize> = ops
            .filter_map(|op| {
                let Op::Attention(op) = op else { return None };
                Some([AttentionPlan::narrow(op.heads), AttentionPlan::wide(op.heads)])
            })
            .flatten()
            .map(|plan| plan.tile_tokens)
            .collect();
        sets.sort_unstable();
        sets.dedup();
        TileSets(sets)
    }

    fn index(&self, tile_tokens: usize) -> usize {
        self.0.iter().position(|&set| set == tile_tokens).unwrap_or_default()
    }

    /// Appends every set's tiles, (first token, tokens) each, and says where each set starts and how many tiles it has.
    pub(in crate::gpu) fn fill(&self, tokens: &[Token], env: &mut Vec<u32>, starts: &mut Vec<(u32, usize)>) {
        starts.clear();
        for &most in &self.0 {
            let start = env.len();
            let mut first = 0;
            for i in 1..=tokens.len() {
                if i == tokens.len() || tokens[i].seq != tokens[first].seq || i - first == most {
                    env.extend([first as u32, (i - first) as u32]);
                    first = i;
                }
            }
            starts.push((start as u32, (env.len() - start) / 2));
        }
    }

    /// Words of env that the tiles of a batch take, at most.
    pub(in crate::gpu) fn most_words(&self, batch: usize) -> usize {
        self.0.len() * 2 * batch
    }
}

/// Parts of the context, for so many items of work.
fn splits(workgroups: usize, items: usize, pages: usize, window: Option<u32>) -> usize {
    let pages = window.map_or(pages, |window| pages.min(window as usize / PAGE_TOKENS + 2));
    (workgroups / items).min(pages / PART_PAGES).clamp(1, MAX_PARTS)
}

/// Dispatches for one token.
pub(in crate::gpu) fn dispatches(heads: Heads, window: Option<u32>, pages: usize) -> usize {
    let items = heads.kv_heads * AttentionPlan::narrow(heads).chunks;
    if splits(NARROW_WORKGROUPS, items, pages, window) > 1 { 2 } else { 1 }
}

pub(super) fn refusal(heads: Heads, kv: KvFormat) -> Option<String> {
    let d = heads.head_dim;
    let step = if kv == KvFormat::Q8_0 { 32 } else { 8 };
    (d > AttentionShape::MAX_HEAD_DIM || !d.is_multiple_of(step)).then(|| {
        format!(
            "its heads have {d} values; the kernels take multiples of {step} up to {}",
            AttentionShape::MAX_HEAD_DIM
        )
    })
}

/// Scratch memory for the parts: rows times parts is bounded, whatever the batch.
pub(super) fn announce(setup: &mut Setup, heads: Heads) {
    let rows = [(AttentionPlan::narrow(heads), NARROW_WORKGROUPS), (AttentionPlan::wide(heads), WIDE_WORKGROUPS)]
        .map(|(plan, workgroups)| plan.shape.rows as usize * workgroups);
    setup.want_scratch("attention parts", rows[0].max(rows[1]) * (heads.head_dim + 2));
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct RopeParams {
    heads: u32,
    kv_heads: u32,
    half: u32,
    q_at: u32,
    q_stride: u32,
    k_at: u32,
    k_stride: u32,
    v_at: u32,
    v_stride: u32,
    q_norm: u32,
    k_norm: u32,
    q_eps: f32,
    k_eps: f32,
    angles_at: u32,
    page_group: u32,
}

/// `plan::RopeStore`.
pub(in crate::gpu) struct RopeStore {
    call: Call<RopeParams>,
    rope: Option<RopeId>,
    kv: KvId,
}

impl RopeStore {
    pub(super) fn new(setup: &mut Setup, op: &plan::RopeStore) -> Result<RopeStore, GpuError> {
        let &plan::RopeStore { q, k, v, heads, q_norm, k_norm, rope, kv } = op;
        let [(q, q_buffer), (k, k_buffer), (v, v_buffer)] = [q, k, v].map(|slot| setup.slots.of(slot));
        let table = rope.map(|id| &setup.plan.ropes[id.0 as usize]);
        let norm_at = |norm: Option<Norm>| norm.map_or(NONE, |norm| setup.vectors.norm(norm.weight));
        let params = RopeParams {
            heads: heads.heads as u32,
            kv_heads: heads.kv_heads as u32,
            half: table.map_or(0, |table| table.inv_freq.len() as u32),
            q_at: q.at as u32,
            q_stride: q.stride as u32,
            k_at: k.at as u32,
            k_stride: k.stride as u32,
            v_at: v.at as u32,
            v_stride: v.stride as u32,
            q_norm: norm_at(q_norm),
            k_norm: norm_at(k_norm),
            q_eps: q_norm.map_or(0.0, |norm| norm.eps),
            k_eps: k_norm.map_or(0.0, |norm| norm.eps),
            angles_at: 0,
            page_group: setup.plan.kv[kv.0 as usize].group as u32,
        };
        let halves = table.is_none_or(|table| table.layout == RopeLayout::Halves);
        let overrides = [("HEAD_DIM", heads.head_dim as u32), ("HALVES", halves.into())];
        let cache = cache(setup, kv)?;
        let buffers =
            [q_buffer, k_buffer, v_buffer, &setup.vectors.buffer, setup.env, setup.angles, &cache.keys, &cache.values];
        let call = setup.device.call(Kernel::RopeStore(setup.kv_format), &overrides, &buffers, params)?;
        Ok(RopeStore { call, rope, kv })
    }

    /// Stores into these buffers of its cache from now on.
    pub(in crate::gpu) fn rebind(&mut self, device: &Device, kv: KvId, cache: &KvBuffers) -> Result<(), GpuError> {
        if self.kv == kv { device.rebind(&mut self.call, 6, &[&cache.keys, &cache.values]) } else { Ok(()) }
    }

    pub(super) fn record(&self, recorder: &mut Recorder, run: &RunShape) {
        let angles_at = self.rope.map_or(0, |id| run.angles[id.0 as usize]);
        let params = RopeParams { angles_at, ..self.call.params };
        recorder.dispatch(&self.call, &params, [(params.heads + params.kv_heads) as usize, run.tokens, 1], 0);
    }
}

/// The cache of a layer whose steps run here.
fn cache<'a>(setup: &Setup<'a>, kv: KvId) -> Result<&'a KvBuffers, GpuError> {
    setup.kv[kv.0 as usize].as_ref().ok_or_else(|| GpuError::Unsupported {
        what: format!("the cache of layer {}", kv.0),
        why: "it was placed on another side".to_owned(),
    })
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct AttentionParams {
    heads: u32,
    kv_heads: u32,
    group: u32,
    chunk: u32,
    chunks: u32,
    q_at: u32,
    q_stride: u32,
    out_at: u32,
    out_stride: u32,
    tiles_at: u32,
    splits: u32,
    window: u32,
    page_group: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct MergeParams {
    heads: u32,
    splits: u32,
    out_at: u32,
    out_stride: u32,
}

/// `plan::Attention`.
pub(in crate::gpu) struct Attention {
    heads: Heads,
    kv: KvId,
    window: Option<u32>,
    narrow: Variant,
    wide: Option<Variant>,
    merge: Call<MergeParams>,
}

/// One shape of the kernel: with its result in place, and in parts.
struct Variant {
    plan: AttentionPlan,
    tile_set: usize,
    workgroups: usize,
    whole: Call<AttentionParams>,
    parts: Call<AttentionParams>,
}

impl Attention {
    pub(super) fn new(setup: &mut Setup, op: &plan::Attention) -> Result<Attention, GpuError> {
        let &plan::Attention { q, heads, kv, scale, window, out } = op;
        if let Some(why) = refusal(heads, setup.kv_format) {
            return Err(GpuError::Unsupported { what: "attention".to_owned(), why });
        }
        let (out, out_buffer) = setup.slots.of(out);
        let (q, q_buffer) = setup.slots.of(q);
        let parts = setup.scratch("attention parts")?;
        let cache = cache(setup, kv)?;
        let variant = |plan: AttentionPlan, workgroups: usize| -> Result<Variant, GpuError> {
            let params = AttentionParams {
                heads: heads.heads as u32,
                kv_heads: heads.kv_heads as u32,
                group: (heads.heads / heads.kv_heads) as u32,
                chunk: plan.chunk as u32,
                chunks: plan.chunks as u32,
                q_at: (q.at / 4) as u32,
                q_stride: (q.stride / 4) as u32,
                out_at: out.at as u32,
                out_stride: out.stride as u32,
                tiles_at: 0,
                splits: 1,
                window: window.unwrap_or(0),
                page_group: setup.plan.kv[kv.0 as usize].group as u32,
                scale,
            };
            let call = |to: &wgpu::Buffer| {
                let buffers = [q_buffer, &cache.keys, &cache.values, setup.env, to];
                setup.device.call(Kernel::Attention(setup.kv_format), &plan.shape.overrides(), &buffers, params)
            };
            let (whole, parts) = (call(out_buffer)?, call(&parts)?);
            Ok(Variant { tile_set: setup.tile_sets.index(plan.tile_tokens), plan, workgroups, whole, parts })
        };
        let narrow = variant(AttentionPlan::narrow(heads), NARROW_WORKGROUPS)?;
        let wide = if setup.batch > 1 { Some(variant(AttentionPlan::wide(heads), WIDE_WORKGROUPS)?) } else { None };
        let params =
            MergeParams { heads: heads.heads as u32, splits: 0, out_at: out.at as u32, out_stride: out.stride as u32 };
        let overrides = [("HEAD_DIM", heads.head_dim as u32)];
        let merge = setup.device.call(Kernel::AttentionMerge, &overrides, &[&parts, out_buffer], params)?;
        Ok(Attention { heads, kv, window, narrow, wide, merge })
    }

    /// Reads these buffers of its cache from now on.
    pub(in crate::gpu) fn rebind(&mut self, device: &Device, kv: KvId, cache: &KvBuffers) -> Result<(), GpuError> {
        if self.kv != kv {
            return Ok(());
        }
        for variant in [&mut self.narrow].into_iter().chain(&mut self.wide) {
            for call in [&mut variant.whole, &mut variant.parts] {
                device.rebind(call, 1, &[&cache.keys, &cache.values])?;
            }
        }
        Ok(())
    }

    pub(super) fn record(&self, recorder: &mut Recorder, run: &RunShape) {
        let variant = match &self.wide {
            Some(wide) if run.run_tokens > self.narrow.plan.tile_tokens => wide,
            _ => &self.narrow,
        };
        let (tiles_at, tiles) = run.tiles[variant.tile_set];
        let items = tiles * self.heads.kv_heads * variant.plan.chunks;
        let splits = splits(variant.workgroups, items, run.pages, self.window);
        let call = if splits == 1 { &variant.whole } else { &variant.parts };
        let params = AttentionParams { tiles_at, splits: splits as u32, ..call.params };
        recorder.dispatch(call, &params, [self.heads.kv_heads * variant.plan.chunks, tiles, splits], 0);
        if splits > 1 {
            let params = MergeParams { splits: splits as u32, ..self.merge.params };
            recorder.dispatch(&self.merge, &params, [self.heads.heads, run.tokens, 1], 0);
        }
    }
}
