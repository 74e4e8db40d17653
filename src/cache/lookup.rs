//! By ids: the longest stored prefix from which a sequence can go on.
//!
//! The record of a page is right for the tokens of that page up to where its segment's ids and the wanted ones part. So of
//! each page the record that reaches furthest counts, whichever segment it lies in, and going on at position `m` needs, in
//! each group, the pages that `m` sees, full but for the last, which must reach `m`. A model with states goes on only where
//! one was kept.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::digest::{self, Digest};
use super::error::{CacheError, Result};
use super::format::{Body, Place};
use super::index::{self, Entry};
use super::{CacheStore, Group, Layout, evict, file};

/// A segment whose prefix is the wanted one's.
struct Found {
    entry: Arc<Entry>,
    body: Arc<Body>,
    reach: usize, // position up to which its ids are the wanted ones
}

/// What can be read for a prefix of the wanted ids.
pub struct Hit {
    store: Arc<CacheStore>,
    /// Tokens, from position 0, that need not be computed.
    pub tokens: usize,
    sources: Vec<Source>,
    pages: Vec<Pages>,             // by group
    state: Option<(usize, Place)>, // source
}

struct Source {
    entry: Arc<Entry>,
    body: Arc<Body>,
    file: OnceLock<File>,
    used: AtomicBool,
}

struct Pages {
    first: usize,
    sources: Vec<usize>, // by page from `first`
}

impl CacheStore {
    /// The longest stored prefix of `ids` from which a sequence can go on. A caller that must compute the last token asks for
    /// all but that one.
    pub fn lookup(self: &Arc<Self>, ids: &[u32]) -> Option<Hit> {
        let layout = &self.model.layout;
        let mut found = vec![];
        let mut bad = vec![];
        {
            let index = self.refreshed();
            for (page, digest) in digest::chain(self.root, ids, layout.page_tokens).iter().enumerate() {
                let start = page * layout.page_tokens;
                for entry in index.own.by_parent.get(digest).into_iter().flatten().filter(|e| e.prefix.start == start) {
                    match entry.body_of(layout) {
                        Err(e) => bad.push((entry.prefix.name, e)),
                        Ok(body) => {
                            let same = body.ids.iter().zip(&ids[start..]).take_while(|(a, b)| a == b).count();
                            if same > 0 {
                                found.push(Found { entry: entry.clone(), body, reach: start + same });
                            }
                        }
                    }
                }
            }
        }
        for (name, error) in &bad {
            self.discard(name, error);
        }
        // Those that reach furthest first, so that few files are opened; then by name, so that the choice is always the same.
        found.sort_by_key(|f| (std::cmp::Reverse(f.reach), f.entry.prefix.name));
        self.hit(found)
    }

    fn hit(self: &Arc<Self>, found: Vec<Found>) -> Option<Hit> {
        let layout = &self.model.layout;
        let covers: Vec<Cover> = (0..layout.groups.len()).map(|g| Cover::new(g, layout, &found)).collect();
        let (tokens, state) = furthest(layout, &covers, &found)?;
        let pages: Vec<Pages> = covers.iter().map(|cover| cover.pages(tokens)).collect();

        let mut kept: Vec<usize> = pages.iter().flat_map(|p| p.sources.iter().copied()).collect();
        kept.extend(state.map(|(source, _)| source));
        kept.sort_unstable();
        kept.dedup();
        let place = |source: usize| kept.binary_search(&source).unwrap_or(0);
        let pages =
            pages.into_iter().map(|p| Pages { sources: p.sources.into_iter().map(place).collect(), ..p }).collect();
        let sources = kept.iter().map(|i| Source::new(&found[*i])).collect();
        let state = state.map(|(source, place_in_file)| (place(source), place_in_file));
        Some(Hit { store: self.clone(), tokens, sources, pages, state })
    }
}

/// The furthest position to go on from, with the state there.
fn furthest(layout: &Layout, covers: &[Cover], found: &[Found]) -> Option<(usize, Option<(usize, Place)>)> {
    if layout.states {
        let mut states = vec![];
        for (source, f) in found.iter().enumerate() {
            for (i, state) in f.body.states.iter().enumerate().filter(|(_, state)| state.position <= f.reach) {
                states.push((state.position, std::cmp::Reverse(source), i));
            }
        }
        states.sort_unstable();
        let (position, source, i) = states.into_iter().rev().find(|s| covers.iter().all(|c| c.reaches(s.0)))?;
        return Some((position, Some((source.0, Place::State(i)))));
    }
    let reach = found.iter().map(|f| f.reach).max()?;
    let position = (1..=reach).rev().find(|m| covers.iter().all(|cover| cover.reaches(*m)))?;
    Some((position, None))
}

/// What is known of one group's pages.
struct Cover {
    page_tokens: usize,
    window: Option<u32>,
    best: Vec<(usize, usize)>, // by page: position up to which the best record is right (0: none), its source
    run: Vec<usize>,           // by page: full pages right before it
}

