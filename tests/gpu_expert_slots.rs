//! Mixtures of experts over slots: whatever lies in them, what the GPU sums and what it skips add up to the whole.
//!
//! The CPU executor in f32 is the reference: it sums the picks of resident experts when the weights of all others are
//! set to zero, and the other way round.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod gpu_case;

use gpu_case::{Case, Random, device, nmse, nmse_added};
use rynd::backend::{Backend, Env, KvFormat, Phase, Seq, Token};
use rynd::cpu::Cpu;
use rynd::gpu::{ExpertUploader, Gpu, GpuConfig, Handicap, NO_SLOT, SlotPool, expert_slot_bytes};
use rynd::plan::{self, Activation, Op, Routing, Slot, WeightId};
use rynd_quant::Format;

const CLOSE: f64 = 1e-6;

/// Two layers of a router and its experts; both add to one slot.
struct Mixture {
    case: Case,
    x: Slot,
    out: Slot,
    picks: [[Slot; 2]; 2], // by layer
    tensors: [[WeightId; 3]; 2],
    experts: usize,
    used: usize,
}

fn mixture(formats: [Format; 3], [n, ff, experts, used]: [usize; 4]) -> Mixture {
    let mut case = Case::new();
    let x = case.input(n);
    let out = case.input(n);
    let mut layers = vec![];
    for _ in 0..2 {
        let weight = case.weight(Format::F32, &[n, experts]);
        let [ids, weights] = case.picks(used);
        let [gate, up] = [0, 1].map(|i| case.weight(formats[i], &[n, ff, experts]));
        let down = case.weight(formats[2], &[ff, n, experts]);
        case.push(Op::Router(plan::Router { x, weight, routing: Routing::softmax(used), ids, weights }));
        case.push(Op::Experts(plan::Experts { x, ids, weights, used, gate, up, down, act: Activation::Silu, out }));
        layers.push(([ids, weights], [gate, up, down]));
    }
    let [a, b] = [layers[0], layers[1]];
    Mixture { case, x, out, picks: [a.0, b.0], tensors: [a.1, b.1], experts, used }
}

impl Mixture {
    fn gpu(&self, handicap: Handicap, index: u8, slots: usize, batch: usize) -> Option<Gpu> {
        let config = GpuConfig { index, batch, pages: 4, first_pages: 4, kv: KvFormat::F16 };
        let pools = [SlotPool { steps: vec![1, 3], slots, cuts: vec![], wave: 0 }];
        Some(Gpu::with_pools(device(handicap)?, self.case.weights(), &config, &pools).unwrap())
    }

    /// What `out` held before.
    fn base<'a>(&self, inputs: &'a [(Slot, Vec<f32>)]) -> &'a [f32] {
        &inputs.iter().find(|(slot, _)| *slot == self.out).unwrap().1
    }

    /// Puts an expert of a layer into a slot.
    fn upload(&self, uploader: &mut ExpertUploader, layer: usize, expert: usize, slot: usize) {
        let bytes = self.tensors[layer].map(|id| self.case.weights().expert(id, expert));
        let ticket = loop {
            match uploader.start(0, slot, bytes).unwrap() {
                Some(ticket) => break ticket,
                None => uploader.finish().unwrap(),
            }
        };
        uploader.finish().unwrap();
        assert!(uploader.is_done(&ticket).unwrap());
    }

    /// Fills slots at random: the map of each layer.
    fn fill(&self, gpu: &mut Gpu, slots: usize, filled: usize, random: &mut Random) -> [Vec<u32>; 2] {
        let mut uploader = gpu.expert_uploader(2).unwrap();
        let mut maps = [vec![NO_SLOT; self.experts], vec![NO_SLOT; self.experts]];
        let mut order: Vec<usize> = (0..slots).collect();
        let mut entries: Vec<usize> = (0..2 * self.experts).collect();
        for i in 0..filled {
            let other = |len: usize, random: &mut Random| i + random.next() as usize % (len - i);
            let (a, b) = (other(order.len(), random), other(entries.len(), random));
            order.swap(i, a);
            entries.swap(i, b);
            let (layer, expert) = (entries[i] / self.experts, entries[i] % self.experts);
            self.upload(&mut uploader, layer, expert, order[i]);
            maps[layer][expert] = order[i] as u32;
        }
        for (layer, map) in maps.iter().enumerate() {
            gpu.set_expert_slots(2 * layer + 1, map).unwrap();
        }
        maps
    }

    /// What the CPU adds to `out` for the picks that `counts` says, layer by layer.
    fn partial(
        &self,
        cpu: &mut Cpu,
        env: &Env,
        inputs: &[(Slot, Vec<f32>)],
        counts: impl Fn(usize, usize) -> bool,
    ) -> Vec<f32> {
        let t = env.tokens.len();
        for (slot, values) in inputs {
            cpu.write(*slot, values).unwrap();
        }
        for layer in 0..2 {
            cpu.run(2 * layer..2 * layer + 1, env).unwrap();
            let (mut ids, mut weights) = (vec![0; t * self.used], vec![0.0; t * self.used]);
            cpu.read_u32(self.picks[layer][0], &mut ids).unwrap();
            cpu.read(self.picks[layer][1], &mut weights).unwrap();
            for (id, weight) in ids.iter().zip(&mut weights) {
                if !counts(layer, *id as usize) {
                    *weight = 0.0;
                }
            }
            cpu.write(self.picks[layer][1], &weights).unwrap();
            cpu.run(2 * layer + 1..2 * layer + 2, env).unwrap();
        }
        let mut out = vec![0.0; t * self.case.width(self.out)];
        cpu.read(self.out, &mut out).unwrap();
        out
    }
}

