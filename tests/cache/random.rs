//! 20,000 random operations beside a map of what was written.

use std::collections::HashMap;
use std::path::Path;

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;
use rynd::cache::{Cabinet, CacheStore, Digest, Model};

use super::support::{PAGE, Part, Told, check, folder, model, put, text};

struct Random(Pcg64Mcg);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n.max(1) as u64) as usize
    }
}

/// What must be on the disk.
type Kept = HashMap<Digest, Part>;

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The definition, token by token: the longest prefix with all pages that its end sees.
fn longest(kept: &Kept, model: &Model, ids: &[u32]) -> usize {
    let usable: Vec<(&Part, usize)> =
        kept.values().map(|part| (part, common(&part.ids, ids))).filter(|(part, same)| *same > part.start).collect();
    let good = |m: usize| {
        let pages = model.layout.groups.iter().enumerate().all(|(g, group)| {
            let from = group.window.map_or(0, |window| m.saturating_sub(window as usize));
            (from / PAGE..m.div_ceil(PAGE)).all(|page| {
                usable.iter().any(|(part, same)| part.first_pages[g] <= page && *same >= m.min((page + 1) * PAGE))
            })
        });
        let state = || usable.iter().any(|(part, same)| *same >= m && part.states.iter().any(|s| s.0 == m));
        pages && (!model.layout.states || state())
    };
    (1..=ids.len()).rev().find(|m| good(*m)).unwrap_or(0)
}

/// The longest text that stored ids give for this one, where nothing that leads there is missing.
fn longest_text(kept: &Kept, wanted: &str) -> usize {
    let mut whole: Vec<(&Part, bool)> = kept.values().map(|part| (part, part.start == 0)).collect();
    whole.sort_by_key(|(part, _)| part.start);
    for i in 0..whole.len() {
        let part = whole[i].0;
        // Reached through a piece that holds the page boundary where this one begins.
        let leads = |(other, reached): &(&Part, bool)| {
            *reached && other.start < part.start && common(&other.ids, &part.ids) >= part.start
        };
        whole[i].1 |= whole[..i].iter().any(leads);
    }
    let ends = whole.iter().filter(|(_, reached)| *reached).flat_map(|(part, _)| {
        let ends = part.start + 1..=part.ids.len();
        ends.map(|n| text(&part.ids[..n])).filter(|t| wanted.starts_with(t.as_str())).map(|t| t.len())
    });
    ends.max().unwrap_or(0)
}

/// A sequence that shares a beginning with an earlier one.
fn sequence(random: &mut Random, earlier: &[Vec<u32>]) -> Vec<u32> {
    let mut ids = vec![];
    if !earlier.is_empty() && random.below(10) > 0 {
        let from = &earlier[random.below(earlier.len())];
        ids.extend(&from[..random.below(from.len() + 1)]);
    }
    let more = random.below(14) + usize::from(ids.is_empty());
    ids.extend((0..more).map(|_| 1 + random.below(3) as u32 * 5 + random.below(2) as u32));
    ids.truncate(60);
    ids
}

fn part(random: &mut Random, model: &Model, ids: &[u32]) -> Part {
    let end = ids.len().div_ceil(PAGE);
    let start = random.below(end) * PAGE;
    let mut part = Part::new(ids, start, model.layout.groups.len());
    for (group, first) in model.layout.groups.iter().zip(&mut part.first_pages) {
        if group.window.is_some() {
            *first += random.below(end - *first + 1);
        }
    }
    if model.layout.states {
        let positions = (start + 1..=ids.len()).filter(|_| random.below(3) == 0);
        part.states = positions.map(|m| (m, 9 + m % 5)).collect();
    }
    part.seconds = random.below(100) as f64;
    part
}

fn names(folder: &Path) -> Vec<Digest> {
    let names = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let digest = |name: String| {
        let bytes = (0..32).map(|i| u8::from_str_radix(&name[2 * i..2 * i + 2], 16).unwrap());
        Digest(bytes.collect::<Vec<u8>>().try_into().unwrap())
    };
    names.filter(|name| name.ends_with(".kv")).map(digest).collect()
}

