//! `rynd cache`, driven from outside.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use rynd::cache::Digest;
use serde_json::Value;

use super::support::{Part, folder, model, open, put};

fn rynd(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
    command.arg("cache").args(arguments).env("RYND_HOME", home).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(home: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(&rynd(home, arguments))).unwrap()
}

#[test]
fn the_cache_is_listed_removed_from_and_verified() {
    let home = folder();
    assert_eq!(stdout(&rynd(home.path(), &["list"])).lines().count(), 1, "nothing there is no error");
    let pages = home.path().join("cache/pages");
    let (mut small, other) = (model(&[None], false), model(&[None], true));
    small.name = "evil\u{1b}[2J".to_owned();
    let ids: Vec<u32> = (1..=16).collect();
    let first = put(&open(&pages, &small), &Part::new(&ids[..8], 0, 1)).unwrap();
    put(&open(&pages, &small), &Part::new(&ids, 8, 1)).unwrap();
    let theirs = put(&open(&pages, &other), &Part { states: vec![(8, 10)], ..Part::new(&ids[..8], 0, 1) }).unwrap();

    let table = stdout(&rynd(home.path(), &["list"]));
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("t1t2t3t4t5t6t8") && table.contains("...t9") && table.contains("8-16"), "{table}");
    assert!(table.contains("evil\\u{1b}[2J") && !table.contains('\u{1b}'), "{table}");
    let listed = json(home.path(), &["list", "--json"]);
    let segments = listed["segments"].as_array().unwrap();
    assert_eq!(segments.iter().map(|s| s["tokens"].as_u64().unwrap()).sum::<u64>(), 24);

    // What goes on from a removed segment goes with it.
    let path = |key: &dyn std::fmt::Display, name: Digest| pages.join(key.to_string()).join(format!("{name}.kv"));
    let file = std::fs::File::open(path(&small.key, first)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(31 * 86_400)).unwrap();
    stdout(&rynd(home.path(), &["rm", "--older", "32d"]));
    stdout(&rynd(home.path(), &["rm", "--older", "30d", "--model", "toy"]));
    assert_eq!(json(home.path(), &["list", "--json"])["segments"].as_array().unwrap().len(), 3);
    stdout(&rynd(home.path(), &["rm", "--older", "30d"]));
    assert_eq!(json(home.path(), &["list", "--json"])["segments"].as_array().unwrap().len(), 1);
    assert!(!pages.join(small.key.to_string()).exists(), "an empty folder goes too");

    assert_eq!(stdout(&rynd(home.path(), &["verify"])).split(' ').next(), Some("1"));
    let theirs = path(&other.key, theirs);
    let mut bytes = std::fs::read(&theirs).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&theirs, bytes).unwrap();
    let found = rynd(home.path(), &["verify", "--json"]);
    assert_eq!(found.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found["broken"][0]["why"], "a record is damaged");
    assert!(!theirs.exists());
    assert_eq!(rynd(home.path(), &["verify"]).status.code(), Some(0));

    put(&open(&pages, &other), &Part { states: vec![(8, 10)], ..Part::new(&ids[..8], 0, 1) }).unwrap();
    stdout(&rynd(home.path(), &["rm", "--model", "toy"]));
    put(&open(&pages, &small), &Part::new(&ids[..8], 0, 1)).unwrap();
    stdout(&rynd(home.path(), &["rm", "--all"]));
    assert_eq!(std::fs::read_dir(&pages).unwrap().count(), 0);
}

#[test]
fn wrong_arguments_are_refused() {
    let home = folder();
    for arguments in [&["rm"][..], &["rm", "--older", "30"], &["rm", "--all", "--model", "x"], &[]] {
        assert_eq!(rynd(home.path(), arguments).status.code(), Some(2), "{arguments:?}");
    }
    let nowhere = rynd(home.path(), &["list", "--dir", "/nowhere/at/all"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("is no directory"));
}