fn tokens(n: usize) -> Vec<Token> {
    (0..n as u32).map(|pos| Token { id: 0, seq: 0, pos }).collect()
}

#[test]
fn resident_experts_are_summed_and_the_rest_is_left_to_others() {
    let handicaps = [
        Handicap::default(),
        // Two experts a bank of gate and up rows: more banks than one dispatch serves.
        Handicap { binding_bytes: Some(300 << 10), ..Handicap::default() },
        Handicap { no_subgroups: true, ..Handicap::default() },
    ];
    let mut random = Random::new(5);
    for handicap in handicaps {
        let formats =
            if handicap.no_subgroups { [Format::Q8_0; 3] } else { [Format::Q4_K, Format::Q4_K, Format::Q6_K] };
        let mixture = mixture(formats, [256, 256, 9, 3]);
        let all = 2 * mixture.experts;
        for (slots, filled) in [(1, 0), (1, 1), (all / 2, all / 2), (all + 3, all)] {
            let Some(mut gpu) = mixture.gpu(handicap, 0, slots, 70) else { return };
            let mut cpu = mixture.case.cpu(70, 4, KvFormat::F16);
            let maps = mixture.fill(&mut gpu, slots, filled, &mut random);
            for t in [1, 4, 5, 70] {
                let what = format!("{filled} of {all} resident, {t} tokens, {handicap:?}");
                let tokens = tokens(t);
                let seqs = [Seq::new(&[&[0, 1]], Phase::Decode)];
                let env = Env::new(&tokens, &[], &seqs);
                let inputs = mixture.case.fill(t, t as u64);
                let resident = |layer: usize, expert: usize| maps[layer][expert] != NO_SLOT;
                let hits = mixture.partial(&mut cpu, &env, &inputs, resident);
                for (slot, values) in &inputs {
                    gpu.write(*slot, values).unwrap();
                }
                gpu.run(0..4, &env).unwrap();
                let mut found = vec![0.0; hits.len()];
                gpu.read(mixture.out, &mut found).unwrap();
                let off = nmse_added(&found, &hits, mixture.base(&inputs));
                assert!(off <= CLOSE, "{what}: hits are {off:.1e} off");
                if filled == 0 {
                    assert_eq!(found, hits, "{what}: nothing is resident, nothing is added");
                }

                // The other side's sum completes it.
                let mut zeroed = inputs.clone();
                zeroed.iter_mut().filter(|(slot, _)| *slot == mixture.out).for_each(|(_, values)| values.fill(0.0));
                let misses = mixture.partial(&mut cpu, &env, &zeroed, |layer, expert| !resident(layer, expert));
                let whole = mixture.partial(&mut cpu, &env, &inputs, |_, _| true);
                gpu.add(mixture.out, &misses).unwrap();
                gpu.submit(0..0, &[mixture.out]).unwrap();
                gpu.read(mixture.out, &mut found).unwrap();
                let off = nmse_added(&found, &whole, mixture.base(&inputs));
                assert!(off <= CLOSE, "{what}: the whole is {off:.1e} off");
            }
        }
    }
}