impl Cover {
    fn new(g: usize, layout: &Layout, found: &[Found]) -> Cover {
        let page_tokens = layout.page_tokens;
        let reach = found.iter().map(|f| f.reach).max().unwrap_or(0);
        let mut best = vec![(0, 0); reach.div_ceil(page_tokens)];
        for (source, f) in found.iter().enumerate() {
            let group = &f.body.groups[g];
            let last = (group.first_page + group.pages).min(f.reach.div_ceil(page_tokens));
            for page in group.first_page..last {
                let right = f.reach.min((page + 1) * page_tokens);
                if right > best[page].0 {
                    best[page] = (right, source);
                }
            }
        }
        let mut full = 0;
        let run = best
            .iter()
            .enumerate()
            .map(|(page, (right, _))| {
                let before = full;
                full = if *right == (page + 1) * page_tokens { full + 1 } else { 0 };
                before
            })
            .collect();
        let Group { window, .. } = layout.groups[g];
        Cover { page_tokens, window, best, run }
    }

    /// The pages that position `m` sees.
    fn seen(&self, m: usize) -> Range<usize> {
        let from = self.window.map_or(0, |window| m.saturating_sub(window as usize));
        from / self.page_tokens..m.div_ceil(self.page_tokens)
    }

    fn reaches(&self, m: usize) -> bool {
        let seen = self.seen(m);
        // A window that sees nothing behind a page boundary needs no page.
        let Some(last) = seen.clone().next_back() else { return true };
        self.best.get(last).is_some_and(|(right, _)| *right >= m) && self.run[last] >= last - seen.start
    }

    fn pages(&self, m: usize) -> Pages {
        let seen = self.seen(m);
        Pages { first: seen.start, sources: seen.map(|page| self.best[page].1).collect() }
    }
}

impl Source {
    fn new(found: &Found) -> Source {
        let (entry, body) = (found.entry.clone(), found.body.clone());
        Source { entry, body, file: OnceLock::new(), used: AtomicBool::new(false) }
    }

    fn read(&self, place: Place, out: &mut [u8]) -> Result<()> {
        let file = match self.file.get() {
            Some(file) => file,
            None => {
                let file = self.entry.open()?;
                self.file.get_or_init(|| file)
            }
        };
        file::record(&self.entry.path, file, &self.entry.prefix, &self.body, place, out)?;
        if !self.used.swap(true, Ordering::Relaxed) {
            let used = evict::used_again(self.entry.used_ms(), index::now_ms());
            self.entry.used_ms.store(used, Ordering::Relaxed);
            index::stamp(file, used);
        }
        Ok(())
    }
}

impl Hit {
    /// The pages of a group that must be read: those that the next token sees.
    pub fn pages(&self, group: usize) -> Range<usize> {
        self.pages.get(group).map_or(0..0, |p| p.first..p.first + p.sources.len())
    }

    /// Bytes that reading everything takes.
    pub fn bytes(&self) -> u64 {
        let groups = self.store.model.layout.groups.iter().zip(&self.pages);
        let pages: u64 = groups.map(|(group, p)| (group.page_bytes * p.sources.len()) as u64).sum();
        pages + self.state_bytes().unwrap_or(0) as u64
    }

    /// Reads a page of a group, counted from position 0. In the last one only the rows before `tokens` mean anything.
    /// After an error another lookup finds what is left.
    pub fn read_page(&self, group: usize, page: usize, out: &mut [u8]) -> Result<()> {
        let pages = self.pages.get(group).ok_or(CacheError::Piece("a page of no group was asked for"))?;
        let source = page.checked_sub(pages.first).and_then(|i| pages.sources.get(i));
        let source = *source.ok_or(CacheError::Piece("a page beyond the hit was asked for"))?;
        self.read(source, Place::Page(group, page), out)
    }

    /// Bytes of the state at `tokens`, for a model that has states.
    pub fn state_bytes(&self) -> Option<usize> {
        let (source, place) = self.state?;
        self.sources[source].body.record(place).map(|(_, bytes)| bytes)
    }

    /// Reads the state at `tokens`.
    pub fn read_state(&self, out: &mut [u8]) -> Result<()> {
        let (source, place) = self.state.ok_or(CacheError::Piece("a state of a model without states was asked for"))?;
        self.read(source, place, out)
    }

    /// The segments that are read, in no particular order.
    pub fn segments(&self) -> impl Iterator<Item = Digest> {
        self.sources.iter().map(|source| source.entry.prefix.name)
    }

    fn read(&self, source: usize, place: Place, out: &mut [u8]) -> Result<()> {
        let source = &self.sources[source];
        source.read(place, out).inspect_err(|error| match error {
            CacheError::Bad { .. } | CacheError::Gone { .. } => self.store.discard(&source.entry.prefix.name, error),
            _ => {}
        })
    }
}
