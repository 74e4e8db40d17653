//! The cap: what costs least to lose goes first.
//!
//! A segment's worth is the seconds that computing it again takes, a byte, times how much it is used: each use counts 1 and
//! halves every [`HALF_LIFE_MS`]. Such a sum is as good as one single use at a later time, and that time is kept, as the
//! file's own time of change: it needs no side file, and every process adds to it. In these terms the order of two segments
//! never changes by waiting. What others go on from stays until they are gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::CacheStore;
use super::digest::Digest;
use super::format::Prefix;
use super::index::{Entry, Folder, Index};

/// Of a use's weight. Chosen, not measured: a day's conversations outlive a week's only when they cost more.
pub const HALF_LIFE_MS: f64 = 24.0 * 3600.0 * 1000.0;

/// The time that stands for the uses so far and one now.
pub fn used_again(used_ms: i64, now_ms: i64) -> i64 {
    let weight = ((used_ms - now_ms) as f64 / HALF_LIFE_MS).exp2();
    now_ms + (HALF_LIFE_MS * weight.min(1e9).ln_1p() / std::f64::consts::LN_2) as i64
}

/// Larger is worth more; halving what it costs to lose takes 1.
fn worth(entry: &Entry) -> f64 {
    let density = entry.prefix.seconds.max(1e-9) / entry.prefix.file_bytes as f64;
    density.log2() + entry.used_ms() as f64 / HALF_LIFE_MS
}

impl CacheStore {
    /// Removes segments, of any model, until this one fits under the cap; false if it never will.
    pub(super) fn make_room(&self, wanted: &Prefix) -> bool {
        let need = wanted.file_bytes;
        if need > self.options.cap_bytes {
            return false;
        }
        let mut index = self.refreshed();
        index.refresh_others(&self.dir);
        let pending = self.pending.load(Ordering::Relaxed);
        let mut over =
            index.bytes().saturating_add(pending).saturating_add(need).saturating_sub(self.options.cap_bytes);
        if over == 0 {
            return true;
        }
        let mut tree = Tree::new(&index, wanted);
        while over > 0 {
            let Some(victim) = tree.least() else { return false };
            // Another process may have been faster.
            match std::fs::remove_file(&victim.path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    self.notice(&format!("{} can not be removed to make room: {e}", victim.path.display()));
                    return false;
                }
                _ => {}
            }
            over = over.saturating_sub(victim.prefix.file_bytes);
            index.forget(&victim);
        }
        true
    }
}

/// Who goes on from whom.
struct Tree {
    left: Vec<Node>,
}

struct Node {
    entry: Arc<Entry>,
    worth: f64,
    needed: bool, // what is about to be written goes on from it
    children: HashSet<Digest>,
}

impl Tree {
    fn new(index: &Index, wanted: &Prefix) -> Tree {
        let mut left = vec![];
        for folder in std::iter::once(&index.own).chain(index.others.values()) {
            for entry in folder.entries.values() {
                let (children, needed) = children(folder, entry, wanted);
                left.push(Node { entry: entry.clone(), worth: worth(entry), needed, children });
            }
        }
        // What nothing leads to is worth nothing. Parents begin before their children.
        left.sort_by_key(|node| node.entry.prefix.start);
        let mut reached = HashSet::new();
        for node in &mut left {
            if node.entry.prefix.start == 0 || reached.contains(&node.entry.prefix.name) {
                reached.extend(node.children.iter().copied());
            } else {
                node.worth = f64::NEG_INFINITY;
            }
        }
        left.sort_by(|a, b| b.worth.total_cmp(&a.worth).then(b.entry.prefix.name.cmp(&a.entry.prefix.name)));
        Tree { left }
    }

    /// Takes out the one worth least that nothing goes on from.
    fn least(&mut self) -> Option<Arc<Entry>> {
        let at = self.left.iter().rposition(|node| node.children.is_empty() && !node.needed)?;
        let entry = self.left.remove(at).entry;
        for node in &mut self.left {
            node.children.remove(&entry.prefix.name);
        }
        Some(entry)
    }
}

/// The segments that go on from a page boundary inside this one, and whether the wanted one does.
fn children(folder: &Folder, entry: &Entry, wanted: &Prefix) -> (HashSet<Digest>, bool) {
    // A body that can not be read is nobody's parent.
    let digests = entry.boundaries().unwrap_or_default();
    let mut children = HashSet::new();
    for digest in digests {
        children.extend(folder.by_parent.get(digest).into_iter().flatten().map(|child| child.prefix.name));
    }
    (children, digests.contains(&wanted.parent))
}
