//! The rates of a GPU: measured with the real kernels, kept, shown, and used in place of assumptions.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::path::Path;
use std::process::Command;

use golden_case::{fixture, gpu_options};
use rynd::catalog::Home;
use rynd::engine::{Devices, kept_gpu_rates, measure_gpu};

/// Standard output of `rynd` with this home, software renderers counting as hardware.
fn rynd(home: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
    let output = command.args(arguments).env("RYND_HOME", home).env("RYND_GPU_SOFTWARE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_gpu_is_measured_and_its_rates_are_kept() {
    if gpu_options().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let home = Home::at(folder.path());
    let devices = Devices::list();
    let adapter = devices.report(0).unwrap();
    assert_eq!(kept_gpu_rates(adapter, &home), None);
    // With a budget that a whole matrix would exceed, a smaller one has to do.
    let rates = measure_gpu(&devices, adapter, &home, 2, Some(64 << 20)).unwrap();
    println!("{rates}");
    assert_eq!(kept_gpu_rates(adapter, &home), Some(rates));
    // Nothing computes a petabyte a second or takes a minute for a dispatch: units are what they should be.
    for figure in [rates.vram_bytes_per_second, rates.bus_bytes_per_second, rates.batch_ops_per_second] {
        assert!(figure > 1e6 && figure < 1e16, "{rates:?}");
    }
    for seconds in [rates.dispatch_seconds, rates.read_back_seconds] {
        assert!((1e-9..60.0).contains(&seconds), "{rates:?}");
    }
}

#[test]
fn devices_shows_and_measures_rates_and_plan_uses_them() {
    if gpu_options().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    assert!(!rynd(home, &["devices"]).contains("measured"));
    let measured = rynd(home, &["devices", "--measure"]);
    let line = measured.lines().find(|line| line.contains("measured: memory")).unwrap().trim().to_owned();
    assert!(rynd(home, &["devices"]).contains(&line), "the same figures are shown again");
    let devices: serde_json::Value = serde_json::from_str(&rynd(home, &["devices", "--json"])).unwrap();
    let kept = &devices[0]["rates"];
    let model = fixture("models/qwen3moe/model.gguf");
    let plan = |arguments: &[&str]| -> serde_json::Value {
        let all = [&["plan", model.to_str().unwrap(), "--json", "--disk", "2"][..], arguments].concat();
        serde_json::from_str(&rynd(home, &all)).unwrap()
    };
    let rig = &plan(&[])["rig"];
    for (found, expected) in [("vram_rate", "vram_bytes_per_second"), ("gpu_ops", "batch_ops_per_second")] {
        let (found, expected) = (rig[found].as_f64().unwrap(), kept[expected].as_f64().unwrap());
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
    }
    // Cards that the user describes are not these.
    assert!(plan(&["--vram", "0"])["rig"]["vram_bytes"].as_array().unwrap().is_empty());
    let file = home.join("cache/rates.json");
    std::fs::write(&file, "[{\"simd\":").unwrap();
    assert!(!rynd(home, &["devices"]).contains("measured"), "a damaged file holds nothing");
    rynd(home, &["devices", "--measure"]);
    assert!(rynd(home, &["devices"]).contains("measured"));
}
