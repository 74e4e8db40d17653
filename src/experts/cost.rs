//! The cost model: where a model's parts go on a machine, and how fast that is. Pure arithmetic.
//!
//! For one token and layer: `t = dense / B + sync + max(H e / B_vram, M e / B_ram) + D e / B_disk`, where of the k experts
//! picked H are in VRAM, M in RAM, D on disk, and e is an expert's bytes. Misses are computed where they lie, at the
//! same time as the hits; nothing waits for an upload. Tiers are exclusive: a byte in VRAM is not kept in RAM as well.
//!
//! What it can not know is how often the router picks what is resident. A share r of the experts, chosen by use, answers
//! r^a of the picks: a is 0.145 for text that stays on its topic and 0.42 for text that wanders, which brackets published
//! replays of routing traces between a tenth and nine tenths resident. A measured hit rate replaces the guess.

use super::rig::Rig;
use super::shape::{Layer, Shape};
use super::waves::{self, Expert, Settled, WaveRates, Work, touched};

/// Bytes that rynd needs beside weights and cache: vocabulary, activations, program.
pub const OWN_BYTES: u64 = 150 << 20;

/// Exponents of the hit rate: text that wanders, text that stays.
pub const WANDERS: f64 = 0.42;
pub const STAYS: f64 = 0.145;

/// How much of a model lies in one tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Held {
    /// Attention, norms, routers, shared experts, output matrix.
    pub dense_bytes: u64,
    pub expert_bytes: u64,
    /// Key-value cache and recurrent state of the whole context.
    pub cache_bytes: u64,
}

impl Held {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.dense_bytes + self.expert_bytes + self.cache_bytes
    }
}

/// What goes where.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Placement {
    pub vram: Held,
    pub ram: Held,
    pub disk: Held,
    /// Layers whose attention and cache are in VRAM.
    pub gpu_layers: usize,
    /// Bytes by which cache and rynd itself exceed the memory: it can not run.
    pub short_bytes: u64,
}

impl Placement {
    /// Nothing has to be read from disk while tokens are made.
    pub fn fits(&self) -> bool {
        self.short_bytes == 0 && self.disk.bytes() == 0
    }
}

/// A context and how its cache is stored.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub tokens: u64,
    pub bytes_per_value: f64,
}

impl Context {
    fn bytes(&self, values: u64) -> u64 {
        (values as f64 * self.bytes_per_value) as u64
    }
}

/// Cache of the first `tokens` tokens, recurrent state included.
pub fn cache_bytes(shape: &Shape, context: Context) -> u64 {
    context.bytes(shape.kv_values(context.tokens)) + shape.state_bytes()
}

/// Puts dense weights and cache of as many layers as fit into VRAM, fills it up with experts, then RAM, then disk.
pub fn place(shape: &Shape, rig: &Rig, context: Context) -> Placement {
    let mut placed = Placement::default();
    let mut vram = rig.vram();
    // With unified memory everything is in the one pool; else rynd itself is in RAM, below.
    if rig.unified {
        vram = vram.saturating_sub(OWN_BYTES);
    }
    // The head is read for every token, so it goes first.
    if vram > 0 && shape.head_bytes <= vram {
        placed.vram.dense_bytes = shape.head_bytes;
        vram -= shape.head_bytes;
    } else {
        placed.ram.dense_bytes = shape.head_bytes;
    }
    for layer in &shape.layers {
        let cached = layer.window.map_or(context.tokens, |w| w.min(context.tokens)) * layer.kv_values;
        let cache = context.bytes(cached) + layer.state_bytes;
        let needed = layer.dense_bytes + cache;
        let held = if vram > 0 && needed <= vram {
            vram -= needed;
            placed.gpu_layers += 1;
            &mut placed.vram
        } else {
            &mut placed.ram
        };
        held.dense_bytes += layer.dense_bytes;
        held.cache_bytes += cache;
    }
    // One row of the embeddings is read a token; on a card it would be wasted.
    let embedding = if rig.unified { &mut placed.vram } else { &mut placed.ram };
    embedding.dense_bytes += shape.embedding_bytes;
    if rig.unified {
        vram = vram.saturating_sub(shape.embedding_bytes);
    }

    let mut ram = rig.ram_bytes;
    let must = placed.ram.cache_bytes + if rig.unified { 0 } else { OWN_BYTES };
    placed.short_bytes = must.saturating_sub(ram);
    ram = ram.saturating_sub(must);
    if placed.ram.dense_bytes > ram {
        placed.disk.dense_bytes = placed.ram.dense_bytes - ram;
        placed.ram.dense_bytes = ram;
    }
    ram -= placed.ram.dense_bytes;

    let mut experts = shape.expert_bytes();
    for (room, held) in [(vram, &mut placed.vram), (ram, &mut placed.ram)] {
        held.expert_bytes = experts.min(room);
        experts -= held.expert_bytes;
    }
    placed.disk.expert_bytes = experts;
    placed
}

