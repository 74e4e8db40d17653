//! Every operation on a GPU against the CPU executor in f32, at sizes that end within a tile, a unit, a page.
//!
//! Mesa's software Vulkan is a GPU like any other here. Without an adapter the tests say so and pass; with
//! RYND_REQUIRE_GPU=1 they fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod gpu_case;

use gpu_case::{Case, Setting, nmse};
use rynd::backend::{Backend, Env, KvFormat, Phase, Seq, Token};
use rynd::gpu::{Handicap, Layout};
use rynd::plan::{self, Activation, Heads, Norm, Op, Part, RopeLayout, RopeScaling, RopeTable, Routing, Slot};
use rynd_quant::Format;

/// Largest NMSE between two executors in f32.
const CLOSE: f64 = 1e-6;

/// Row counts that end within a pair, a workgroup, a tile.
const ROWS: [usize; 5] = [1, 31, 33, 128, 257];

/// Input widths for a format: one unit or block, and numbers of them that fill no lane team evenly.
fn widths(format: Format) -> Vec<usize> {
    match format.block_len() {
        1 => vec![1, 31, 33, 64, 257],
        32 => vec![32, 32 * 7, 32 * 33],
        block => vec![block, 3 * block],
    }
}

fn part(case: &mut Case, format: Format, k: usize, n: usize, bias: bool) -> Part {
    let weight = case.weight(format, &[k, n]);
    let bias = bias.then(|| case.weight(Format::F32, &[n]));
    Part { weight, bias, out: case.slot(n) }
}

fn norm(case: &mut Case, n: usize) -> Norm {
    Norm { weight: case.weight(Format::F32, &[n]), eps: 1e-6 }
}

/// `Op::Linear` of one part with these features.
fn linear(format: Format, k: usize, n: usize, features: [bool; 3]) -> (Case, Slot) {
    let [normed, bias, add] = features;
    let mut case = Case::new();
    let x = case.input(k);
    let norm = normed.then(|| norm(&mut case, k));
    let part = part(&mut case, format, k, n, bias);
    if add {
        case.set_input(part.out);
    }
    case.push(Op::Linear(plan::Linear { x, norm, parts: vec![part], add }));
    (case, part.out)
}

#[test]
fn products_of_every_format_for_few_tokens() {
    for format in Layout::formats() {
        for (i, k) in widths(format).into_iter().enumerate() {
            for (j, n) in ROWS.into_iter().enumerate() {
                let features = [(i + j) % 2 == 1, j % 3 == 1, (i + j) % 3 == 2];
                let tokens = [1, 2, 4][(i + j) % 3];
                let (case, out) = linear(format, k, n, features);
                case.check(&format!("{format} ({n}, {k}) x {tokens}, {features:?}"), out, tokens, CLOSE);
            }
        }
    }
}

#[test]
fn products_of_every_format_for_batches() {
    for format in Layout::formats() {
        for (i, k) in widths(format).into_iter().enumerate() {
            for (j, (n, tokens)) in [(1, 5), (33, 16), (129, 17), (257, 65), (64, 130)].into_iter().enumerate() {
                let features = [(i + j) % 2 == 1, j % 3 == 1, (i + j) % 3 == 2];
                let (case, out) = linear(format, k, n, features);
                case.check(&format!("{format} ({n}, {k}) x {tokens}, {features:?}"), out, tokens, CLOSE);
            }
        }
    }
}

#[test]
fn products_through_workgroup_memory_staging_buffers_and_checked_shaders() {
    let handicaps = [
        Handicap { no_subgroups: true, ..Handicap::default() },
        Handicap { staging: true, ..Handicap::default() },
        Handicap { bounds_checks: true, ..Handicap::default() },
    ];
    for handicap in handicaps {
        for format in Layout::formats() {
            let k = *widths(format).last().unwrap();
            for (n, tokens) in [(1, 1), (33, 2), (257, 1), (129, 17)] {
                let (case, out) = linear(format, k, n, [k.is_multiple_of(32), true, false]);
                let setting = Setting { handicap, ..Setting::default() };
                case.check_with(
                    &format!("{format} ({n}, {k}) x {tokens} with {handicap:?}"),
                    out,
                    tokens,
                    CLOSE,
                    &setting,
                );
            }
        }
    }
}

