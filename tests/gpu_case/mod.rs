//! Small plans over random weights, run on the CPU and on the GPU.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::cell::OnceCell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use half::f16;
use rynd::backend::{Backend, Env, KvFormat, Phase, Seq, Token};
use rynd::cpu::{Cpu, CpuConfig};
use rynd::gguf::{Gguf, Writer};
use rynd::gpu::{Device, Devices, Gpu, GpuConfig, Handicap};
use rynd::plan::{
    Kv, KvId, Op, PAGE_TOKENS, PageGroup, Plan, RopeId, RopeTable, Sections, Side, Slot, SlotInfo, SlotKind, Step,
    Weight, WeightId, mixtures,
};
use rynd::weights::Weights;
use rynd_quant::Format;

/// A device for a test, or `None` when the machine has no adapter. One a kind, so that kernels are compiled once.
pub fn device(handicap: Handicap) -> Option<Device> {
    static OPEN: Mutex<Vec<(String, Option<Device>)>> = Mutex::new(vec![]);
    let key = format!("{handicap:?}");
    let mut open = OPEN.lock().unwrap();
    if let Some((_, device)) = open.iter().find(|(known, _)| *known == key) {
        return device.clone();
    }
    let device = open_device(handicap);
    open.push((key, device.clone()));
    device
}

fn open_device(handicap: Handicap) -> Option<Device> {
    let devices = Devices::list();
    let Some(report) = devices.reports().find(|report| report.refused.is_none()) else {
        assert!(std::env::var_os("RYND_REQUIRE_GPU").is_none(), "RYND_REQUIRE_GPU is set, and there is no adapter");
        eprintln!("skipped: no adapter");
        return None;
    };
    Some(devices.open(report.index, None, handicap).unwrap())
}

/// Normalised mean squared error.
pub fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    if error == 0.0 { 0.0 } else { error / size }
}

/// The same for what was added to `base`: a small sum is not hidden by what it was added to.
pub fn nmse_added(found: &[f32], expected: &[f32], base: &[f32]) -> f64 {
    let added = |values: &[f32]| values.iter().zip(base).map(|(v, b)| v - b).collect::<Vec<_>>();
    nmse(&added(found), &added(expected))
}

/// xorshift64: the same numbers in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In -1..1.
    pub fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.signed()).collect()
    }
}

/// Where a block keeps f16 scales; everything else may be any bytes.
fn scale_offsets(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
        _ => &[0],
    }
}

/// Random blocks with sensible scales.
pub fn blocks(format: Format, weights: usize, random: &mut Random) -> Vec<u8> {
    match format {
        Format::F32 => random.values(weights).iter().flat_map(|x| x.to_le_bytes()).collect(),
        Format::F16 => random.values(weights).iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Format::BF16 => random.values(weights).iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => {
            let mut bytes: Vec<u8> =
                (0..weights / format.block_len() * format.block_bytes()).map(|_| random.next() as u8).collect();
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                for &at in scale_offsets(format) {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(0.01 * random.signed()).to_le_bytes());
                }
            }
            bytes
        }
    }
}

/// How a case is run on the GPU.
#[derive(Clone, Default)]
pub struct Setting {
    pub handicap: Handicap,
    /// Wanted rows; all tokens' when `None`.
    pub rows: Option<Vec<u32>>,
    pub kv: KvFormat,
}

/// A plan in the making, its weights and its inputs.
pub struct Case {
    plan: Plan,
    tensors: Vec<(String, Format, Vec<u64>, Vec<u8>)>,
    inputs: Vec<Slot>,
    random: Random,
    pub vocab: usize,
    pub logits: Option<Slot>,
    weights: OnceCell<Weights>,
}

impl Case {
    pub fn new() -> Case {
        let plan = Plan {
            steps: vec![],
            sections: Sections::default(),
            slots: vec![],
            weights: vec![],
            kv: vec![],
            groups: vec![PageGroup { window: None }],
            states: vec![],
            mixtures: vec![],
            ropes: vec![],
            layers: 1,
            vocab: 0,
            hidden: Slot(0),
            logits: Slot(u32::MAX),
            context: 1 << 20,
        };
        Case {
            plan,
            tensors: vec![],
            inputs: vec![],
            random: Random::new(7),
            vocab: 100,
            logits: None,
            weights: OnceCell::new(),
        }
    }

