//! Traces, policies, the simulator and the pager, on public routing traces and on what our own router picks.
//!
//! The table of hit rates was made by another program; its protocol: pools of one layer with round(part * experts) slots,
//! empty at the first generated token and fed by generated tokens only, hits counted over the second half of them. LFRU is
//! picks over tokens since the last one; Belady may pass an expert by; the static map is made from the first half.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rynd::experts::{
    Budget, Capacity, Grid, Guard, Heat, Named, Outcome, Pager, Phase, Place, Policy, PoolSpec, Pools, Promotion,
    Scores, Setup, Speeds, Summary, Trace, TraceError, Verdict, When, Window, divergence, replay, specialists,
};

fn trace(name: &str) -> Trace {
    let path = Path::new("tests/fixtures/traces").join(format!("{name}.csv.gz"));
    Trace::parse(&std::fs::read(path).unwrap()).unwrap()
}

fn qwen() -> Trace {
    trace("qwen3-30b-a3b")
}

fn setup(named: Named, part: f64) -> Setup {
    Setup {
        named,
        policy: Policy::default(),
        pools: Pools::PerLayer,
        vram: Capacity::Fraction(part),
        ram: None,
        devices: 1,
        seed: false,
        speeds: Speeds { vram: 608e9, ram: 65e9, bus: 25e9, disk: 6.5e9, sync_s: 30e-6 },
    }
}

fn hits(outcome: &Outcome, window: Window) -> f64 {
    100.0 * outcome.window(window).hit_rate()
}

#[test]
fn the_simulator_gives_the_hit_rates_that_another_one_gives() {
    let table = [
        (0.1, [72.9, 54.1, 58.5, 49.1]),
        (0.2, [87.9, 74.8, 78.2, 69.5]),
        (0.3, [94.0, 86.7, 88.4, 81.8]),
        (0.4, [96.3, 93.7, 94.1, 89.1]),
    ];
    let trace = qwen();
    for (part, row) in table {
        for (named, expected) in [Named::Belady, Named::Lru, Named::Lfru, Named::StaticHeldOut].into_iter().zip(row) {
            let found = hits(&replay(&trace, &setup(named, part)), Window::SecondHalf);
            assert!((found - expected).abs() <= 1.0, "{} at {part}: {found:.2}, expected {expected}", named.name());
        }
    }
}