#[test]
fn products_with_activations_rounded_to_int8_are_close() {
    // 16 values share a scale, and each is off by at most half of 1/127 of their largest: for these inputs about 2.5e-5
    // of the square of a long product, and up to twice that for rows of few blocks.
    const ROUNDED: f64 = 1e-4;
    for no_subgroups in [false, true] {
        let handicap = Handicap { int8: Some(true), no_subgroups, ..Handicap::default() };
        let setting = Setting { handicap, ..Setting::default() };
        for format in Layout::formats().filter(|format| Layout::of(*format).is_some_and(Layout::is_packed)) {
            for (k, n, tokens, features) in [
                (256, 31, 1, [true, false, false]),
                (512, 33, 2, [false, true, true]),
                (1536, 257, 1, [true, true, false]),
            ] {
                let (case, out) = linear(format, k, n, features);
                case.check_with(&format!("{format} ({n}, {k}) x {tokens}, int8"), out, tokens, ROUNDED, &setting);
            }
        }
        // Rows longer than the kernel holds are multiplied in f32.
        let (case, out) = linear(Format::Q4_0, 16_384, 40, [true, false, false]);
        case.check_with("long rows", out, 1, CLOSE, &setting);
        let (case, out) = gated(Format::Q4_K, Format::Q4_K, 1536, 257, Activation::Silu, true);
        case.check_with("gated, int8", out, 1, 2.0 * ROUNDED, &setting);
    }
}

#[test]
fn matrices_beyond_the_binding_limit_are_split_into_banks() {
    let handicap = Handicap { binding_bytes: Some(64 << 10), ..Handicap::default() };
    let setting = Setting { handicap, ..Setting::default() };
    for format in [Format::F32, Format::Q4_K, Format::Q8_0] {
        for tokens in [1, 9] {
            let (case, out) = linear(format, 768, 501, [true, true, true]);
            case.check_with(&format!("{format} in banks x {tokens}"), out, tokens, CLOSE, &setting);
            let (case, out) = gated(format, format, 768, 251, Activation::Silu, true);
            case.check_with(&format!("gated {format} in banks x {tokens}"), out, tokens, CLOSE, &setting);
        }
    }
}

#[test]
fn a_projection_of_several_parts_writes_each() {
    // q and k share a matrix, v has another format; then all three share one; then widths that are no whole vec4s.
    let cases: [[(Format, usize); 3]; 3] = [
        [(Format::Q4_K, 64), (Format::Q4_K, 32), (Format::Q6_K, 32)],
        [(Format::Q8_0, 96), (Format::Q8_0, 32), (Format::Q8_0, 31)],
        [(Format::Q5_0, 33), (Format::Q5_0, 5), (Format::Q5_0, 64)],
    ];
    for parts in cases {
        for tokens in [1, 3, 20] {
            let mut case = Case::new();
            let x = case.input(256);
            let norm = norm(&mut case, 256);
            let parts: Vec<Part> =
                parts.iter().enumerate().map(|(i, &(f, n))| part(&mut case, f, 256, n, i != 1)).collect();
            case.push(Op::Linear(plan::Linear { x, norm: Some(norm), parts: parts.clone(), add: false }));
            for part in parts {
                case.check(&format!("part of {tokens} tokens"), part.out, tokens, CLOSE);
            }
        }
    }
}

fn gated(gate: Format, up: Format, k: usize, ff: usize, act: Activation, normed: bool) -> (Case, Slot) {
    let mut case = Case::new();
    let x = case.input(k);
    let norm = normed.then(|| norm(&mut case, k));
    let (gate, up, out) = (case.weight(gate, &[k, ff]), case.weight(up, &[k, ff]), case.slot(ff));
    case.push(Op::GatedUp(plan::GatedUp { x, norm, gate, up, act, out }));
    (case, out)
}

