//! Whole files, mutated: whatever a model file says, reading, tokenising, running, scoring and quantising it ends in a
//! result or in an error, without a panic, without hanging, in bounded memory, and never in a result that is no number.
//!
//! Seeded: a failure prints the number of its mutant, and `RYND_MUTANT=N` runs that one alone. Memory is counted by this
//! binary's allocator; hence one test only. A mutant that ends the process leaves its number in `mutant` of the folder
//! that the test prints.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod memory;
mod models;
mod mutate;
mod uses;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mutate::Rng;
use uses::Outcome;

const MUTANTS: u64 = 20_000;
/// What a mutant of a file of 120 kB may take beyond what the file itself needs: caches and buffers of a small run.
const MOST_BYTES: usize = 256 << 20;
/// No mutant takes seconds; a machine that is busy does.
const HANG: Duration = Duration::from_secs(120);

/// What one worker is doing, for whoever watches.
struct Turn {
    mutant: AtomicU64,
    since: Mutex<Instant>,
}

#[derive(Default)]
struct Counts {
    good: AtomicU64,
    refused: AtomicU64,
    no_number: AtomicU64,
    panicked: AtomicU64,
    slow: AtomicU64,
}

fn folder() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// One mutant, from its number alone.
fn mutant(bases: &[models::Base], number: u64) -> Vec<u8> {
    let mut rng = Rng::new(number);
    let base = &bases[rng.below(bases.len())];
    mutate::mutate(base, &mut rng)
}

#[test]
fn no_mutated_model_file_panics_hangs_takes_much_memory_or_gives_what_is_no_number() {
    let folder = folder();
    println!("in {}", folder.display());
    let bases = models::bases(&folder);
    for base in &bases {
        assert_eq!(uses::all(base.bytes.clone(), &folder.join("whole.gguf"), 0), Outcome::Good, "{}", base.name);
    }
    let numbers: Vec<u64> = match std::env::var("RYND_MUTANT") {
        Ok(number) => vec![number.parse().unwrap()],
        Err(_) => (0..MUTANTS).collect(),
    };
    let (next, counts, failures) = (AtomicU64::new(0), Counts::default(), Mutex::new(Vec::<String>::new()));
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    let turns: Vec<Turn> =
        (0..workers).map(|_| Turn { mutant: AtomicU64::new(u64::MAX), since: Mutex::new(Instant::now()) }).collect();
    memory::start();
    std::panic::set_hook(Box::new(|_| {}));
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&turns, &over));
        let handles: Vec<_> = turns
            .iter()
            .enumerate()
            .map(|(worker, turn)| {
                let (next, counts, failures, numbers) = (&next, &counts, &failures, &numbers);
                let (bases, folder) = (&bases, &folder);
                scope.spawn(move || {
                    let file = folder.join(format!("{worker}.gguf"));
                    let note = folder.join(format!("mutant-{worker}"));
                    while let Some(&number) = numbers.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                        turn.mutant.store(number, Ordering::Relaxed);
                        *turn.since.lock().unwrap() = Instant::now();
                        std::fs::write(&note, number.to_string()).unwrap();
                        let bytes = mutant(bases, number);
                        let begun = Instant::now();
                        let done = catch_unwind(AssertUnwindSafe(|| uses::all(bytes, &file, number)));
                        if begun.elapsed() > Duration::from_secs(5) {
                            counts.slow.fetch_add(1, Ordering::Relaxed);
                        }
                        let count = match done {
                            Ok(Outcome::Good) => &counts.good,
                            Ok(Outcome::Refused(_)) => &counts.refused,
                            Ok(Outcome::NoNumber(what)) => {
                                failures
                                    .lock()
                                    .unwrap()
                                    .push(format!("mutant {number}: {what} is no number, and no error"));
                                &counts.no_number
                            }
                            Err(panic) => {
                                let text = panic.downcast_ref::<String>().cloned();
                                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                                failures
                                    .lock()
                                    .unwrap()
                                    .push(format!("mutant {number} panicked: {}", text.unwrap_or_default()));
                                &counts.panicked
                            }
                        };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    turn.mutant.store(u64::MAX, Ordering::Relaxed);
                })
            })
            .collect();
        handles.into_iter().for_each(|handle| handle.join().unwrap());
        over.store(true, Ordering::Relaxed);
    });
    let _ = std::panic::take_hook();
    let Counts { good, refused, no_number, panicked, slow } = counts;
    let [good, refused, no_number, panicked, slow] =
        [good, refused, no_number, panicked, slow].map(AtomicU64::into_inner);
    let peak = memory::peak();
    println!(
        "{good} used, {refused} refused, {no_number} gave no number, {panicked} panicked, {slow} took over 5 s; at most \
         {} MB at once",
        peak / 1_000_000
    );
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        numbers.len(),
        failures[..failures.len().min(20)].join("\n")
    );
    assert!(peak <= MOST_BYTES * workers, "{peak} bytes at once");
    if numbers.len() > 1 {
        // Both ways must have been taken often, or the mutations test nothing.
        assert!(good > MUTANTS / 20 && refused > MUTANTS / 20, "{good} used, {refused} refused");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Ends the process when a mutant hangs: a thread can not be stopped from outside.
fn watch(turns: &[Turn], over: &std::sync::atomic::AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(200));
        for turn in turns {
            let mutant = turn.mutant.load(Ordering::Relaxed);
            if mutant != u64::MAX && turn.since.lock().unwrap().elapsed() > HANG {
                eprintln!("mutant {mutant} hangs");
                std::process::exit(1);
            }
        }
    }
}