/// Shares of a token's picks that are found in VRAM, and in VRAM or RAM.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Hits {
    pub vram: f64,
    pub memory: f64,
}

/// The hit rates of a placement for an exponent (`WANDERS`, `STAYS`).
pub fn hits(shape: &Shape, placed: &Placement, exponent: f64) -> Hits {
    let all = shape.expert_bytes();
    let rate = |bytes: u64| match bytes {
        0 => 0.0,
        _ if bytes >= all => 1.0,
        _ => (bytes as f64 / all as f64).powf(exponent),
    };
    let vram = placed.vram.expert_bytes;
    Hits { vram: rate(vram), memory: rate(vram + placed.ram.expert_bytes) }
}

/// One decoded token.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Decode {
    pub tokens_per_second: f64,
    pub hits: Hits,
    /// Bytes read of each tier.
    pub vram_bytes: u64,
    pub ram_bytes: u64,
    pub disk_bytes: u64,
}

/// Speed of decoding at `depth` tokens of context.
pub fn decode(shape: &Shape, rig: &Rig, placed: &Placement, context: Context, depth: u64, hits: Hits) -> Decode {
    let cache = cache_bytes(shape, Context { tokens: depth, ..context }) as f64;
    let in_vram =
        share(placed.vram.cache_bytes, placed.vram.cache_bytes + placed.ram.cache_bytes, placed.gpu_layers > 0);
    // All of the dense part is read but the embeddings, of which a token needs one row.
    let embedding = shape.embedding_bytes;
    let (vram_rows, ram_rows) = if rig.unified { (embedding, 0) } else { (0, embedding) };
    let dense_vram = placed.vram.dense_bytes.saturating_sub(vram_rows) as f64 + cache * in_vram;
    let dense_ram = placed.ram.dense_bytes.saturating_sub(ram_rows) as f64 + cache * (1.0 - in_vram);
    let dense_disk = placed.disk.dense_bytes as f64;
    let memory = hits.memory.clamp(0.0, 1.0);
    let vram = hits.vram.clamp(0.0, memory);

    let mut seconds = dense_vram / rig.vram_rate + dense_ram / rig.ram_rate + dense_disk / rig.disk_rate;
    let mut bytes = [dense_vram, dense_ram, dense_disk];
    for layer in &shape.layers {
        seconds += rig.sync_seconds;
        let picked = (layer.used * layer.expert_bytes) as f64;
        let (hit, miss, cold) = (picked * vram, picked * (memory - vram), picked * (1.0 - memory));
        seconds += (hit / rig.vram_rate).max(miss / rig.ram_rate) + cold / rig.disk_rate;
        bytes = [bytes[0] + hit, bytes[1] + miss, bytes[2] + cold];
    }
    Decode {
        tokens_per_second: 1.0 / seconds,
        hits: Hits { vram, memory },
        vram_bytes: bytes[0] as u64,
        ram_bytes: bytes[1] as u64,
        disk_bytes: bytes[2] as u64,
    }
}

fn share(part: u64, whole: u64, if_empty: bool) -> f64 {
    if whole == 0 { f64::from(u8::from(if_empty)) } else { part as f64 / whole as f64 }
}

/// Where a prompt's experts are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Layers pass through VRAM in double-buffered waves.
    Streamed,
    /// The CPU computes what is not in VRAM.
    Cpu,
    /// Some experts pass through VRAM while the CPU computes the others.
    Split,
}

/// One batch of prompt tokens.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Prefill {
    pub batch: u64,
    pub tokens_per_second: f64,
    pub way: Way,
    /// What the batch waits for: "bus", "disk", "memory" or "arithmetic".
    pub bound: &'static str,
}

