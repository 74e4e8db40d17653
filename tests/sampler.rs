//! The sampler against plain computations over the whole, sorted vocabulary, and against frequencies.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use rynd::sampler::{Sampler, SamplerConfig, SamplerError, logprobs};
use std::collections::HashMap;

const NEUTRAL: fn() -> SamplerConfig = SamplerConfig::neutral;

/// xorshift: reproducible logits without another crate.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Roughly normal, of standard deviation `scale`, on a grid so coarse that ties happen.
    fn logits(&mut self, n: usize, scale: f64) -> Vec<f32> {
        let normal = |random: &mut Self| (0..12).map(|_| random.unit()).sum::<f64>() - 6.0;
        (0..n).map(|_| ((normal(self) * scale * 64.0).round() / 64.0) as f32).collect()
    }
}

fn distribution(config: SamplerConfig, logits: &[f32]) -> Vec<(u32, f32)> {
    let mut sampler = Sampler::new(config).unwrap();
    let left = sampler.distribution(&mut logits.to_vec()).unwrap().to_vec();
    left.iter().map(|candidate| (candidate.id, candidate.probability)).collect()
}

/// All tokens with their logits, likeliest first.
fn sorted(logits: &[f32]) -> Vec<(u32, f64)> {
    let mut all: Vec<_> = logits.iter().enumerate().map(|(id, &logit)| (id as u32, f64::from(logit))).collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    all
}