#[test]
fn nothing_beats_the_optimum_and_the_pager_stays_near_it() {
    for name in ["qwen3-30b-a3b", "gemma-4-26b-a4b"] {
        let trace = trace(name);
        for pools in [Pools::PerLayer, Pools::Global] {
            for part in [0.1, 0.2, 0.4] {
                let run = |named| replay(&trace, &Setup { pools, ..setup(named, part) });
                let best = hits(&run(Named::Belady), Window::Decode);
                for named in
                    [Named::Random, Named::Lru, Named::Lfu, Named::Lfru, Named::Crf, Named::CrfGate, Named::BeladyCap]
                {
                    let regret = best - hits(&run(named), Window::Decode);
                    assert!(regret >= 0.0, "{} beats Belady by {:.2} on {name} at {part}", named.name(), -regret);
                    if named == Named::CrfGate {
                        println!("{name}, {pools:?}, {part}: regret {regret:.1}");
                        assert!(regret < 24.0, "{regret}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_change_of_topic_costs_the_gate_little_and_saves_most_of_the_traffic() {
    for name in ["qwen3-30b-a3b", "gemma-4-26b-a4b"] {
        let one = trace(name);
        let joined = Trace::join(&[one.clone(), one.relabelled(1.0, 1), one]).unwrap();
        for part in [0.1, 0.2] {
            let run = |named| {
                let outcome = replay(&joined, &Setup { pools: Pools::Global, seed: true, ..setup(named, part) });
                outcome.window(Window::Decode)
            };
            let (lru, gate) = (run(Named::Lru), run(Named::CrfGate));
            assert!(gate.hit_rate() > lru.hit_rate() - 0.02, "{name} {part}: {gate:?} {lru:?}");
            assert!(gate.uploads * 2 < lru.uploads, "{name} {part}: {} {}", gate.uploads, lru.uploads);
            assert!(gate.rates()[0] > lru.rates()[0], "and is faster");
        }
    }
}

#[test]
fn below_one_token_s_picks_lru_falls_to_nothing_and_the_pager_does_not() {
    let trace = qwen();
    // 184 slots; a token picks 288.
    let run = |named| hits(&replay(&trace, &Setup { pools: Pools::Global, ..setup(named, 0.03) }), Window::SecondHalf);
    assert!(run(Named::Lru) < 1.0);
    assert!(run(Named::CrfGate) > 25.0);
}

#[test]
fn controls_keep_popularity_and_drop_order_or_drop_both() {
    let trace = qwen();
    let shuffled = trace.shuffled(1);
    let counts = |t: &Trace| -> Vec<Vec<u32>> { Summary::new(t).layers.into_iter().map(|l| l.counts).collect() };
    assert_eq!(counts(&trace), counts(&shuffled));
    let (s, control) = (Summary::new(&trace), Summary::new(&shuffled));
    assert!(s.overlap[0].1 > s.overlap[0].2 + 0.05, "neighbours share more than chance: {:?}", s.overlap);
    assert!((control.overlap[0].1 - s.overlap[0].2).abs() < 0.02);
    let even = trace.uniform(1);
    let found = hits(&replay(&even, &setup(Named::Lru, 0.25)), Window::SecondHalf);
    assert!((found - 25.0).abs() < 1.5, "an even draw hits what is resident: {found}");
}

#[test]
fn with_all_resident_everything_hits_and_with_nothing_nothing_does() {
    let trace = qwen();
    for named in Named::ALL {
        let none = replay(&trace, &setup(named, 0.0));
        assert_eq!(hits(&none, Window::Decode), 0.0, "{}", named.name());
        assert_eq!(none.window(Window::Decode).uploads, 0);
    }
    let all = replay(&trace, &Setup { seed: true, ..setup(Named::Lru, 1.0) }).window(Window::Decode);
    let picked = |from: usize, to: usize| -> HashSet<(usize, u16)> {
        let layers = trace.header.layers.len();
        (from..to)
            .flat_map(|t| (0..layers).map(move |l| (t, l)))
            .flat_map(|(t, l)| trace.picks(t, l).iter().map(move |&id| (l, id)))
            .collect()
    };
    let (prompt, generated) = (picked(0, 28), picked(28, 156));
    assert_eq!(all.picks - all.hits, generated.difference(&prompt).count() as u64, "what was picked once stays");
}

#[test]
fn bytes_are_accounted_for_on_every_tier() {
    let trace = qwen();
    let e = trace.header.layers.iter().map(|l| l.expert_bytes).min().unwrap();
    let base = Setup { pools: Pools::Global, ..setup(Named::CrfGate, 0.2) };
    let two = replay(&trace, &base).window(Window::Decode);
    assert_eq!(
        two.vram_bytes + two.ram_bytes,
        trace.header.layers.iter().map(|l| l.expert_bytes).sum::<u64>() * 6 * 128
    );
    assert!(two.bus_bytes >= two.uploads * e && two.disk_bytes == 0);
    let three = replay(&trace, &Setup { ram: Some(Capacity::Fraction(0.1)), ..base }).window(Window::Decode);
    assert_eq!(three.hits, two.hits, "the tier below does not change the one above");
    assert!(three.disk_bytes > 0 && three.ram_bytes < two.ram_bytes);
    let roomy = replay(&trace, &Setup { ram: Some(Capacity::Fraction(1.0)), ..base }).window(Window::Decode);
    assert!(roomy.disk_bytes < three.disk_bytes, "what was read once stays in RAM");
    let half = replay(&trace, &Setup { devices: 2, ..base }).window(Window::Decode);
    assert!((half.hit_rate() - two.hit_rate()).abs() < 0.01, "two devices are one pool");
}

// ---- files ----

#[test]
fn our_own_format_comes_back_as_it_was_written() {
    let mut trace = qwen();
    trace.tokens[3].id = 77;
    let again = Trace::parse(&trace.encode()).unwrap();
    assert_eq!(again.header, trace.header);
    assert_eq!((&again.tokens, &again.ids), (&trace.tokens, &trace.ids));
    let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &trace.encode()).unwrap();
    assert_eq!(Trace::parse(&packed.finish().unwrap()).unwrap(), again);
}

#[test]
fn what_is_cut_off_or_damaged_is_refused_and_never_a_panic() {
    let bytes = qwen().encode();
    let cut = Trace::parse(&bytes[..bytes.len() - 5]);
    assert!(matches!(cut, Err(TraceError::CutOff { .. })), "{cut:?}");
    for n in (0..bytes.len().min(8000)).step_by(7) {
        let _ = Trace::parse(&bytes[..n]);
        let mut flipped = bytes[..30_000].to_vec();
        flipped[n] ^= 0x55;
        let _ = Trace::parse(&flipped);
    }
    assert!(matches!(Trace::parse(b"hello"), Err(TraceError::NotATrace)));
    let head = "# route_trace v1\n# model=m n_expert=4 n_expert_used=2\n# layer=0 expert_bytes=10\n";
    let csv = |body: &str| Trace::parse(format!("{head}turn,phase,step,layer,slot,expert,weight\n{body}").as_bytes());
    let good = csv("0,1,0,0,0,3,0.5\n0,1,0,0,1,1,0.5\n").unwrap();
    assert_eq!((good.picks(0, 0), good.weights[0].to_f32()), (&[3u16, 1][..], 0.5));
    for (body, wanted) in [
        ("0,1,0,0,0,3,0.5\n", "lacks picks in layer 0"),
        ("0,1,0,0,0,4,0.5\n0,1,0,0,1,1,0.5\n", "expert 4 of 4"),
        ("0,1,0,7,0,3,0.5\n", "line 5: layer 7"),
        ("0,1,0,0,2,3,0.5\n", "pick 2"),
        ("0,1,0,0,x,3,0.5\n", "'x' is no whole number"),
        ("0,1,0\n", "line 5"),
        ("", "no tokens"),
    ] {
        let error = csv(body).unwrap_err().to_string();
        assert!(error.contains(wanted), "{body:?}: {error}");
    }
}

#[test]
fn heat_comes_back_decays_and_belongs_to_one_model() {
    let grid = Grid::new(4, 2, vec![("q".to_owned(), 10), ("q".to_owned(), 10)]);
    let mut heat = Heat::new("key", &grid);
    heat.merge(|layer, expert| if layer == 1 { expert as u32 * 10 } else { 5 }, 30);
    let again = Heat::parse(&heat.encode(), "key", &grid).unwrap();
    assert_eq!(again, heat);
    let mut scores = Scores::new(grid.entries(), 16.0);
    again.seed(&mut scores, 16.0);
    assert!(scores.crf(grid.entry(1, 3)) > scores.crf(grid.entry(1, 2)) && scores.crf(grid.entry(1, 0)) == 0.0);
    // Picked by every token: the mean score of that is H / ln 2.
    assert!((scores.crf(grid.entry(1, 3)) - 16.0 / std::f64::consts::LN_2).abs() < 0.1);
    heat.merge(|_, _| 0, 1_000_000);
    assert!(heat.picks[1][3] < 1e-3, "long ago");
    assert!(Heat::parse(&again.encode(), "other", &grid).unwrap_err().to_string().contains("another model"));
    assert!(Heat::parse(b"{}", "key", &grid).is_err());
    let wider = Grid::new(8, 2, vec![("q".to_owned(), 10)]);
    assert!(Heat::parse(&again.encode(), "key", &wider).is_err(), "as many experts, in another shape");
}

// ---- the pager ----

/// Every expert in at most one slot, every slot's expert known to be there.
fn check(pager: &Pager, grid: &Grid) {
    let mut seen = HashMap::new();
    for layer in 0..grid.layers() {
        for expert in 0..grid.experts {
            if let Place::Resident { pool, slot } | Place::Coming { pool, slot } = pager.place(layer, expert) {
                let other = seen.insert((pool, slot), (layer, expert));
                assert!(other.is_none(), "{other:?} and {:?} share slot {slot} of pool {pool}", (layer, expert));
            }
        }
    }
}

#[test]
fn the_pager_keeps_its_promises_whatever_happens() {
    let grid = Grid::new(16, 3, vec![("a".to_owned(), 100), ("b".to_owned(), 140), ("a".to_owned(), 100)]);
    let pools = [
        PoolSpec { device: 0, layers: vec![0, 2], slots: 7 },
        PoolSpec { device: 1, layers: vec![0, 2], slots: 4 },
        PoolSpec { device: 1, layers: vec![1], slots: 5 },
    ];
    let policy = Policy { gate: 1.0, budget: Budget::Bytes(400), ..Policy::default() };
    let mut pager = Pager::new(grid.clone(), &pools, policy);
    let mut chance = 7u64;
    let mut draw = move |n: u64| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % n
    };
    let mut fenced: Option<(u64, Vec<(usize, usize)>)> = None;
    let mut coming: Vec<Promotion> = vec![];
    let (mut moved, mut bytes) = (0u64, 0u64);
    for token in 0..3000u64 {
        for layer in 0..3 {
            let centre = (token / 100 * 5 + layer as u64) % 16;
            let mut ids = HashSet::new();
            while ids.len() < 3 {
                ids.insert(((centre + draw(6)) % 16) as usize);
            }
            pager.pick(layer, ids.iter().copied());
            assert!(pager.end_step(layer, ids.iter().copied(), u64::MAX).is_empty(), "it moves between tokens only");
        }
        pager.end_token(false);
        // Submission `token` reads all slots of pool 0, and finishes 3 tokens later.
        let finished = fenced.as_ref().map_or(u64::MAX, |(n, _)| n - 1);
        for promotion in pager.decide(finished) {
            if let (Some((_, held)), 0) = (&fenced, promotion.pool) {
                let evicted = promotion.evicted.unwrap_or((9, 9));
                assert!(!held.contains(&evicted), "{evicted:?} may still be read");
            }
            bytes += promotion.bytes;
            coming.push(promotion);
        }
        check(&pager, &grid);
        if token % 10 == 0 {
            let held =
                (0..3).flat_map(|l| pager.residents(l).map(move |(e, pool, _)| (l, e, pool)).collect::<Vec<_>>());
            fenced = Some((token + 1, held.filter(|h| h.2 == 0).map(|h| (h.0, h.1)).collect()));
            pager.fence(0, token + 1);
        } else if token % 10 == 3 {
            fenced = None;
        }
        // Uploads arrive late, in any order; one in eight fails.
        coming.retain(|promotion| match draw(3) {
            0 => true,
            _ if draw(8) == 0 => {
                pager.failed(promotion);
                assert_eq!(pager.place(promotion.layer, promotion.expert), Place::Absent);
                false
            }
            _ => {
                pager.done(promotion);
                moved += 1;
                false
            }
        });
        if token == 1500 {
            coming.drain(..).for_each(|promotion| pager.failed(&promotion));
            pager.resize(0, 3);
            fenced = None;
            assert!(pager.residents(0).chain(pager.residents(2)).all(|(_, pool, slot)| pool != 0 || slot < 3));
        }
    }
    assert!(bytes <= 400 * 3008, "the budget holds: {bytes}");
    let counters = pager.counters();
    assert_eq!((counters.tokens, counters.picks, counters.uploads), (3000, 27_000, moved));
    assert!(counters.hits * 3 > counters.picks, "{counters:?}");
}

#[test]
fn the_most_valuable_experts_stay_when_slots_go() {
    let grid = Grid::new(16, 2, vec![("a".to_owned(), 1)]);
    let mut pager = Pager::new(grid, &[PoolSpec { device: 0, layers: vec![0], slots: 8 }], Policy::default());
    // Experts 0 to 7 come in this order; later ones were picked more often.
    let placed = pager.fill(|entry| if entry < 8 { 16.0 - entry as f64 } else { 0.0 });
    placed.iter().for_each(|promotion| pager.done(promotion));
    for expert in 0..8 {
        (0..=(expert * 5) % 8).for_each(|_| pager.pick(0, [expert].into_iter()));
    }
    // Worth 0 5 2 7 4 1 6 3, by slot.
    let moves = pager.vacate(0, 3);
    let pairs: Vec<_> = moves.iter().map(|m| (m.expert, m.from, m.to)).collect();
    assert_eq!(pairs, [(3, 3, 0), (6, 6, 2)], "4 is worth less than 5 of expert 1");
    pager.resize(0, 3);
    let mut held: Vec<_> = pager.residents(0).collect();
    held.sort_by_key(|held| held.2);
    assert_eq!(held, [(3, 0, 0), (1, 0, 1), (6, 0, 2)]);
    assert_eq!(pager.filled(), (3, 3));
    assert_eq!((pager.place(0, 0), pager.place(0, 4)), (Place::Absent, Place::Absent));
    // More slots are empty, and nothing moves then.
    pager.resize(0, 5);
    assert_eq!((pager.filled(), pager.slots(0)), ((3, 5), 5));
    assert_eq!(pager.vacate(0, 3), []);
    // An empty slot takes whoever must go.
    pager.evict(0, 1);
    pager.resize(0, 3);
    let moves = pager.vacate(0, 2);
    assert_eq!(moves.iter().map(|m| (m.expert, m.from, m.to)).collect::<Vec<_>>(), [(6, 2, 1)]);
}

#[test]
fn what_is_pinned_stays_and_the_other_slots_follow_the_text() {
    let grid = Grid::new(16, 2, vec![("a".to_owned(), 1)]);
    for policy in [Policy::default(), Named::Lru.policy(&Policy::default()).unwrap()] {
        let mut pager = Pager::new(grid.clone(), &[PoolSpec { device: 0, layers: vec![0], slots: 6 }], policy);
        // Experts 0 to 5 are the hottest, by falling score.
        (0..16).for_each(|expert| pager.scores_mut().seed(expert, 16.0 - expert as f64));
        let scores = pager.scores().clone();
        let placed = pager.fill(|entry| scores.crf(entry));
        pager.pin_hottest(0.5);
        assert_eq!(pager.pinned(), 0, "nothing has arrived");
        placed.iter().for_each(|promotion| pager.done(promotion));
        assert_eq!(pager.pinned(), 3);
        for _ in 0..200 {
            pager.pick(0, 10..16);
            let mut moved = pager.end_step(0, 10..16, u64::MAX);
            pager.end_token(false);
            moved.extend(pager.decide(u64::MAX));
            moved.iter().for_each(|promotion| pager.done(promotion));
        }
        let there: Vec<usize> = pager.residents(0).map(|(expert, ..)| expert).collect();
        assert!(there.starts_with(&[0, 1, 2]) && there[3..].iter().all(|&e| e >= 10), "{there:?}");
        assert!(!pager.evict(0, 1) && pager.evict(0, there[3]));
        assert_eq!(pager.pinned(), 3);
    }
}

#[test]
fn slots_of_several_devices_fill_evenly() {
    let grid = Grid::new(32, 2, vec![("a".to_owned(), 1)]);
    let spec = |device| PoolSpec { device, layers: vec![0], slots: 8 };
    let mut pager = Pager::new(grid, &[spec(0), spec(1)], Policy::default());
    let placed = pager.fill(|entry| if entry < 8 { 1.0 } else { 0.0 });
    assert_eq!(placed.iter().filter(|p| p.pool == 0).count(), 4);
}

#[test]
fn a_policy_that_loads_on_a_miss_has_it_before_the_next_layer() {
    let grid = Grid::new(8, 2, vec![("a".to_owned(), 1)]);
    let policy = Named::Lru.policy(&Policy::default()).unwrap();
    assert_eq!(policy.when, When::EachLayer);
    let mut pager = Pager::new(grid, &[PoolSpec { device: 0, layers: vec![0], slots: 2 }], policy);
    for (ids, hits) in [([0, 1], 0), ([0, 1], 2), ([2, 3], 2), ([0, 2], 3)] {
        pager.pick(0, ids.into_iter());
        assert_eq!(pager.counters().hits, hits);
        for promotion in pager.end_step(0, ids.into_iter(), u64::MAX) {
            pager.done(&promotion);
        }
        pager.end_token(false);
    }
}

#[test]
fn the_guard_switches_off_what_is_slower_and_keeps_what_is_not() {
    for (with, without, keeps) in [(10.0, 12.0, true), (10.0, 9.9, true), (12.0, 10.0, false)] {
        let mut guard = Guard::new();
        let mut tokens = 0;
        while guard.verdict() == Verdict::Undecided {
            let noise = [0.0, 0.3, -0.2, 5.0][tokens % 4 * usize::from(tokens % 7 == 0)];
            guard.record(noise + if guard.wants_cache() { with } else { without });
            tokens += 1;
            assert!(tokens < 100);
        }
        assert_eq!(guard.wants_cache(), keeps, "{:?}", guard.verdict());
    }
}

// ---- what texts differ in ----

#[test]
fn two_texts_of_one_kind_differ_by_chance_and_a_change_of_experts_is_found() {
    let trace = qwen();
    let half = |from: usize, to: usize| {
        let row = trace.header.layers.len() * trace.header.used;
        Trace {
            tokens: trace.tokens[from..to].to_vec(),
            ids: trace.ids[from * row..to * row].to_vec(),
            ..trace.clone()
        }
    };
    let (a, b) = (half(28, 92), half(92, 156));
    let moved = b.relabelled(0.5, 3);
    let mean = |d: Vec<rynd::experts::Divergence>| d.iter().map(|d| d.bits).sum::<f64>() / d.len() as f64;
    assert_eq!(mean(divergence(&a, &a)), 0.0);
    assert!(mean(divergence(&a, &moved)) > mean(divergence(&a, &b)) + 0.05);
    let own = specialists(&[&a, &moved], 5);
    assert!(own.iter().flatten().all(|s| s.here > 2.0 * s.elsewhere), "{own:?}");
}

#[test]
fn what_the_router_picks_is_recorded_as_another_implementation_picks_it() {
    use rynd::engine::{Engine, EngineConfig, Session, Wanted};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picks.trace.gz");
    let reference: serde_json::Value =
        serde_json::from_slice(&std::fs::read("tests/fixtures/models/qwen3moe/reference.json").unwrap()).unwrap();
    let ids: Vec<u32> = serde_json::from_value(reference["prompts"]["short"]["ids"].clone()).unwrap();
    let config = EngineConfig { exact: true, trace: Some(path.clone()), ..EngineConfig::default() };
    let mut engine = Engine::load(Path::new("tests/fixtures/models/qwen3moe/model.gguf"), &config).unwrap();
    let mut session = Session::new();
    session.sync(&mut engine, &ids).unwrap();
    assert!(!path.exists(), "no file has its final name before it is complete");
    session.decode(&mut engine, 5, Wanted::Last).unwrap();
    engine.finish_trace().unwrap();
    let trace = Trace::parse(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(trace.len(), ids.len() + 1);
    assert_eq!(trace.tokens[ids.len()].phase, Phase::Decode);
    assert!(trace.tokens[..ids.len()].iter().zip(&ids).all(|(t, id)| t.phase == Phase::Prefill && t.id == *id));
    let picks = &reference["moe_short"];
    for layer in 0..trace.header.layers.len() {
        for token in 0..ids.len() {
            let expected: Vec<u16> =
                serde_json::from_value(picks[layer.to_string()]["experts"][token].clone()).unwrap();
            assert_eq!(trace.picks(token, layer), expected, "layer {layer}, token {token}");
        }
    }
    let none = EngineConfig { trace: Some(path), ..EngineConfig::default() };
    let error = Engine::load(Path::new("tests/fixtures/models/qwen3/model.gguf"), &none).err().unwrap();
    assert!(error.to_string().contains("no experts"), "{error}");
}