#[test]
fn gated_feed_forward_with_both_activations_and_mixed_formats() {
    for (gate, up) in [(Format::Q4_K, Format::Q4_K), (Format::Q4_K, Format::Q6_K), (Format::F32, Format::F16)] {
        for act in [Activation::Silu, Activation::GeluTanh] {
            for (ff, tokens) in [(1, 1), (33, 4), (257, 1), (129, 5), (65, 70)] {
                let k = if gate == Format::F32 { 33 } else { 512 };
                let (case, out) = gated(gate, up, k, ff, act, true);
                case.check(&format!("{gate} gated {up} ({ff}, {k}) x {tokens} {act:?}"), out, tokens, CLOSE);
            }
        }
    }
}

#[test]
fn norms_alone_and_added() {
    for n in [1, 31, 33, 256, 257, 1000] {
        for add in [false, true] {
            let mut case = Case::new();
            let x = case.input(n);
            let norm = norm(&mut case, n);
            let out = case.slot(n);
            if add {
                case.set_input(out);
            }
            case.push(Op::RmsNorm(plan::RmsNorm { x, norm, out, add }));
            case.check(&format!("norm of {n}, add {add}"), out, 3, CLOSE);
        }
    }
}

#[test]
fn embeddings_of_every_format_and_over_banks() {
    for format in Layout::formats() {
        let k = *widths(format).last().unwrap();
        for binding_bytes in [None, Some(64 << 10)] {
            let mut case = Case::new();
            let table = case.weight(format, &[k, 301]);
            case.vocab = 301;
            let out = case.slot(k);
            case.push(Op::Embed(plan::Embed { table, scale: 1.5, out }));
            let setting = Setting { handicap: Handicap { binding_bytes, ..Handicap::default() }, ..Setting::default() };
            case.check_with(&format!("embedding in {format}"), out, 7, CLOSE, &setting);
        }
    }
}

#[test]
fn wanted_rows_are_taken_and_their_logits_come_back_in_rounds() {
    for (rows, tokens) in [(vec![0], 1), (vec![2, 3, 8], 9), ((0..40).collect(), 40)] {
        let mut case = Case::new();
        let x = case.input(64);
        let taken = case.taken_slot(64);
        let norm = norm(&mut case, 64);
        let weight = case.weight(Format::Q8_0, &[64, 600]);
        let out = case.taken_slot(600);
        case.push(Op::TakeRows(plan::TakeRows { x, out: taken }));
        case.push(Op::Linear(plan::Linear {
            x: taken,
            norm: Some(norm),
            parts: vec![Part { weight, bias: None, out }],
            add: false,
        }));
        case.logits = Some(out);
        // 32 KiB hold 13 rows of logits.
        for binding_bytes in [None, Some(64 << 10)] {
            let handicap = Handicap { binding_bytes, ..Handicap::default() };
            let setting = Setting { handicap, rows: Some(rows.clone()), ..Setting::default() };
            case.check_with(&format!("{} of {tokens} rows", rows.len()), out, tokens, CLOSE, &setting);
        }
    }
}