fn probabilities(tokens: &[(u32, f64)], temperature: f64) -> Vec<f64> {
    let top = tokens.iter().map(|token| token.1).fold(f64::MIN, f64::max);
    let weights: Vec<f64> = tokens.iter().map(|token| ((token.1 - top) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// The whole chain, the slow way: `tokens` likeliest first.
fn reference(config: &SamplerConfig, logits: &[f32]) -> Vec<(u32, f64)> {
    let mut tokens = sorted(logits);
    if config.top_k > 0 {
        tokens.truncate(config.top_k);
    }
    if config.typical_p < 1.0 {
        let p = probabilities(&tokens, 1.0);
        let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by(|&a, &b| (-p[a].ln() - entropy).abs().partial_cmp(&(-p[b].ln() - entropy).abs()).unwrap());
        let mut sum = 0.0;
        let mut kept = Vec::new();
        for at in order {
            kept.push(tokens[at]);
            sum += p[at];
            if sum > f64::from(config.typical_p) {
                break;
            }
        }
        kept.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        tokens = kept;
    }
    let mut sum = 0.0;
    let needed = probabilities(&tokens, 1.0).iter().position(|p| {
        sum += p;
        sum >= f64::from(config.top_p)
    });
    if let Some(last) = needed.filter(|_| config.top_p < 1.0) {
        tokens.truncate(last + 1);
    }
    let p = probabilities(&tokens, 1.0);
    let least = f64::from(config.min_p) * p[0] * (1.0 - 1e-6);
    let mut kept: Vec<(u32, f64)> =
        tokens.iter().zip(p).filter(|(_, p)| *p >= least).map(|(token, _)| *token).collect();
    kept.sort_by_key(|token| token.0);
    let p = probabilities(&kept, f64::from(config.temperature));
    kept.iter().zip(p).map(|(token, p)| (token.0, p)).collect()
}

fn assert_like_reference(config: SamplerConfig, logits: &[f32]) -> usize {
    let found = distribution(config.clone(), logits);
    let expected = reference(&config, logits);
    let ids = |list: &[(u32, f64)]| list.iter().map(|token| token.0).collect::<Vec<_>>();
    let found: Vec<(u32, f64)> = found.iter().map(|&(id, p)| (id, f64::from(p))).collect();
    assert!(ids(&found) == ids(&expected), "{config:?}: {} tokens, wanted {}", found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found.1 - expected.1).abs() <= 1e-5 * expected.1 + 1e-7, "{config:?}: {found:?}, wanted {expected:?}");
    }
    found.len()
}

#[test]
fn every_step_alone_keeps_what_a_full_sort_keeps() {
    let mut random = Random(1);
    for n in [1, 2, 15, 16, 17, 300, 5000] {
        for scale in [0.3, 1.0, 3.0] {
            let logits = random.logits(n, scale);
            for top_k in [0, 1, 2, 20, 63, 64, 65, 1000, usize::MAX] {
                assert_like_reference(SamplerConfig { top_k, ..NEUTRAL() }, &logits);
            }
            for p in [0.01, 0.3, 0.8, 0.95, 0.999] {
                assert_like_reference(SamplerConfig { top_p: p, ..NEUTRAL() }, &logits);
                assert_like_reference(SamplerConfig { min_p: p, ..NEUTRAL() }, &logits);
                // Ties of surprise at the edge are broken by rounding: distinct logits only.
                let distinct: Vec<f32> = logits.iter().enumerate().map(|(at, l)| l + at as f32 * 1e-4).collect();
                assert_like_reference(SamplerConfig { typical_p: p, ..NEUTRAL() }, &distinct);
            }
            for temperature in [0.1, 0.7, 1.5, 10.0] {
                assert_like_reference(SamplerConfig { temperature, ..NEUTRAL() }, &logits);
            }
        }
    }
}

#[test]
fn the_steps_together_run_in_the_documented_order() {
    let mut random = Random(2);
    let mut kept = Vec::new();
    for _ in 0..40 {
        let logits: Vec<f32> =
            random.logits(3000, 2.0).iter().enumerate().map(|(at, logit)| logit + at as f32 * 1e-5).collect();
        for temperature in [0.7, 1.3] {
            let config = SamplerConfig { top_k: 200, typical_p: 0.9, top_p: 0.7, min_p: 0.2, temperature, ..NEUTRAL() };
            kept.push(assert_like_reference(config, &logits));
        }
    }
    assert!(kept.iter().all(|&n| n < 200) && kept.iter().any(|&n| n > 5), "{kept:?}: the steps did not all bite");
}

#[test]
fn top_k_among_a_real_sized_vocabulary_finds_the_best() {
    let logits = Random(3).logits(151_936, 2.5);
    assert_eq!(assert_like_reference(SamplerConfig { top_k: 20, ..NEUTRAL() }, &logits), 20);
    assert!(assert_like_reference(SamplerConfig { top_p: 0.9, ..NEUTRAL() }, &logits) > 100);
    // Rising logits: each one beats all before it, the worst case of a single pass.
    let rising: Vec<f32> = (0..151_936).map(|id| id as f32 * 1e-4).collect();
    assert_like_reference(SamplerConfig { top_k: 50, ..NEUTRAL() }, &rising);
}

#[test]
fn greedy_takes_the_largest_logit_and_the_lowest_id_of_equals() {
    let mut sampler = Sampler::new(SamplerConfig::greedy()).unwrap();
    for n in [1, 7, 16, 31, 32, 151_936] {
        for at in [0, n / 3, n - 1] {
            let mut logits = Random(n as u64 + 1).logits(n, 1.0);
            logits[at] = 50.0;
            logits[n - 1] = 50.0;
            assert_eq!(sampler.sample(&mut logits), Ok(at as u32), "{n}");
        }
    }
    assert_eq!(sampler.sample(&mut [-3.0, -1.0, -1.0, f32::NEG_INFINITY]), Ok(1));
    let chosen: Vec<_> =
        sampler.distribution(&mut [1.0, 5.0, 5.0]).unwrap().iter().map(|c| (c.id, c.probability)).collect();
    assert_eq!(chosen, [(1, 1.0)]);
}

#[test]
fn drawn_tokens_have_the_frequencies_of_the_distribution() {
    let logits = [1.0f32, 2.0, 0.5, -1.0, 3.0, 2.5, -8.0, f32::NEG_INFINITY];
    let configs = [
        NEUTRAL(),
        SamplerConfig { temperature: 2.0, ..NEUTRAL() },
        SamplerConfig { top_k: 3, temperature: 0.7, ..NEUTRAL() },
        SamplerConfig { top_p: 0.8, min_p: 0.3, ..NEUTRAL() },
    ];
    for config in configs {
        let config = SamplerConfig { seed: Some(42), ..config };
        let expected: HashMap<u32, f64> = reference(&config, &logits[..7]).into_iter().collect();
        let mut sampler = Sampler::new(config.clone()).unwrap();
        let draws = 40_000;
        let mut seen: HashMap<u32, u32> = HashMap::new();
        for _ in 0..draws {
            *seen.entry(sampler.sample(&mut logits.to_vec()).unwrap()).or_default() += 1;
        }
        for (id, p) in &expected {
            let found = f64::from(*seen.get(id).unwrap_or(&0)) / f64::from(draws);
            let deviation = (p * (1.0 - p) / f64::from(draws)).sqrt();
            assert!((found - p).abs() < 4.5 * deviation + 1e-4, "{config:?} token {id}: {found}, wanted {p}");
        }
        assert!(seen.keys().all(|id| expected.contains_key(id)), "{config:?} drew a token that was dropped");
    }
}

#[test]
fn the_same_seed_gives_the_same_ids_and_another_seed_others() {
    let run = |seed| {
        let mut sampler = Sampler::new(SamplerConfig { seed, ..SamplerConfig::default() }).unwrap();
        let mut random = Random(9);
        let ids: Vec<u32> = (0..50)
            .map(|_| {
                let id = sampler.sample(&mut random.logits(1000, 1.0)).unwrap();
                sampler.accept(id);
                id
            })
            .collect();
        (ids, sampler.seed())
    };
    let (ids, seed) = run(Some(7));
    assert_eq!(seed, 7);
    assert_eq!(run(Some(7)).0, ids);
    assert_ne!(run(Some(8)).0, ids);
    let (open, drawn) = run(None);
    assert_eq!(run(Some(drawn)).0, open, "the seed that was drawn repeats the run");
    assert_ne!(run(None).1, drawn);
}

#[test]
fn a_seed_means_the_same_ids_in_every_version() {
    let mut sampler = Sampler::new(SamplerConfig { seed: Some(1), ..NEUTRAL() }).unwrap();
    let ids: Vec<u32> = (0..12).map(|_| sampler.sample(&mut [0.0; 100]).unwrap()).collect();
    // PCG XSL-RR 128/64 worked out by hand in big integers: hundredths of a unit interval.
    assert_eq!(ids, [90, 42, 10, 57, 8, 67, 61, 30, 74, 77, 74, 45]);
}

#[test]
fn penalties_follow_their_formula_over_the_window_only() {
    let config = SamplerConfig {
        penalty_tokens: 4,
        repetition_penalty: 1.5,
        frequency_penalty: 0.25,
        presence_penalty: 0.5,
        ..NEUTRAL()
    };
    let mut sampler = Sampler::new(config).unwrap();
    for id in [0, 0, 1, 2, 1, 3, 9] {
        sampler.accept(id);
    }
    // In the window: 2, 1, 3, 9 (no such token here).
    let mut logits = [2.0, 3.0, -3.0, 0.0, 1.0];
    sampler.distribution(&mut logits).unwrap();
    assert_eq!(logits, [2.0, 3.0 / 1.5 - 0.75, -3.0 * 1.5 - 0.75, -0.75, 1.0]);
    sampler.accept(2);
    sampler.accept(2);
    // 3, 9, 2, 2.
    let mut logits = [2.0, 3.0, -3.0, 0.0, 1.0];
    sampler.sample(&mut logits).unwrap();
    assert_eq!(logits, [2.0, 3.0, -3.0 * 1.5 - 1.0, -0.75, 1.0]);
}

#[test]
fn greedy_obeys_penalties_and_bias() {
    let config = SamplerConfig { penalty_tokens: 8, presence_penalty: 1.0, ..SamplerConfig::greedy() };
    let mut sampler = Sampler::new(config).unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = sampler.sample(&mut [2.0, 1.5, 1.2]).unwrap();
        sampler.accept(id);
        ids.push(id);
    }
    assert_eq!(ids, [0, 1, 2]);
    let logit_bias = vec![(2, 1.0), (0, f32::NEG_INFINITY)];
    let mut sampler = Sampler::new(SamplerConfig { logit_bias, ..SamplerConfig::greedy() }).unwrap();
    assert_eq!(sampler.sample(&mut [9.0, 1.5, 1.2]), Ok(2));
}