#[test]
fn a_slot_is_given_from_one_expert_to_another_while_runs_are_submitted() {
    let mixture = mixture([Format::Q4_0; 3], [128, 96, 6, 2]);
    let Some(mut gpu) = mixture.gpu(Handicap::default(), 0, 2, 8) else { return };
    let mut cpu = mixture.case.cpu(8, 4, KvFormat::F16);
    let mut uploader = gpu.expert_uploader(1).unwrap();
    let tokens = tokens(8);
    let seqs = [Seq::new(&[&[0]], Phase::Decode)];
    let env = Env::new(&tokens, &[], &seqs);
    let inputs = mixture.case.fill(8, 3);
    for round in 0..12 {
        // Slot 0 holds one expert of the first layer after the other, slot 1 one of the second.
        let lies = [round % 6, (round * 5 + 2) % 6];
        for (layer, &expert) in lies.iter().enumerate() {
            gpu.set_expert_slots(2 * layer + 1, &[NO_SLOT; 6]).unwrap();
            let bytes = mixture.tensors[layer].map(|id| mixture.case.weights().expert(id, expert));
            let ticket = loop {
                match uploader.start(0, layer, bytes).unwrap() {
                    Some(ticket) => break ticket,
                    // The only staging buffer is on its way.
                    None => std::thread::yield_now(),
                }
            };
            // A run that is submitted meanwhile sees the map without it.
            gpu.run(0..4, &env).unwrap();
            while !uploader.is_done(&ticket).unwrap() {
                std::thread::yield_now();
            }
            let map: Vec<u32> = (0..6).map(|e| if e == expert { layer as u32 } else { NO_SLOT }).collect();
            gpu.set_expert_slots(2 * layer + 1, &map).unwrap();
        }
        let expected = mixture.partial(&mut cpu, &env, &inputs, |layer, expert| lies[layer] == expert);
        for (slot, values) in &inputs {
            gpu.write(*slot, values).unwrap();
        }
        gpu.run(0..4, &env).unwrap();
        let mut found = vec![0.0; expected.len()];
        gpu.read(mixture.out, &mut found).unwrap();
        let off = nmse_added(&found, &expected, mixture.base(&inputs));
        assert!(off <= CLOSE, "round {round}: {off:.1e} off");
    }
}

#[test]
fn waves_add_what_has_no_slot() {
    let handicaps = [
        Handicap::default(),
        // Two experts a bank of gate and up rows: a wave lies in several.
        Handicap { binding_bytes: Some(300 << 10), ..Handicap::default() },
    ];
    for handicap in handicaps {
        let mixture = mixture([Format::Q4_K, Format::Q4_K, Format::Q6_K], [256, 256, 9, 3]);
        let Some(device) = device(handicap) else { return };
        let config = GpuConfig { index: 0, batch: 70, pages: 4, first_pages: 4, kv: KvFormat::F16 };
        let wave = 5;
        let pools = [SlotPool { steps: vec![1, 3], slots: 6, cuts: vec![], wave }];
        let mut gpu = Gpu::with_pools(device, mixture.case.weights(), &config, &pools).unwrap();
        assert_eq!([gpu.wave_slots(0), gpu.wave_slots(1), gpu.wave_slots(3)], [0, wave, wave]);
        let mut cpu = mixture.case.cpu(70, 4, KvFormat::F16);
        let maps = mixture.fill(&mut gpu, 6, 6, &mut Random::new(8));
        let mut half = 0;
        for t in [2, 5, 70] {
            let tokens = tokens(t);
            let seqs = [Seq::new(&[&[0, 1]], Phase::Decode)];
            let env = Env::new(&tokens, &[], &seqs);
            let inputs = mixture.case.fill(t, t as u64);
            let whole = mixture.partial(&mut cpu, &env, &inputs, |_, _| true);
            for (slot, values) in &inputs {
                gpu.write(*slot, values).unwrap();
            }
            gpu.reset_counters();
            gpu.begin(&env).unwrap();
            let mut missing = 0;
            for layer in 0..2 {
                let step = 2 * layer + 1;
                gpu.submit(step - 1..step + 1, &[]).unwrap();
                // From the last expert to the first, over both halves in turn.
                let experts: Vec<usize> = (0..9).rev().filter(|&e| maps[layer][e] == NO_SLOT).collect();
                missing += experts.len();
                for experts in experts.chunks(wave - layer) {
                    let bytes = |&e: &usize| mixture.tensors[layer].map(|id| mixture.case.weights().expert(id, e));
                    let bytes: Vec<_> = experts.iter().map(bytes).collect();
                    gpu.upload_wave(step, half % 2, &bytes).unwrap();
                    gpu.submit_wave(step, half % 2, experts, true).unwrap();
                    half += 1;
                }
            }
            let mut found = vec![0.0; whole.len()];
            gpu.read(mixture.out, &mut found).unwrap();
            let off = nmse_added(&found, &whole, mixture.base(&inputs));
            assert!(off <= CLOSE, "{t} tokens, {handicap:?}: the whole is {off:.1e} off");
            let slot_bytes = expert_slot_bytes(mixture.case.weights().plan(), 1).unwrap();
            let counted = gpu.counters();
            assert_eq!(counted.streamed, missing as u64);
            assert_eq!(counted.streamed_bytes, missing as u64 * slot_bytes);
        }
        let error = gpu.upload_wave(0, 0, &[]).unwrap_err().to_string();
        assert!(error.contains("no room for waves"), "{error}");
    }
}