#[test]
fn the_largest_logit_of_each_wanted_row_is_found_without_reading_the_others() {
    for vocab in [1, 255, 256, 257, 1000, 70_001] {
        let mut case = Case::new();
        let x = case.input(32);
        let taken = case.taken_slot(32);
        let weight = case.weight(Format::Q8_0, &[32, vocab]);
        let out = case.taken_slot(vocab);
        case.push(Op::TakeRows(plan::TakeRows { x, out: taken }));
        case.push(Op::Linear(plan::Linear {
            x: taken,
            norm: None,
            parts: vec![Part { weight, bias: None, out }],
            add: false,
        }));
        (case.logits, case.vocab) = (Some(out), vocab);
        // The rows of 70,001 logits come in rounds when a binding holds fewer.
        let handicap = Handicap { binding_bytes: Some(1 << 20), ..Handicap::default() };
        let Some(mut gpu) = case.gpu(9, 1, &Setting { handicap, ..Setting::default() }) else { return };
        let mut cpu = case.cpu(9, 1, KvFormat::F16);
        let tokens: Vec<Token> = (0..9).map(|pos| Token { id: 0, seq: 0, pos }).collect();
        for rows in [vec![0], vec![8], vec![1, 2, 4, 5, 7, 8]] {
            let seqs = [Seq::new(&[&[0]], Phase::Decode)];
            let env = Env::new(&tokens, &rows, &seqs);
            let mut values = case.fill(9, rows.len() as u64).remove(0).1;
            // Equal logits everywhere: the first one counts.
            values[8 * 32..].fill(0.0);
            cpu.write(x, &values).unwrap();
            gpu.write(x, &values).unwrap();
            gpu.reset_counters();
            let (mut expected, mut found) = (vec![None; rows.len()], vec![None; rows.len()]);
            cpu.run_best(0..2, &env, (out, vocab), &mut expected).unwrap();
            gpu.run_best(0..2, &env, (out, vocab), &mut found).unwrap();
            assert_eq!(found, expected, "{vocab} logits of rows {rows:?}");
            assert!(rows.last() != Some(&8) || found.last() == Some(&Some(0)), "ties go to the lowest");
            let counters = gpu.counters();
            assert_eq!((counters.submits, counters.read_back_bytes), (1, 4 * rows.len() as u64));
        }
        // What is not finite is told, wherever it lies.
        let mut values = case.fill(9, 1).remove(0).1;
        values[3 * 32] = f32::NAN;
        values[4 * 32] = f32::INFINITY;
        gpu.write(x, &values).unwrap();
        let mut found = [None; 3];
        gpu.run_best(
            0..2,
            &Env::new(&tokens, &[2, 3, 4], &[Seq::new(&[&[0]], Phase::Decode)]),
            (out, vocab),
            &mut found,
        )
        .unwrap();
        assert_eq!(found.map(|best| best.is_some()), [true, false, false]);
    }
}

/// Rope, store and attention over one cache.
struct AttentionCase {
    heads: Heads,
    window: Option<u32>,
    norms: bool,
    rope_dims: usize,
    layout: RopeLayout,
}

