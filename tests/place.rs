//! Placement: which layers go where by what has room, and what then must cross from one side to another.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod header;

use header::{Header, attention, more_bits, qwen_coder_30b};
use rynd::models::{self, RopeOverride};
use rynd::plan::{Memory, Op, Plan, Room, Sections, Side, Sides, SlotKind, Stage, WeightId, place, stages};
use rynd_quant::Format;

const CPU: Side = Side::Cpu;
const GPU: [Side; 3] = [Side::Gpu(0), Side::Gpu(1), Side::Gpu(2)];

/// 48 layers of experts.
fn experts() -> Plan {
    models::plan(&qwen_coder_30b(&format!("place-{:?}.gguf", std::thread::current().id())), &RopeOverride::default())
        .unwrap()
}

/// Four dense layers.
fn dense() -> Plan {
    let mut header = Header::new("qwen2");
    header.u32("feed_forward_length", 512);
    attention(&mut header, 4, [256, 4, 2, 64, 1000], true);
    for layer in 0..4 {
        let mut add = |name: &str, format, shape: &[u64]| header.tensor(&format!("blk.{layer}.{name}"), format, shape);
        add("ffn_gate.weight", Format::Q4_K, &[256, 512]);
        add("ffn_up.weight", Format::Q4_K, &[256, 512]);
        add("ffn_down.weight", more_bits(layer, 4), &[512, 256]);
    }
    let gguf = header.open(&format!("dense-{:?}.gguf", std::thread::current().id()));
    models::plan(&gguf, &RopeOverride::default()).unwrap()
}

/// Every weight is one byte and every cache ten, so that budgets count weights.
fn fit(plan: &Plan, gpus: &[u64], gpu_layers: Option<usize>, spread: bool, experts_on_cpu: bool) -> Sides {
    let room = Room {
        gpus,
        gpu_layers,
        memory_bytes: &|_: Memory| 10,
        weight_bytes: &|_: WeightId| 1,
        experts_on_cpu,
        spread,
    };
    Sides::fit(plan, &room)
}

/// Bytes of a layer of experts under these prices: norms, projections, router, experts, and the cache.
fn layer_bytes(plan: &Plan) -> u64 {
    let mut weights: Vec<WeightId> =
        plan.steps.iter().filter(|s| s.layer == Some(1)).flat_map(|s| s.op.weights()).collect();
    weights.sort_unstable();
    weights.dedup();
    weights.len() as u64 + 10
}

#[test]
fn what_fits_goes_to_gpus_from_the_last_layer_down() {
    let plan = experts();
    let (n, layer) = (plan.layers, layer_bytes(&plan));
    let all = fit(&plan, &[10_000], None, false, false);
    assert_eq!(all, Sides::all(&plan, GPU[0]));
    assert_eq!(all.on_gpus(), n + 1);
    assert_eq!(fit(&plan, &[], None, false, false), Sides::all(&plan, CPU));
    assert_eq!(fit(&plan, &[1], None, false, false), Sides::all(&plan, CPU));

    // The head (a norm and a matrix) and two layers.
    let two = fit(&plan, &[2 + 2 * layer], None, false, false);
    let mut expected = Sides::all(&plan, CPU);
    expected.layers[n - 2..].fill(GPU[0]);
    expected.head = GPU[0];
    assert_eq!(two, expected);
    assert_eq!(fit(&plan, &[10_000], Some(3), false, false), expected);
    assert_eq!(fit(&plan, &[10_000], Some(0), false, false), Sides::all(&plan, CPU));

    // A second GPU takes what the last one has no room for.
    let both = fit(&plan, &[layer, 2 + 2 * layer], None, false, false);
    expected.layers[n - 2..].fill(GPU[1]);
    expected.layers[n - 3] = GPU[0];
    expected.head = GPU[1];
    assert_eq!(both, expected);
}

#[test]
fn a_spread_gives_every_gpu_its_share() {
    let plan = experts();
    let even = fit(&plan, &[10_000, 10_000], None, true, false);
    let on = |side: Side| even.layers.iter().filter(|s| **s == side).count();
    assert_eq!(on(CPU), 0);
    assert!(on(GPU[0]).abs_diff(on(GPU[1])) <= 1, "{even:?}");
    assert!(even.layers.is_sorted_by_key(|side| *side == GPU[1]), "{even:?}");
    assert_eq!((even.embed, even.head), (GPU[0], GPU[1]));
    // Twice the room, twice the layers, or nearly.
    let uneven = fit(&plan, &[20_000, 10_000], None, true, false);
    let first = uneven.layers.iter().filter(|s| **s == GPU[0]).count();
    assert!(first * 3 >= plan.layers * 3 / 2, "{uneven:?}");
}

#[test]
fn experts_that_stay_on_the_cpu_leave_room_for_layers() {
    let plan = experts();
    let layer = layer_bytes(&plan);
    let with = fit(&plan, &[2 + 2 * layer], None, false, false).on_gpus();
    let without = fit(&plan, &[2 + 2 * layer], None, false, true);
    assert_eq!(without.experts, Some(CPU));
    assert!(without.on_gpus() >= with);
    // Three tensors of each layer are not counted.
    let exact = fit(&plan, &[2 + 3 * (layer - 3)], None, false, true);
    assert_eq!(exact.on_gpus(), 4);
}

fn moves(placed: &Plan) -> Vec<(Side, Side)> {
    let crossing = |stage: Stage| match stage {
        Stage::Move { from, to, slots, .. } => vec![(from, to); slots.len()],
        Stage::Run { .. } => vec![],
    };
    stages(placed).into_iter().flat_map(crossing).collect()
}