#[test]
fn a_gpu_sums_experts_of_steps_that_are_another_sides() {
    let mixture = mixture([Format::Q4_K, Format::Q4_K, Format::Q6_K], [256, 256, 5, 2]);
    let Some(mut gpu) = mixture.gpu(Handicap::default(), 1, 4, 6) else { return };
    let mut cpu = mixture.case.cpu(6, 4, KvFormat::F16);
    let maps = mixture.fill(&mut gpu, 4, 4, &mut Random::new(11));
    for t in [1, 6] {
        let tokens = tokens(t);
        let seqs = [Seq::new(&[&[0]], Phase::Decode)];
        let env = Env::new(&tokens, &[], &seqs);
        let mut inputs = mixture.case.fill(t, 9);
        inputs.iter_mut().filter(|(slot, _)| *slot == mixture.out).for_each(|(_, values)| values.fill(0.0));
        let expected = mixture.partial(&mut cpu, &env, &inputs, |layer, expert| maps[layer][expert] != NO_SLOT);
        // The picks come from where the router ran.
        let mut found = vec![0.0; expected.len()];
        for (slot, values) in &inputs {
            gpu.write(*slot, values).unwrap();
        }
        for layer in 0..2 {
            let (mut ids, mut weights) = (vec![0; t * mixture.used], vec![0.0; t * mixture.used]);
            cpu.write(mixture.x, &inputs.iter().find(|(slot, _)| *slot == mixture.x).unwrap().1).unwrap();
            cpu.run(2 * layer..2 * layer + 1, &env).unwrap();
            cpu.read_u32(mixture.picks[layer][0], &mut ids).unwrap();
            cpu.read(mixture.picks[layer][1], &mut weights).unwrap();
            gpu.write_u32(mixture.picks[layer][0], &ids).unwrap();
            gpu.write(mixture.picks[layer][1], &weights).unwrap();
            gpu.run(2 * layer + 1..2 * layer + 2, &env).unwrap();
        }
        gpu.read(mixture.out, &mut found).unwrap();
        let off = nmse(&found, &expected);
        assert!(off <= CLOSE, "{t} tokens: {off:.1e} off");
    }
}