impl AttentionCase {
    fn new(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionCase {
        AttentionCase {
            heads: Heads { heads, kv_heads, head_dim },
            window: None,
            norms: true,
            rope_dims: head_dim,
            layout: RopeLayout::Halves,
        }
    }

    fn case(&self) -> (Case, Slot) {
        let mut case = Case::new();
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let [q, k, v] = [heads, kv_heads, kv_heads].map(|n| case.input(n * head_dim));
        let q_norm = self.norms.then(|| norm(&mut case, head_dim));
        let k_norm = self.norms.then(|| norm(&mut case, head_dim));
        let kv = case.kv(kv_heads, head_dim, self.window);
        let rope = (self.rope_dims > 0)
            .then(|| case.rope(RopeTable::new(self.layout, self.rope_dims, 1e4, RopeScaling::None, None)));
        let out = case.slot(heads * head_dim);
        case.push(Op::RopeStore(plan::RopeStore { q, k, v, heads: self.heads, q_norm, k_norm, rope, kv }));
        let scale = 1.0 / (head_dim as f32).sqrt();
        case.push(Op::Attention(plan::Attention { q, heads: self.heads, kv, scale, window: self.window, out }));
        (case, out)
    }
}

#[test]
fn attention_at_every_tile_edge() {
    let shapes = [
        AttentionCase::new(7, 1, 64),
        AttentionCase { window: Some(70), layout: RopeLayout::Pairs, ..AttentionCase::new(4, 4, 32) },
        AttentionCase { norms: false, ..AttentionCase::new(8, 2, 128) },
        AttentionCase { window: Some(16), ..AttentionCase::new(4, 1, 256) },
        AttentionCase { rope_dims: 16, ..AttentionCase::new(6, 2, 80) },
        AttentionCase { rope_dims: 0, ..AttentionCase::new(40, 2, 8) },
    ];
    for shape in shapes {
        let (case, out) = shape.case();
        let what = format!("{:?}, window {:?}", shape.heads, shape.window);
        // Prefill by batches that end around a page, then single tokens.
        for batches in [vec![1, 1, 1], vec![63, 1, 1, 1], vec![64, 65, 1], vec![3, 130, 7, 1], vec![200, 56, 1, 1]] {
            case.check_batches(&format!("{what}, {batches:?}"), out, 0, &batches, CLOSE, KvFormat::F16);
        }
    }
}

#[test]
fn attention_over_every_cache_format() {
    for kv in [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0] {
        for head_dim in [32, 64, 96, 128, 256] {
            let (case, out) = AttentionCase::new(4, 2, head_dim).case();
            case.check_batches(&format!("{kv:?}, heads of {head_dim}"), out, 0, &[70, 1, 60, 1], CLOSE, kv);
        }
    }
}

#[test]
fn attention_over_contexts_that_are_split_and_merged() {
    let (case, out) = AttentionCase::new(4, 2, 32).case();
    for filled in [254, 255, 256, 1000, 4095] {
        case.check_batches("long context", out, filled, &[1, 1, 3, 40], CLOSE, KvFormat::F16);
    }
    let (case, out) = AttentionCase { window: Some(700), ..AttentionCase::new(4, 2, 32) }.case();
    case.check_batches("window of 700", out, 1500, &[20, 1, 1], CLOSE, KvFormat::F16);
}

#[test]
fn attention_over_70_000_tokens() {
    // A window may be longer than what a loop of some drivers can count, too.
    for (kv, window) in [(KvFormat::F16, None), (KvFormat::Q8_0, Some(66_000)), (KvFormat::F32, Some(3000))] {
        let (case, out) = AttentionCase { norms: false, window, ..AttentionCase::new(4, 1, 64) }.case();
        case.check_batches(&format!("70,000 tokens, {kv:?}, {window:?}"), out, 70_000, &[1, 20, 1], CLOSE, kv);
    }
}

/// Router picks of these logits, through an identity matrix.
fn router(experts: usize, used: usize, normalize: bool) -> (Case, [Slot; 2]) {
    let mut case = Case::new();
    let x = case.input(64);
    let weight = case.weight(Format::F32, &[64, experts]);
    let [ids, weights] = case.picks(used);
    case.push(Op::Router(plan::Router {
        x,
        weight,
        routing: Routing { normalize, scale: 1.5, ..Routing::softmax(used) },
        ids,
        weights,
    }));
    (case, [ids, weights])
}

#[test]
fn routers_pick_and_weigh_as_the_cpu_does() {
    for (experts, used) in [(1, 1), (8, 2), (31, 4), (128, 8), (257, 9), (1024, 32)] {
        for (normalize, tokens) in [(true, 1), (false, 3), (true, 40)] {
            let (case, [ids, weights]) = router(experts, used, normalize);
            let Some(mut gpu) = case.gpu(tokens, 4, &Setting::default()) else { return };
            let mut cpu = case.cpu(tokens, 4, KvFormat::F16);
            let batch: Vec<Token> = (0..tokens as u32).map(|pos| Token { id: 0, seq: 0, pos }).collect();
            let seqs = [Seq::new(&[&[0, 1]], Phase::Decode)];
            let env = Env::new(&batch, &[], &seqs);
            for (slot, values) in case.fill(tokens, 3) {
                cpu.write(slot, &values).unwrap();
                gpu.write(slot, &values).unwrap();
            }
            cpu.run(0..1, &env).unwrap();
            gpu.run(0..1, &env).unwrap();
            let (mut expected, mut found) = (vec![0; tokens * used], vec![0; tokens * used]);
            cpu.read_u32(ids, &mut expected).unwrap();
            gpu.read_u32(ids, &mut found).unwrap();
            assert_eq!(found, expected, "{used} of {experts}");
            let (mut expected, mut found) = (vec![0.0; tokens * used], vec![0.0; tokens * used]);
            cpu.read(weights, &mut expected).unwrap();
            gpu.read(weights, &mut found).unwrap();
            for (found, expected) in found.chunks_exact(used).zip(expected.chunks_exact(used)) {
                let off = nmse(found, expected);
                assert!(off <= CLOSE, "{used} of {experts}: weights are {off:.1e} off");
            }
        }
    }
}

#[test]
fn what_a_router_picked_comes_back_at_once_and_without_padding() {
    let (case, [ids, weights]) = router(31, 5, true);
    let Some(mut gpu) = case.gpu(7, 4, &Setting::default()) else { return };
    let batch: Vec<Token> = (0..3).map(|pos| Token { id: 0, seq: 0, pos }).collect();
    let seqs = [Seq::new(&[&[0, 1]], Phase::Decode)];
    gpu.begin(&Env::new(&batch, &[], &seqs)).unwrap();
    for (slot, values) in case.fill(3, 3) {
        gpu.write(slot, &values).unwrap();
    }
    gpu.reset_counters();
    gpu.submit(0..1, &[ids, weights]).unwrap();
    let (mut found, mut mixed) = ([0; 15], [0.0; 15]);
    gpu.read(weights, &mut mixed).unwrap();
    gpu.read_u32(ids, &mut found).unwrap();
    let counters = gpu.counters();
    assert_eq!((counters.submits, counters.read_backs, counters.read_back_bytes), (1, 1, 2 * 15 * 4));
    let weighs = |mixed: &[f32]| mixed.chunks(5).all(|row| (row.iter().sum::<f32>() - 1.5).abs() < 1e-4);
    assert!(found.iter().all(|id| *id < 31) && weighs(&mixed), "{found:?} {mixed:?}");
    // What was written is what comes back, each to its own place.
    gpu.write_u32(ids, &[7; 15]).unwrap();
    gpu.read(weights, &mut mixed).unwrap();
    gpu.read_u32(ids, &mut found).unwrap();
    assert!(found == [7; 15] && weighs(&mixed), "{found:?} {mixed:?}");
}

/// A router and its experts; the result is added to what `out` holds.
fn experts(formats: [Format; 3], [n, ff, experts, used]: [usize; 4]) -> (Case, Slot) {
    let mut case = Case::new();
    let x = case.input(n);
    let out = case.input(n);
    let router = case.weight(Format::F32, &[n, experts]);
    let [ids, weights] = case.picks(used);
    let gate = case.weight(formats[0], &[n, ff, experts]);
    let up = case.weight(formats[1], &[n, ff, experts]);
    let down = case.weight(formats[2], &[ff, n, experts]);
    case.push(Op::Router(plan::Router { x, weight: router, routing: Routing::softmax(used), ids, weights }));
    case.push(Op::Experts(plan::Experts { x, ids, weights, used, gate, up, down, act: Activation::Silu, out }));
    (case, out)
}

#[test]
fn mixtures_of_experts_for_few_tokens_and_for_batches() {
    let shapes = [[256, 256, 8, 2], [256, 512, 5, 3], [512, 256, 33, 8], [256, 256, 1, 1]];
    for formats in [[Format::Q4_K, Format::Q4_K, Format::Q6_K], [Format::Q8_0; 3], [Format::F32; 3]] {
        for shape in shapes {
            for tokens in [1, 4, 5, 33, 150] {
                let (case, out) = experts(formats, shape);
                case.check(&format!("{formats:?} {shape:?} x {tokens}"), out, tokens, CLOSE);
            }
        }
    }
    for format in Layout::formats() {
        for tokens in [1, 20] {
            let (case, out) = experts([format; 3], [256, 256, 6, 2]);
            case.check(&format!("experts in {format} x {tokens}"), out, tokens, CLOSE);
        }
    }
}

#[test]
fn experts_over_several_banks_and_without_subgroups() {
    let handicaps = [
        Handicap { binding_bytes: Some(450 << 10), ..Handicap::default() },
        Handicap { no_subgroups: true, ..Handicap::default() },
        Handicap { bounds_checks: true, ..Handicap::default() },
    ];
    for handicap in handicaps {
        for tokens in [1, 3, 50] {
            // A gate and up pair of Q4_K is 144 KiB, so that three fit a bank.
            let (case, out) = experts([Format::Q4_K, Format::Q4_K, Format::Q6_K], [512, 256, 9, 4]);
            let setting = Setting { handicap, ..Setting::default() };
            case.check_with(&format!("{handicap:?} x {tokens}"), out, tokens, CLOSE, &setting);
        }
    }
}

#[test]
fn sequences_of_one_run_do_not_see_each_other() {
    let (case, out) = AttentionCase::new(4, 2, 64).case();
    let Some(mut gpu) = case.gpu(80, 8, &Setting::default()) else { return };
    let mut cpu = case.cpu(80, 8, KvFormat::F16);
    let tables: [&[&[u32]]; 3] = [&[&[5, 1]], &[&[0, 3]], &[&[7, 2]]];
    let seqs = tables.map(|tables| Seq::new(tables, Phase::Prompt));
    // Lengths so far, then how many tokens each run adds to every sequence.
    let mut lengths = [0; 3];
    for (i, added) in [[60, 1, 19], [3, 70, 0], [1, 1, 1], [2, 0, 30]].into_iter().enumerate() {
        let mut tokens = vec![];
        for seq in 0..3 {
            tokens.extend((0..added[seq]).map(|j| Token { id: 0, seq: seq as u32, pos: lengths[seq] + j }));
            lengths[seq] += added[seq];
        }
        let env = Env::new(&tokens, &[], &seqs);
        for (slot, values) in case.fill(tokens.len(), i as u64) {
            cpu.write(slot, &values).unwrap();
            gpu.write(slot, &values).unwrap();
        }
        cpu.run(0..2, &env).unwrap();
        gpu.run(0..2, &env).unwrap();
        let (mut expected, mut found) = (vec![0.0; tokens.len() * 256], vec![0.0; tokens.len() * 256]);
        cpu.read(out, &mut expected).unwrap();
        gpu.read(out, &mut found).unwrap();
        let off = nmse(&found, &expected);
        assert!(off <= CLOSE, "run {i}: NMSE {off:.1e}");
    }
}

#[test]
fn a_copied_page_reads_like_the_first() {
    for kv in [KvFormat::F16, KvFormat::Q8_0] {
        let (case, out) = AttentionCase::new(4, 2, 64).case();
        let Some(mut gpu) = case.gpu(10, 4, &Setting { kv, ..Setting::default() }) else { return };
        let run = |gpu: &mut rynd::gpu::Gpu, page: u32, start: u32, n: u32, seed: u64| {
            let tokens: Vec<Token> = (0..n).map(|i| Token { id: 0, seq: 0, pos: start + i }).collect();
            for (slot, values) in case.fill(n as usize, seed) {
                gpu.write(slot, &values).unwrap();
            }
            gpu.run(0..2, &Env::new(&tokens, &[], &[Seq::new(&[&[page]], Phase::Decode)])).unwrap();
            let mut values = vec![0.0; n as usize * 256];
            gpu.read(out, &mut values).unwrap();
            values
        };
        run(&mut gpu, 1, 0, 10, 1);
        gpu.copy_page(0, 1, 3).unwrap();
        let copied = run(&mut gpu, 3, 10, 1, 2);
        assert_eq!(copied, run(&mut gpu, 1, 10, 1, 2));
        assert!(copied.iter().any(|x| *x != 0.0));
    }
}