#[test]
fn a_forbidden_token_is_never_drawn() {
    let logit_bias = vec![(1, f32::NEG_INFINITY)];
    for top_k in [0, 2, 3] {
        let config = SamplerConfig { logit_bias: logit_bias.clone(), top_k, seed: Some(3), ..NEUTRAL() };
        let mut sampler = Sampler::new(config).unwrap();
        assert!((0..500).all(|_| sampler.sample(&mut [0.0, 9.0, 0.0]).unwrap() != 1));
    }
}

#[test]
fn log_probabilities_are_of_the_models_own_distribution() {
    let logits = Random(5).logits(4000, 2.0);
    let found = logprobs(&logits, 17, 5).unwrap();
    let all = sorted(&logits);
    let p = probabilities(&all, 1.0);
    let rank = all.iter().position(|token| token.0 == 17).unwrap();
    assert!((f64::from(found.chosen) - p[rank].ln()).abs() < 1e-4);
    assert_eq!(found.top.len(), 5);
    for (found, (token, p)) in found.top.iter().zip(all.iter().zip(&p)) {
        assert_eq!(found.0, token.0);
        assert!((f64::from(found.1) - p.ln()).abs() < 1e-4);
    }
    assert_eq!(logprobs(&[0.0, 0.0], 7, 9).unwrap().top.len(), 2);
    assert_eq!(logprobs(&[0.0, 0.0], 7, 0).unwrap().chosen, f32::NEG_INFINITY);
    assert_eq!(logprobs(&[], 0, 1), Err(SamplerError::NoLogits));
}