#[test]
fn pools_say_what_they_can_not_hold() {
    let Some(device) = device(Handicap::default()) else { return };
    let mixture = mixture([Format::Q4_K, Format::Q4_K, Format::Q6_K], [256, 256, 5, 2]);
    let plan = mixture.case.weights().plan();
    // Q4_K stays as in the file, Q6_K rows of one block are padded to whole vec4s.
    assert_eq!(expert_slot_bytes(plan, 1).unwrap(), (2 * 256 * 144 + 256 * 224) as u64);
    let config = GpuConfig { index: 0, batch: 1, pages: 1, first_pages: 1, kv: KvFormat::F16 };
    let make = |steps: Vec<usize>, slots: usize| {
        let made = Gpu::with_pools(
            device.clone(),
            mixture.case.weights(),
            &config,
            &[SlotPool { steps, slots, cuts: vec![], wave: 0 }],
        );
        made.err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(make(vec![0], 1).contains("it is no mixture of experts"));
    assert!(make(vec![], 1).contains("names no step"));
    let mut mixed = Case::new();
    let x = mixed.input(256);
    let [ids, weights] = mixed.picks(1);
    let gate = mixed.weight(Format::Q4_K, &[256, 256, 2]);
    let up = mixed.weight(Format::Q6_K, &[256, 256, 2]);
    let down = mixed.weight(Format::Q6_K, &[256, 256, 2]);
    mixed.push(Op::Experts(plan::Experts { x, ids, weights, used: 1, gate, up, down, act: Activation::Silu, out: x }));
    assert!(expert_slot_bytes(mixed.weights().plan(), 0).unwrap_err().to_string().contains("can not share a kernel"));
}

#[test]
fn a_pool_gives_up_its_last_slots_and_takes_them_again() {
    // With small bindings a cut lies among many banks. No other test has these devices, whose memory is counted.
    for binding_bytes in [100 << 20, 301 << 10] {
        let handicap = Handicap { binding_bytes: Some(binding_bytes), ..Handicap::default() };
        let mixture = mixture([Format::Q4_K, Format::Q4_K, Format::Q6_K], [256, 256, 9, 3]);
        let Some(device) = device(handicap) else { return };
        let config = GpuConfig { index: 0, batch: 8, pages: 4, first_pages: 4, kv: KvFormat::F16 };
        let pools = [SlotPool { steps: vec![1, 3], slots: 12, cuts: vec![7, 3], wave: 0 }];
        let mut gpu = Gpu::with_pools(device.clone(), mixture.case.weights(), &config, &pools).unwrap();
        let mut cpu = mixture.case.cpu(8, 4, KvFormat::F16);
        let mut maps = mixture.fill(&mut gpu, 12, 12, &mut Random::new(4));
        let check = |gpu: &mut Gpu, cpu: &mut Cpu, maps: &[Vec<u32>; 2], what: &str| {
            for t in [1, 8] {
                let tokens = tokens(t);
                let seqs = [Seq::new(&[&[0]], Phase::Decode)];
                let env = Env::new(&tokens, &[], &seqs);
                let inputs = mixture.case.fill(t, 6);
                for (slot, values) in &inputs {
                    gpu.write(*slot, values).unwrap();
                }
                gpu.run(0..4, &env).unwrap();
                let expected = mixture.partial(cpu, &env, &inputs, |layer, expert| maps[layer][expert] != NO_SLOT);
                let mut found = vec![0.0; expected.len()];
                gpu.read(mixture.out, &mut found).unwrap();
                let off = nmse_added(&found, &expected, mixture.base(&inputs));
                assert!(off <= CLOSE, "{what}, {t} tokens, {binding_bytes}: {off:.1e} off");
            }
        };
        check(&mut gpu, &mut cpu, &maps, "all slots");
        let dispatches = |gpu: &mut Gpu| {
            gpu.reset_counters();
            gpu.run(0..4, &Env::new(&tokens(1), &[], &[Seq::new(&[&[0]], Phase::Decode)])).unwrap();
            gpu.counters().dispatches
        };
        // Three banks are one dispatch: cuts that are few cost nothing. Two for a router, two for its experts.
        let is_one_dispatch = binding_bytes > 1 << 20;
        assert!(dispatches(&mut gpu) == 8 || !is_one_dispatch);
        let full = device.allocated_bytes();
        let slot_bytes = gpu.slot_bytes(0);
        for (slots, moves) in [(7, vec![(9, 0), (11, 4)]), (3, vec![(4, 1), (5, 2)]), (0, vec![])] {
            gpu.move_experts(0, &moves).unwrap();
            for slot in maps.iter_mut().flatten() {
                // Whom a newcomer pushes out goes, as do those beyond the cut that were not moved.
                *slot = match moves.iter().find(|(from, _)| *from as u32 == *slot) {
                    Some((_, to)) => *to as u32,
                    None if *slot as usize >= slots || moves.iter().any(|(_, to)| *to as u32 == *slot) => NO_SLOT,
                    None => *slot,
                };
            }
            for (layer, map) in maps.iter().enumerate() {
                gpu.set_expert_slots(2 * layer + 1, map).unwrap();
            }
            gpu.resize_pool(0, slots).unwrap();
            assert_eq!(device.allocated_bytes(), full - (12 - slots) as u64 * slot_bytes);
            check(&mut gpu, &mut cpu, &maps, &format!("{slots} slots"));
            assert!(dispatches(&mut gpu) == if slots > 0 { 8 } else { 4 } || !is_one_dispatch, "{slots} slots");
        }
        gpu.resize_pool(0, 12).unwrap();
        assert_eq!(device.allocated_bytes(), full);
        check(&mut gpu, &mut cpu, &maps, "empty again");
        maps = mixture.fill(&mut gpu, 12, 12, &mut Random::new(8));
        check(&mut gpu, &mut cpu, &maps, "filled again");
        // What is not moved is gone.
        gpu.resize_pool(0, 7).unwrap();
        maps.iter_mut().flatten().filter(|slot| **slot >= 7).for_each(|slot| *slot = NO_SLOT);
        for (layer, map) in maps.iter().enumerate() {
            gpu.set_expert_slots(2 * layer + 1, map).unwrap();
        }
        check(&mut gpu, &mut cpu, &maps, "a cut without moves");
    }
}
