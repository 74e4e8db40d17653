//! What a real GPU would feel is counted: dispatches, passes, submissions, read-backs, bytes of weights.
//!
//! `gpu::dispatches` tells a step's dispatches from the plan alone. The first tests hold it against what the prepared
//! steps really record, on the tiny models; the others judge models of real shapes by it, from headers without weights.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;
mod header;

use golden_case::{exact, fixture, gpu_options, ids, reference};
use header::{Header, attention, more_bits, qwen_coder_30b};
use rynd::engine::{Engine, EngineConfig, GpuChoice, Session, Side};
use rynd::gguf::Gguf;
use rynd::gpu::{Handicap, dispatches, room};
use rynd::plan::{self, Op, Plan, Stage, stages};
use rynd_quant::Format;

/// Dispatches of one token, told from the plan.
fn told(plan: &Plan, bank_bytes: u64, pages: usize) -> usize {
    plan.steps.iter().map(|step| dispatches(plan, &step.op, bank_bytes, pages)).sum()
}

#[test]
fn the_plan_tells_the_dispatches_that_a_token_is_and_weights_are_read_once() {
    let files = ["models/qwen2/model", "models/qwen3moe/model", "models/gemma3/model", "models/mixtral/model"];
    let quantised = ["quantized/qwen2-Q4_K_M", "quantized/qwen2-IQ4_NL", "quantized/qwen3moe_wide-Q4_K_M"];
    for file in files.into_iter().chain(quantised) {
        let Some(gpu) = gpu_options() else { return };
        let config = EngineConfig { gpu, ..exact() };
        let mut engine = Engine::load(&fixture(&format!("{file}.gguf")), &config).unwrap();
        let prompt = ids(&reference("qwen3moe_long")["prompts"]["deep"]["ids"]);
        let mut session = Session::new();
        // Within one page, and in a context that attention splits.
        for tokens in [20, 400] {
            session.sync(&mut engine, &prompt[..tokens]).unwrap();
            engine.reset_counters();
            session.sync(&mut engine, &prompt[..tokens + 1]).unwrap();
            let counters = engine.gpus()[0].counters();
            let plan = engine.plan();
            let pages = tokens / rynd::plan::PAGE_TOKENS + 1;
            let what = format!("{file}, {tokens} tokens");
            let bank_bytes = engine.gpus()[0].device().report().bank_bytes();
            assert_eq!(counters.dispatches as usize, told(plan, bank_bytes, pages), "{what}");
            assert_eq!((counters.submits, counters.read_backs, counters.passes), (1, 1, 1), "{what}");
            assert_eq!(counters.read_back_bytes, plan.vocab as u64 * 4, "{what}");
            assert_eq!(counters.weight_bytes, bytes_once(plan), "{what}");
        }
    }
}

/// Bytes of all matrices, each once; of experts those that a token picks, of the embedding one row.
fn bytes_once(plan: &Plan) -> u64 {
    let matrices = plan.steps.iter().flat_map(|step| step.op.weights().into_iter().map(move |id| (&step.op, id)));
    matrices
        .filter(|(_, id)| plan.weight(*id).rows * plan.weight(*id).experts > 1)
        .map(|(op, id)| {
            let weight = plan.weight(id);
            let all = room::weight_bytes(weight);
            match op {
                Op::Embed(_) => all / weight.rows as u64,
                Op::Experts(plan::Experts { used, .. }) => all / weight.experts as u64 * *used as u64,
                _ => all,
            }
        })
        .sum()
}

/// All on one GPU; 24 GB and more bind all that a card of today binds.
fn plan(gguf: &Gguf) -> Plan {
    let config =
        EngineConfig { gpu: rynd::engine::GpuOptions { choice: GpuChoice::Off, ..Default::default() }, ..exact() };
    let outline = Engine::outline(gguf, &config).unwrap();
    let mut plan = Plan::clone(&outline.plan);
    plan.steps.iter_mut().for_each(|step| step.side = Side::Gpu(0));
    plan
}

/// The most dispatches of a layer, and of everything outside the layers, in a context of so many tokens.
fn most_a_layer(plan: &Plan, bank_bytes: u64, context: usize) -> (usize, usize) {
    let pages = context / rynd::plan::PAGE_TOKENS;
    let of = |layer: Option<u32>| -> usize {
        let steps = plan.steps.iter().filter(|step| step.layer == layer);
        steps.map(|step| dispatches(plan, &step.op, bank_bytes, pages)).sum()
    };
    ((0..plan.layers as u32).map(|layer| of(Some(layer))).max().unwrap(), of(None))
}