#[test]
fn logits_that_are_no_numbers_are_an_error_that_names_the_token() {
    for config in [SamplerConfig::greedy(), SamplerConfig::default(), NEUTRAL()] {
        let mut sampler = Sampler::new(config).unwrap();
        for n in [3, 40] {
            for at in [0, 2, n - 1] {
                let mut logits = vec![1.0; n];
                logits[at] = f32::INFINITY;
                assert_eq!(sampler.sample(&mut logits), Err(SamplerError::NotFinite { id: at, value: f32::INFINITY }));
                logits[at] = f32::NAN;
                let error = sampler.sample(&mut logits).unwrap_err().to_string();
                assert!(error.contains(&format!("token {at} is NaN")), "{error}");
            }
        }
        assert_eq!(sampler.sample(&mut []), Err(SamplerError::NoLogits));
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 20]), Err(SamplerError::AllForbidden));
    }
}

#[test]
fn bad_settings_are_refused_by_name() {
    let refused = |config: SamplerConfig| Sampler::new(config).err().expect("accepted").to_string();
    let cases = [
        ("temperature is -1", SamplerConfig { temperature: -1.0, ..NEUTRAL() }),
        ("temperature is NaN", SamplerConfig { temperature: f32::NAN, ..NEUTRAL() }),
        ("top_p is 0", SamplerConfig { top_p: 0.0, ..NEUTRAL() }),
        ("top_p is 1.1", SamplerConfig { top_p: 1.1, ..NEUTRAL() }),
        ("typical_p is -0.5", SamplerConfig { typical_p: -0.5, ..NEUTRAL() }),
        ("min_p is 2", SamplerConfig { min_p: 2.0, ..NEUTRAL() }),
        ("repetition_penalty is 0", SamplerConfig { repetition_penalty: 0.0, ..NEUTRAL() }),
        ("frequency_penalty is inf", SamplerConfig { frequency_penalty: f32::INFINITY, ..NEUTRAL() }),
        ("presence_penalty is NaN", SamplerConfig { presence_penalty: f32::NAN, ..NEUTRAL() }),
        ("logit_bias is inf", SamplerConfig { logit_bias: vec![(1, f32::INFINITY)], ..NEUTRAL() }),
        ("logit_bias names token 1 twice", SamplerConfig { logit_bias: vec![(1, 0.0), (1, 1.0)], ..NEUTRAL() }),
    ];
    for (start, config) in cases {
        let error = refused(config);
        assert!(error.starts_with(start), "{error}");
    }
    let mut sampler = Sampler::new(SamplerConfig { logit_bias: vec![(3, 1.0)], ..NEUTRAL() }).unwrap();
    assert_eq!(sampler.sample(&mut [0.0; 3]), Err(SamplerError::BiasOutOfRange { id: 3, n_vocab: 3 }));
}

#[test]
fn the_defaults_are_those_qwen_recommends_for_its_coder() {
    let SamplerConfig { temperature, top_p, top_k, repetition_penalty, .. } = SamplerConfig::default();
    assert_eq!((temperature, top_p, top_k, repetition_penalty), (0.7, 0.8, 20, 1.05));
    let read: SamplerConfig = serde_json::from_str(r#"{"temperature": 0.2, "seed": 5}"#).unwrap();
    assert_eq!(read, SamplerConfig { temperature: 0.2, seed: Some(5), ..SamplerConfig::default() });
    assert!(serde_json::from_str::<SamplerConfig>(r#"{"temprature": 0.2}"#).is_err());
}
