//! Processes that are killed while they write.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;
use rynd::cache::{Cabinet, CacheStore, Model, Writer};

use super::behind;
use super::support::{Part, Told, check, folder, model};

const KILLS: usize = 200;
const CAP: u64 = 3 << 20;

/// This test program again, as a process that does one thing in a folder.
pub fn child(what: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::a_process_of_its_own", "--ignored", "--nocapture"]);
    command.env("RYND_TEST_CHILD", what).env("RYND_TEST_DIR", dir);
    command
}

#[test]
#[ignore = "is started by other tests"]
fn a_process_of_its_own() {
    let dir = PathBuf::from(std::env::var_os("RYND_TEST_DIR").unwrap());
    match std::env::var("RYND_TEST_CHILD").unwrap().as_str() {
        "full" => behind::write_until_full(&dir),
        seed => write_for_ever(&dir, seed.parse().unwrap()),
    }
}

fn toy() -> Model {
    model(&[None, Some(6), Some(12)], true)
}

/// The conversations that are written: `turn` pieces one after the other.
fn conversation(seed: u32, turns: usize) -> Vec<u32> {
    (0..turns as u32 * 12).map(|i| 1 + (seed * 31 + i * i) % 1000).collect()
}

fn write_for_ever(dir: &Path, first: u32) {
    let store = CacheStore::open(dir, toy(), Told::default().options(CAP)).unwrap();
    let writer = Writer::new(store, 1 << 20, Duration::from_secs(1)).unwrap();
    println!("ready");
    for seed in first.. {
        for turn in 1..=4 {
            let ids = conversation(seed % 40, turn);
            let start = (turn - 1) * 12;
            let states = vec![(start + 5, 100), (ids.len(), 40_000 + (seed as usize % 7) * 20_000)];
            behind::save(&writer, &Part { states, ..Part::new(&ids, start, 3) });
        }
    }
}

#[test]
fn whatever_was_being_written_when_a_process_is_killed_only_whole_content_is_served() {
    let dir = folder();
    let toy = toy();
    let mut random = Pcg64Mcg::new(7);
    let (mut torn, mut served) = (0, 0);
    for kill in 0..KILLS {
        let mut process = child(&(kill * 3).to_string(), dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("ready")));
        std::thread::sleep(Duration::from_micros(random.next_u64() % 20_000));
        process.kill().unwrap();
        process.wait().unwrap();

        let left = |ending: &str| {
            let files = std::fs::read_dir(dir.path().join(toy.key.to_string())).unwrap();
            files.filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == ending)).count()
        };
        torn += left("tmp");
        let told = Told::default();
        let store = CacheStore::open(dir.path(), toy.clone(), told.options(CAP)).unwrap();
        assert_eq!(left("tmp"), 0, "what a dead process left is swept");
        let (files, bytes) = store.size();
        assert!(files == left("kv") && bytes <= CAP);
        for seed in 0..40 {
            let ids = conversation(seed, 4);
            if let Some(hit) = store.lookup(&ids) {
                check(&hit, &toy, &ids);
                served += hit.tokens;
            }
        }
        let found = Cabinet::new(dir.path()).verify(|_| {});
        assert!(found.broken.is_empty() && found.files == files, "{found:?}");
        assert_eq!(told.take(), Vec::<String>::new());
    }
    eprintln!("{KILLS} kills, {torn} torn files swept, {served} tokens served");
    assert!(torn > KILLS / 20 && served > 0, "{torn} torn files, {served} tokens served");
}

#[test]
fn the_file_of_a_living_writer_is_not_swept() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = super::support::open(dir.path(), &toy);
    let part = Part::new(&[1, 2, 3], 0, 1);
    let rynd::cache::Begin::Started(mut writer) = part.with(|piece| store.begin(piece)).unwrap() else {
        panic!("it begins")
    };
    let other = super::support::open(dir.path(), &toy);
    Cabinet::new(dir.path()).verify(|_| {});
    part.write_records(&mut writer);
    writer.finish().unwrap();
    check(&other.lookup(&part.ids).unwrap(), &toy, &part.ids);
}
