//! A model file that is cut short while it is mapped: an error, never a dead program or a made-up result.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rynd::engine::{Engine, EngineConfig, EngineError, Session};
use rynd::gguf::{Gguf, GgufError};

/// A copy of a tiny model to cut, and a handle for it.
fn copy(folder: &tempfile::TempDir, model: &str) -> (PathBuf, File) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model);
    let path = folder.path().join("model.gguf");
    std::fs::copy(from, &path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    (path, file)
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_damaged_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let (path, file) = copy(&folder, "quantized/qwen2-Q4_K_M.gguf");
    let gguf = Gguf::open(&path).unwrap();
    let last = gguf.tensors().iter().max_by_key(|t| t.offset).unwrap().clone();
    assert!(gguf.bytes(&last).iter().any(|&byte| byte != 0));
    gguf.check_intact().unwrap();
    file.set_len(4096).unwrap();
    assert!(gguf.bytes(&last).iter().all(|&byte| byte == 0));
    let error = gguf.check_intact().unwrap_err();
    assert!(matches!(error, GgufError::Damaged { .. }) && error.to_string().contains("model.gguf"), "{error}");
    // Also when the file comes back: what was read since is not known.
    file.set_len(1 << 20).unwrap();
    gguf.check_intact().unwrap_err();
}

#[test]
fn a_run_over_a_file_that_was_cut_is_an_error_and_so_is_every_later_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, file) = copy(&folder, "quantized/qwen3moe_wide-Q4_K_M.gguf");
    let config = EngineConfig { threads: Some(2), context: Some(64), ..EngineConfig::default() };
    let mut engine = Engine::load(&path, &config).unwrap();
    let mut session = Session::new();
    session.sync(&mut engine, &[1, 2, 3]).unwrap();
    file.set_len(8192).unwrap();
    for ids in [&[1, 2, 3, 4][..], &[1, 2, 3, 4, 5]] {
        let error = session.sync(&mut engine, ids).map(|_| ()).unwrap_err();
        assert!(matches!(&error, EngineError::Gguf(GgufError::Damaged { .. })), "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_program_whose_model_is_cut_says_so_and_exits_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (path, file) = copy(&folder, "quantized/qwen2-Q4_K_M.gguf");
    let mut child = Command::new(env!("CARGO_BIN_EXE_rynd"))
        .args(["bench", "--gpu", "off", "-t", "1", "--json", "-n", "60000"])
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let maps = format!("/proc/{}/maps", child.id());
    while !std::fs::read_to_string(&maps).unwrap().contains("model.gguf") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    file.set_len(8192).unwrap();
    let mut stderr = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_to_string(&mut stderr).unwrap();
    let status = child.wait().unwrap();
    let lines: Vec<_> = child.stdout.take().map(|out| BufReader::new(out).lines().collect()).unwrap_or_default();
    assert_eq!(status.code(), Some(1), "{stderr} {lines:?}");
    assert!(stderr.contains("model.gguf: a part of the file was gone"), "{stderr}");
}