    fn any_slot(&mut self, width: usize, kind: SlotKind, taken: bool) -> Slot {
        let buffer = self.plan.slots.len() as u32;
        self.plan.slots.push(SlotInfo { width, kind, buffer, taken });
        Slot(buffer)
    }

    /// Ids and weights of a router's picks.
    pub fn picks(&mut self, used: usize) -> [Slot; 2] {
        [self.any_slot(used, SlotKind::U32, false), self.slot(used)]
    }

    pub fn slot(&mut self, width: usize) -> Slot {
        self.any_slot(width, SlotKind::F32, false)
    }

    pub fn taken_slot(&mut self, width: usize) -> Slot {
        self.any_slot(width, SlotKind::F32, true)
    }

    /// A slot that is filled at random before a run.
    pub fn input(&mut self, width: usize) -> Slot {
        let slot = self.slot(width);
        self.set_input(slot);
        slot
    }

    pub fn set_input(&mut self, slot: Slot) {
        self.inputs.push(slot);
    }

    /// A random tensor; the shape is (k, rows, experts).
    pub fn weight(&mut self, format: Format, shape: &[usize]) -> WeightId {
        let index = self.plan.weights.len();
        let name = format!("w{index}");
        let at = |i: usize| shape.get(i).copied().unwrap_or(1);
        let bytes = blocks(format, shape.iter().product(), &mut self.random);
        self.tensors.push((name.clone(), format, shape.iter().map(|&n| n as u64).collect(), bytes));
        let stride = format.row_bytes(at(0)).unwrap() * at(1);
        let (k, rows, experts) = (at(0), at(1), at(2));
        self.plan.weights.push(Weight { name, tensor: index, format, k, rows, experts, offset: 0, stride });
        WeightId(index as u32)
    }

    pub fn kv(&mut self, kv_heads: usize, head_dim: usize, window: Option<u32>) -> KvId {
        self.plan.kv.push(Kv { kv_heads, head_dim, window, group: 0 });
        KvId(self.plan.kv.len() as u32 - 1)
    }

    pub fn rope(&mut self, table: RopeTable) -> RopeId {
        self.plan.ropes.push(table);
        RopeId(self.plan.ropes.len() as u32 - 1)
    }

    pub fn push(&mut self, op: Op) {
        self.plan.steps.push(Step { op, layer: Some(0), side: Side::Gpu(0) });
    }

    pub fn steps(&self) -> usize {
        self.plan.steps.len()
    }