#[test]
fn a_boundary_is_one_move_and_one_side_is_none() {
    for plan in [dense(), experts()] {
        let never = |_: &Op| false;
        assert_eq!(place(&plan, &Sides::all(&plan, CPU), &never).steps.len(), plan.steps.len());
        let all = place(&plan, &Sides::all(&plan, GPU[0]), &never);
        assert_eq!(moves(&all), []);
        let [Stage::Run { side, steps, wanted }] = &stages(&all)[..] else { panic!("more than one stage") };
        assert_eq!((*side, steps.clone(), &wanted[..]), (GPU[0], 0..plan.steps.len(), &[plan.logits][..]));

        let mut sides = Sides::all(&plan, GPU[0]);
        sides.layers[1..].fill(GPU[1]);
        sides.layers[2..].fill(GPU[2]);
        sides.head = GPU[2];
        let placed = place(&plan, &sides, &never);
        assert_eq!(moves(&placed), [(GPU[0], GPU[1]), (GPU[1], GPU[2])]);
        // What crosses is wanted of the stage that wrote it.
        let wanted: Vec<usize> = stages(&placed)
            .iter()
            .filter_map(|stage| match stage {
                Stage::Run { wanted, .. } => Some(wanted.len()),
                Stage::Move { .. } => None,
            })
            .collect();
        assert_eq!(wanted, [1, 1, 1]);
    }
}

#[test]
fn what_a_gpu_refuses_runs_on_the_cpu_between_moves() {
    let plan = dense();
    let refuses = |op: &Op| matches!(op, Op::RopeStore(_) | Op::Attention(_));
    let placed = place(&plan, &Sides::all(&plan, GPU[0]), &refuses);
    for step in &placed.steps {
        let on_cpu = matches!(step.op, Op::RopeStore(_) | Op::Attention(_));
        assert_eq!(step.side == CPU, on_cpu || (matches!(step.op, Op::Move(_)) && step.side == CPU));
    }
    // Queries, keys and values down, what they became up, in each layer.
    let down = moves(&placed).iter().filter(|m| **m == (GPU[0], CPU)).count();
    let up = moves(&placed).iter().filter(|m| **m == (CPU, GPU[0])).count();
    assert_eq!((down, up), (3 * plan.layers, plan.layers));
    // The steps but for the moves are the plan's.
    let names =
        |plan: &Plan| -> Vec<&str> { plan.steps.iter().map(|s| s.op.name()).filter(|name| *name != "move").collect() };
    assert_eq!(names(&placed), names(&plan));
}

#[test]
fn who_shares_a_cache_with_what_a_gpu_refuses_stays_with_it() {
    let plan = dense();
    let refuses = |op: &Op| matches!(op, Op::Attention(_));
    let placed = place(&plan, &Sides::all(&plan, GPU[0]), &refuses);
    let sides = |kind: fn(&Op) -> bool| -> Vec<Side> {
        placed.steps.iter().filter(|step| kind(&step.op)).map(|step| step.side).collect()
    };
    assert_eq!(sides(|op| matches!(op, Op::RopeStore(_))), vec![CPU; plan.layers]);
    assert_eq!(
        sides(|op| matches!(op, Op::Linear(_))),
        vec![GPU[0]; placed.steps.iter().filter(|s| matches!(s.op, Op::Linear(_))).count()]
    );
}

#[test]
fn mixtures_are_found_where_placement_has_put_them() {
    let plan = experts();
    assert!(!plan.mixtures.is_empty() && dense().mixtures.is_empty());
    let mut sides = Sides::all(&plan, GPU[0]);
    sides.experts = Some(CPU);
    let placed = place(&plan, &sides, &|_| false);
    assert_eq!(placed.mixtures.len(), plan.mixtures.len());
    for (mixture, before) in placed.mixtures.iter().zip(&plan.mixtures) {
        assert_eq!(placed.steps[mixture.router_at].op, Op::Router(before.router));
        assert_eq!(placed.steps[mixture.experts_at].op, Op::Experts(before.experts));
        assert_eq!((mixture.layer, mixture.side), (before.layer, CPU));
        // The experts' input and the picks moved in between.
        assert!(mixture.experts_at > before.experts_at);
    }
}

#[test]
fn sections_cover_all_steps_and_moves_go_with_the_step_that_needs_them() {
    for plan in [dense(), experts()] {
        let mut sides = Sides::all(&plan, GPU[0]);
        sides.head = CPU;
        let placed = place(&plan, &sides, &|_| false);
        assert!(placed.steps.len() > plan.steps.len());
        for plan in [&plan, &placed] {
            let Sections { body, head, draft } = &plan.sections;
            assert_eq!((body.start, body.end, head.end), (0, head.start, plan.steps.len()));
            assert_eq!((draft.clone(), plan.sections.forward()), (head.end..head.end, 0..plan.steps.len()));
            assert!(body.clone().all(|at| !matches!(plan.steps[at].op, Op::TakeRows(_))));
        }
        let ops = |plan: &Plan| plan.steps[plan.sections.head.clone()].iter().map(|s| s.op.name()).collect::<Vec<_>>();
        assert_eq!(ops(&plan), ["take_rows", "linear"]);
        assert_eq!(ops(&placed), ["move", "take_rows", "linear"]);
    }
}

#[test]
fn ids_share_memory_with_ids_alone() {
    let plan = experts();
    assert!(plan.slots.iter().any(|slot| slot.kind == SlotKind::U32));
    for (a, b) in plan.slots.iter().flat_map(|a| plan.slots.iter().map(move |b| (a, b))) {
        assert!(a.buffer != b.buffer || a.width == 0 || b.width == 0 || a.kind == b.kind, "{a:?} {b:?}");
    }
}