fn run(seed: u128, operations: usize, model: &Model, cap: u64) {
    let random = &mut Random(Pcg64Mcg::new(seed));
    let dir = folder();
    let path = dir.path().join(model.key.to_string());
    let told = Told::default();
    let fresh = || CacheStore::open(dir.path(), model.clone(), told.options(cap)).unwrap();
    let mut stores = [fresh(), fresh()];
    let (mut kept, mut earlier) = (Kept::new(), Vec::<Vec<u32>>::new());
    let (mut found, mut written, mut damaged) = (0, 0, 0);
    for operation in 0..operations {
        let at = format!("seed {seed}, operation {operation}");
        let store = random.below(2);
        match random.below(100) {
            0..35 => {
                let ids = sequence(random, &earlier);
                let part = part(random, model, &ids);
                earlier.push(ids);
                if let Some(name) = put(&stores[store], &part) {
                    kept.insert(name, part);
                    written += 1;
                }
                let there = names(&path);
                assert!(cap < u64::MAX || there.len() == kept.len(), "{at}");
                kept.retain(|name, _| there.contains(name));
                assert_eq!(there.len(), kept.len(), "{at}");
                assert!(stores[store].size().1 <= cap, "{at}");
            }
            35..75 => {
                let ids = sequence(random, &earlier);
                let hit = stores[store].lookup(&ids);
                assert_eq!(hit.as_ref().map_or(0, |hit| hit.tokens), longest(&kept, model, &ids), "{at}: {ids:?}");
                if let Some(hit) = hit {
                    check(&hit, model, &ids);
                    found += 1;
                }
            }
            75..95 => {
                let ids = sequence(random, &earlier);
                let mut wanted = text(&ids);
                wanted.truncate(random.below(2 * wanted.len() + 1));
                let hit = stores[store].lookup_text(wanted.as_bytes());
                assert_eq!(hit.as_ref().map_or(0, |hit| hit.bytes), longest_text(&kept, &wanted), "{at}: {wanted}");
                if let Some(hit) = hit {
                    assert_eq!(text(&hit.ids), wanted[..hit.bytes], "{at}");
                }
            }
            95 => stores[store] = fresh(),
            96 => {
                // Somebody removes a file.
                let Some(name) = names(&path).first().copied() else { continue };
                std::fs::remove_file(path.join(format!("{name}.kv"))).unwrap();
                kept.remove(&name);
            }
            97 => {
                // A disk forgets a bit; the check finds it.
                let Some(name) = names(&path).last().copied() else { continue };
                let file = path.join(format!("{name}.kv"));
                let mut bytes = std::fs::read(&file).unwrap();
                let byte = random.below(bytes.len());
                bytes[byte] ^= 1 << random.below(8);
                std::fs::write(&file, bytes).unwrap();
                assert_eq!(Cabinet::new(dir.path()).verify(|_| {}).broken.len(), 1, "{at}: byte {byte}");
                kept.remove(&name);
                damaged += 1;
            }
            _ => {
                // A use shorter than all that is there changes no content.
                let ids = sequence(random, &earlier);
                let half = &ids[..ids.len() / 2];
                assert_eq!(stores[store].lookup(half).map_or(0, |h| h.tokens), longest(&kept, model, half), "{at}");
            }
        }
        if kept.len() > 150 {
            let removed = Cabinet::new(dir.path()).remove(|segment| segment.name.0[0] % 4 > 0).unwrap();
            removed.iter().for_each(|segment| drop(kept.remove(&segment.name)));
            earlier.clear();
        }
    }
    assert!(found > operations / 20 && written > operations / 20 && damaged > 0, "{found} {written} {damaged}");
    assert!(told.take().iter().all(|message| !message.contains("no longer kept")));
}

#[test]
fn random_operations_agree_with_a_map() {
    run(1, 7000, &model(&[None], false), u64::MAX);
    run(2, 5000, &model(&[None, Some(6), Some(0)], false), u64::MAX);
    run(3, 3000, &model(&[Some(9)], true), u64::MAX);
    run(4, 3000, &model(&[None], false), 12_000);
    run(5, 2000, &model(&[None, Some(5)], true), 12_000);
}