/// The smallest binding that rynd accepts, and the largest that it makes use of.
const BINDINGS: [u64; 2] = [128 << 20, i32::MAX as u64];

#[test]
fn a_dense_layer_of_qwen_coder_1_5b_is_at_most_8_dispatches() {
    let mut header = Header::new("qwen2");
    header.u32("feed_forward_length", 8960);
    attention(&mut header, 28, [1536, 12, 2, 128, 151_936], true);
    for layer in 0..28 {
        let mut add = |name: &str, format, shape: &[u64]| header.tensor(&format!("blk.{layer}.{name}"), format, shape);
        add("ffn_gate.weight", Format::Q4_K, &[1536, 8960]);
        add("ffn_up.weight", Format::Q4_K, &[1536, 8960]);
        add("ffn_down.weight", more_bits(layer, 28), &[8960, 1536]);
    }
    let plan = plan(&header.open("qwen-1.5b.gguf"));
    for bank_bytes in BINDINGS {
        for context in [64, 4096, 32_768] {
            let (layer, rest) = most_a_layer(&plan, bank_bytes, context);
            assert!(layer <= 8 && rest <= 5, "{layer} a layer and {rest} outside, {bank_bytes} bytes a binding");
        }
    }
    one_submission(&plan);
}

#[test]
fn a_layer_of_qwen3_coder_30b_is_at_most_12_dispatches() {
    let plan = plan(&qwen_coder_30b("qwen3-30b.gguf"));
    for bank_bytes in BINDINGS {
        for context in [64, 4096, 32_768] {
            let (layer, rest) = most_a_layer(&plan, bank_bytes, context);
            assert!(layer <= 12 && rest <= 5, "{layer} a layer and {rest} outside, {bank_bytes} bytes a binding");
        }
    }
    one_submission(&plan);
}

/// One stage on one GPU whose only value for the host is the logits.
fn one_submission(plan: &Plan) {
    match stages(plan).as_slice() {
        [Stage::Run { side: Side::Gpu(0), wanted, .. }] => assert_eq!(wanted, &[plan.logits]),
        other => panic!("{other:?}"),
    }
}

/// Resident bytes of a file's mapping.
#[cfg(target_os = "linux")]
fn resident_bytes(name: &str) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut kilobytes = 0;
    for line in smaps.lines() {
        if line.split_whitespace().next().is_some_and(|range| range.contains('-')) {
            inside = line.contains(name);
        } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| inside) {
            kilobytes += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    kilobytes * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn the_files_pages_are_given_back_after_the_upload() {
    let Some(gpu) = gpu_options() else { return };
    let name = format!("given-back-{}.gguf", std::process::id());
    let mut header = Header::new("qwen2");
    header.u32("feed_forward_length", 4096);
    attention(&mut header, 2, [1024, 16, 16, 64, 8192], true);
    for layer in 0..2 {
        let mut add = |name: &str, shape: &[u64]| {
            header.tensor(&format!("blk.{layer}.{name}"), Format::Q8_0, shape);
        };
        add("ffn_gate.weight", &[1024, 4096]);
        add("ffn_up.weight", &[1024, 4096]);
        add("ffn_down.weight", &[4096, 1024]);
    }
    let gguf = header.open(&name);
    for tensor in gguf.tensors() {
        assert_eq!(gguf.bytes(tensor).iter().map(|b| u64::from(*b)).sum::<u64>(), 0);
    }
    let all = gguf.file_bytes();
    assert!(resident_bytes(&name) > all / 10 * 9, "{} of {all}", resident_bytes(&name));
    for staging in [false, true] {
        let handicap = Handicap { staging, ..Handicap::default() };
        let gpu = rynd::engine::GpuOptions { handicap, ..gpu.clone() };
        let config = EngineConfig { gpu, context: Some(64), batch: 16, ..exact() };
        let engine = Engine::new(gguf.clone(), &config).unwrap();
        let uploaded = engine.gpus()[0].uploaded_bytes();
        assert!(uploaded > all / 10 * 9, "{uploaded} bytes uploaded");
        // Norms and biases are read on the CPU, and the pages around them come with them.
        assert!(resident_bytes(&name) < all / 4, "{} of {all} stay", resident_bytes(&name));
    }
}