    /// The weights in a file, as an engine has them.
    pub fn weights(&self) -> &Weights {
        self.weights.get_or_init(|| {
            static FILES: AtomicU32 = AtomicU32::new(0);
            let name = format!("rynd-gpu-{}-{}.gguf", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
            let path: PathBuf = std::env::temp_dir().join(name);
            let mut writer = Writer::create(&path).unwrap();
            writer.set("general.architecture", "case").unwrap();
            for (name, format, shape, _) in &self.tensors {
                writer.declare(name, *format, shape).unwrap();
            }
            for (name, _, _, bytes) in &self.tensors {
                writer.write_tensor(name, bytes).unwrap();
            }
            writer.finish().unwrap();
            let gguf = Gguf::open(&path).unwrap();
            // The mapping keeps the bytes.
            std::fs::remove_file(&path).unwrap();
            let mut plan = self.plan.clone();
            plan.vocab = self.vocab;
            plan.mixtures = mixtures(&plan.steps);
            plan.logits = self.logits.unwrap_or(Slot(u32::MAX));
            Weights::new(gguf, Arc::new(plan))
        })
    }

    pub fn cpu(&self, batch: usize, pages: usize, kv: KvFormat) -> Cpu {
        // Exact mode widens the cache to f32: attention cases have no products and can do without.
        let exact = self.plan.kv.is_empty();
        Cpu::new(self.weights().clone(), &CpuConfig { threads: 1, batch, pages, states: 0, kv, exact }).unwrap()
    }

    pub fn gpu(&self, batch: usize, pages: usize, setting: &Setting) -> Option<Gpu> {
        let config = GpuConfig { index: 0, batch, pages, first_pages: pages, kv: setting.kv };
        Some(Gpu::new(device(setting.handicap)?, self.weights(), &config).unwrap())
    }

    pub fn width(&self, slot: Slot) -> usize {
        self.plan.slot(slot).width
    }

    /// Random inputs for so many tokens.
    pub fn fill(&self, tokens: usize, seed: u64) -> Vec<(Slot, Vec<f32>)> {
        let mut random = Random::new(seed);
        self.inputs.iter().map(|&slot| (slot, random.values(tokens * self.width(slot)))).collect()
    }

    /// Runs both executors once over fresh inputs and compares a slot.
    pub fn check(&self, what: &str, out: Slot, tokens: usize, close: f64) {
        self.check_with(what, out, tokens, close, &Setting::default());
    }

    pub fn check_with(&self, what: &str, out: Slot, tokens: usize, close: f64, setting: &Setting) {
        let Some(mut gpu) = self.gpu(tokens, 4, setting) else { return };
        let mut cpu = self.cpu(tokens, 4, setting.kv);
        let rows: Vec<u32> = setting.rows.clone().unwrap_or_else(|| (0..tokens as u32).collect());
        let tokens: Vec<Token> =
            (0..tokens as u32).map(|i| Token { id: (i * 7919 + 99) % self.vocab as u32, seq: 0, pos: i }).collect();
        let seqs = [Seq::new(&[&[2, 0, 1, 3]], Phase::Decode)];
        let env = Env::new(&tokens, &rows, &seqs);
        let inputs = self.fill(tokens.len(), 1);
        for (slot, values) in &inputs {
            cpu.write(*slot, values).unwrap();
            gpu.write(*slot, values).unwrap();
        }
        cpu.run(0..self.steps(), &env).unwrap();
        gpu.run(0..self.steps(), &env).unwrap();
        let taken = self.plan.slot(out).taken;
        let n = if taken { rows.len() } else { tokens.len() } * self.width(out);
        let (mut expected, mut found) = (vec![0.0; n], vec![0.0; n]);
        cpu.read(out, &mut expected).unwrap();
        gpu.read(out, &mut found).unwrap();
        let off = match inputs.iter().find(|(slot, _)| *slot == out) {
            Some((_, base)) => nmse_added(&found, &expected, base),
            None => nmse(&found, &expected),
        };
        assert!(off <= close, "{what}: NMSE {off:.1e}\n{:?}\n{:?}", &found[..n.min(8)], &expected[..n.min(8)]);
    }

    /// Stores `filled` tokens, then runs batches one after the other on the same sequence and compares a slot after
    /// each.
    pub fn check_batches(&self, what: &str, out: Slot, filled: usize, batches: &[usize], close: f64, kv: KvFormat) {
        const FILL: usize = 512;
        let total: usize = filled + batches.iter().sum::<usize>();
        let pages = total.div_ceil(PAGE_TOKENS);
        let fills = (0..filled).step_by(FILL).map(|at| (filled - at).min(FILL));
        let most = fills.clone().chain(batches.iter().copied()).max().unwrap();
        let Some(mut gpu) = self.gpu(most, pages, &Setting { kv, ..Setting::default() }) else { return };
        let mut cpu = self.cpu(most, pages, kv);
        // Pages in an order that is not their own.
        let table: Vec<u32> = (0..pages as u32).rev().collect();
        let mut pos = 0;
        let runs = fills.map(|n| (n, false)).chain(batches.iter().map(|&n| (n, true)));
        for (i, (n, compared)) in runs.enumerate() {
            let tokens: Vec<Token> = (0..n as u32).map(|j| Token { id: 0, seq: 0, pos: pos + j }).collect();
            let tables: [&[u32]; 1] = [&table];
            let seqs = [Seq::new(&tables, Phase::Decode)];
            let env = Env::new(&tokens, &[], &seqs);
            for (slot, values) in self.fill(n, i as u64 + 1) {
                cpu.write(slot, &values).unwrap();
                gpu.write(slot, &values).unwrap();
            }
            pos += n as u32;
            // The first step stores keys and values.
            let steps = if compared { self.steps() } else { 1 };
            cpu.run(0..steps, &env).unwrap();
            gpu.run(0..steps, &env).unwrap();
            if compared {
                let len = n * self.width(out);
                let (mut expected, mut found) = (vec![0.0; len], vec![0.0; len]);
                cpu.read(out, &mut expected).unwrap();
                gpu.read(out, &mut found).unwrap();
                let off = nmse(&found, &expected);
                assert!(off <= close, "{what}, {n} tokens that end at {pos}: NMSE {off:.1e}");
            }
        }
    }
}
