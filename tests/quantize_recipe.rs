//! The choice of formats against llama-quantize's `--dry-run`: every file type over the shapes of nine real and odd
//! models, with and without an importance matrix, and with the flags that override.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use regex_automata::meta::Regex;
use rynd::quantize::file_type::FileType;
use rynd::quantize::recipe::{ModelFacts, Recipe};
use rynd_quant::Format;
use serde_json::Value;

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quantize/type_choice.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn number(config: &Value, key: &str) -> usize {
    config[key].as_u64().unwrap_or(0) as usize
}

/// (name, shape) of every tensor: `blk.*` once a layer.
fn tensors(model: &Value) -> Vec<(String, Vec<u64>)> {
    let layers = number(&model["config"], "L");
    let shapes = model["shapes"].as_object().unwrap().iter();
    shapes
        .flat_map(|(name, shape)| {
            let shape: Vec<u64> = shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
            let copies = if name.contains('*') { layers } else { 1 };
            (0..copies).map(move |layer| (name.replace('*', &layer.to_string()), shape.clone()))
        })
        .collect()
}

fn facts(model: &Value, tensors: &[(String, Vec<u64>)]) -> ModelFacts {
    let config = &model["config"];
    let heads = [number(config, "nh"), number(config, "nkv")];
    let names = tensors.iter().map(|(name, _)| name.as_str());
    ModelFacts::new(config["arch"].as_str().unwrap(), number(config, "L"), number(config, "E"), heads, names)
}

fn recipe(case: &Value) -> Recipe {
    let mut recipe = Recipe::new(FileType::from_name(case["type"].as_str().unwrap()).unwrap());
    let format = |name: &str| Some(Format::from_name(name).unwrap());
    let mut flags = case["flags"].as_array().unwrap().iter().map(|flag| flag.as_str().unwrap());
    while let Some(flag) = flags.next() {
        match flag {
            "--pure" => recipe.pure = true,
            "--imatrix" => recipe.weighted = true,
            "--output-tensor-type" => recipe.output = format(flags.next().unwrap()),
            "--token-embedding-type" => recipe.embedding = format(flags.next().unwrap()),
            "--tensor-type" => {
                let (pattern, name) = flags.next().unwrap().split_once('=').unwrap();
                recipe.overrides.push((Regex::new(pattern).unwrap(), format(name).unwrap()));
            }
            _ => panic!("{flag}"),
        }
    }
    recipe
}

/// "Q6_K*3 Q4_K*2" by layer, or one name for all.
fn expected(choices: &Value, name: &str, layer: usize) -> Option<Format> {
    let runs = choices[name].as_str()?;
    let mut end = 0;
    for run in runs.split(' ') {
        let (name, count) = run.split_once('*').unwrap_or((run, "1000"));
        end += count.parse::<usize>().unwrap();
        if layer < end {
            return Format::from_name(name);
        }
    }
    None
}

#[test]
fn every_file_type_chooses_as_llama_quantize_does() {
    let fixture = fixture();
    let mut compared = 0;
    for case in fixture["cases"].as_array().unwrap() {
        let model = &fixture["models"][case["model"].as_str().unwrap()];
        let tensors = tensors(model);
        let (facts, recipe) = (facts(model, &tensors), recipe(case));
        for (name, shape) in &tensors {
            let now = if shape.len() > 1 && !name.contains("ffn_gate_inp") { Format::F16 } else { Format::F32 };
            if recipe.overrides.iter().any(|(pattern, _)| pattern.is_match(name))
                && !recipe.file_type.base.is_quantized()
            {
                continue; // llama-quantize takes no orders for such files, and says nothing: see the next test
            }
            let found = recipe.choose(&facts, name, shape, now);
            let layer = name.split('.').nth(1).and_then(|n| n.parse().ok());
            let pattern = layer.map_or(name.clone(), |n: usize| name.replacen(&n.to_string(), "*", 1));
            let wanted = match shape.len() {
                1 => Format::F32,
                _ => expected(&case["choices"], &pattern, layer.unwrap_or(0)).expect(name),
            };
            assert_eq!(found, wanted, "{} {} {}: {name}", case["model"], case["type"], case["flags"]);
            compared += 1;
        }
    }
    assert!(compared > 60_000, "only {compared} tensors were compared");
}

#[test]
fn a_named_tensor_leaves_its_neighbours_alone() {
    let names: Vec<String> = (0..16).map(|layer| format!("blk.{layer}.attn_v.weight")).collect();
    let facts = ModelFacts::new("llama", 16, 0, [32, 8], names.iter().map(String::as_str));
    let mut recipe = Recipe::new(FileType::from_name("q4_k_s").unwrap());
    recipe.overrides.push((Regex::new("blk.0.attn_v").unwrap(), Format::Q8_0));
    let formats: Vec<Format> =
        names.iter().map(|name| recipe.choose(&facts, name, &[256, 256], Format::F16)).take(5).collect();
    assert_eq!(formats, [Format::Q8_0, Format::Q5_K, Format::Q5_K, Format::Q5_K, Format::Q4_K]);
}

#[test]
fn a_named_tensor_gets_its_format_in_an_f16_file_too() {
    let facts = ModelFacts::new("llama", 1, 0, [32, 8], ["blk.0.ffn_down.weight"].into_iter());
    let mut recipe = Recipe::new(FileType::from_name("F16").unwrap());
    recipe.overrides.push((Regex::new("ffn_down").unwrap(), Format::Q8_0));
    let choose = |name: &str| recipe.choose(&facts, name, &[256, 256], Format::F32);
    assert_eq!([choose("blk.0.ffn_down.weight"), choose("blk.0.ffn_up.weight")], [Format::Q8_0, Format::F16]);
}

#[test]
fn aliases_name_the_medium_recipes() {
    for (alias, name) in [("q4_k", "Q4_K_M"), ("Q5_K", "Q5_K_M"), ("mxfp4", "MXFP4_MOE")] {
        assert_eq!(FileType::from_name(alias).unwrap().name, name);
    }
    assert!(FileType::from_name("Q9_K").is_none());
    assert!(FileType::names().contains("Q4_K_M, Q4_K_S"));
}