/// Speed of a prompt in batches of `batch` tokens, the fastest way. Attention's own work, which grows with the depth, is
/// not counted.
pub fn prefill(shape: &Shape, rig: &Rig, placed: &Placement, batch: u64) -> Prefill {
    let tokens = batch as f64;
    let picked = |l: &Layer| touched(l.experts as f64, l.used as f64, tokens);
    let all = shape.expert_bytes().max(1) as f64;
    let read: f64 = shape.layers.iter().map(|l| picked(l) * l.expert_bytes as f64).sum();
    let part = |held: &Held| read * held.expert_bytes as f64 / all;
    let (in_vram, in_ram, on_disk) = (part(&placed.vram), part(&placed.ram), part(&placed.disk));
    let ops = 2.0 * shape.weights_per_token() as f64 * tokens;
    let disk = (on_disk + placed.disk.dense_bytes as f64) / rig.disk_rate;
    let outside = (in_ram + on_disk) / read.max(1.0);
    let rates = WaveRates {
        bus: if rig.unified { f64::INFINITY } else { rig.bus_rate },
        gpu_ops: rig.gpu_ops.unwrap_or(f64::INFINITY),
        cpu_ops: rig.cpu_ops.unwrap_or(f64::INFINITY),
        ram: rig.ram_rate,
        disk: rig.disk_rate,
        overlap: true,
    };

    let mut ways = vec![];
    let dense_ram = placed.ram.dense_bytes as f64;
    if rig.vram() > 0 {
        let memory = (placed.vram.dense_bytes as f64 + read) / rig.vram_rate;
        let bus = (in_ram + on_disk + dense_ram) / rates.bus;
        ways.push((Way::Streamed, [bus, disk, memory, ops / rates.gpu_ops]));
    }
    if rig.vram() == 0 || (rig.cpu_ops.is_some() && !rig.unified) {
        let experts = shape.layers.iter().map(|l| l.used * l.expert_weights).sum::<u64>() as f64;
        let of_cpu = if rig.vram() == 0 { 1.0 } else { outside * experts / shape.weights_per_token().max(1) as f64 };
        let memory = (dense_ram + in_ram + on_disk) / rates.ram;
        let hits = (placed.vram.dense_bytes as f64 + in_vram) / rig.vram_rate;
        ways.push((Way::Cpu, [0.0, disk, memory.max(hits), ops * of_cpu / rates.cpu_ops]));
    }
    if rig.vram() > 0 && rig.cpu_ops.is_some() && !rig.unified {
        let (mut passing, mut left) = (0.0, Work { bytes: dense_ram, ops: 0.0 });
        for layer in shape.layers.iter().filter(|layer| layer.experts > 0) {
            let [streams, stays] = split(&rates, layer, tokens, picked(layer), outside);
            passing += streams.bytes;
            left = Work { bytes: left.bytes + stays.bytes, ops: left.ops + stays.ops };
        }
        let memory = left.bytes / rates.ram;
        let vram = (placed.vram.dense_bytes as f64 + in_vram + passing) / rig.vram_rate;
        let arithmetic = ((ops - left.ops) / rates.gpu_ops).max(left.ops / rates.cpu_ops);
        ways.push((Way::Split, [passing / rates.bus, disk, memory.max(vram), arithmetic]));
    }
    const NAMES: [&str; 4] = ["bus", "disk", "memory", "arithmetic"];
    let timed = ways.into_iter().map(|(way, times)| {
        // Copies, reads and arithmetic overlap, so the slowest of them decides.
        let slowest = (0..4).max_by(|&a, &b| times[a].total_cmp(&times[b])).unwrap_or(0);
        (way, times[slowest], NAMES[slowest])
    });
    let best = timed.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((Way::Cpu, f64::INFINITY, "memory"));
    Prefill { batch, tokens_per_second: tokens / best.1, way: best.0, bound: best.2 }
}

/// Of a layer whose picks are spread evenly, and of whose experts this part is not in VRAM: what passes through VRAM, and what
/// the CPU computes.
fn split(rates: &WaveRates, layer: &Layer, tokens: f64, picked: f64, outside: f64) -> [Work; 2] {
    let each = tokens * layer.used as f64 / picked.max(1.0);
    let expert = Expert { bytes: layer.expert_bytes, weights: layer.expert_weights };
    let missing: Vec<(usize, u32)> = (0..(picked * outside).round() as usize).map(|e| (e, each as u32)).collect();
    let resident = (tokens * layer.used as f64 * (1.0 - outside)) as u64;
    let settled = Settled { resident, cpu_seconds: 0.0 };
    let streamed = waves::share(rates, expert, &missing, settled).streamed.len();
    let work = expert.work(each);
    [streamed, missing.len() - streamed].map(|n| Work { bytes: work.bytes * n as f64, ops: work.ops * n as f64 })
}
