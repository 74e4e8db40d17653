//! Pages whose every row says which tokens it was computed from, so that a wrong byte and a wrong page both show.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rynd::cache::{Begin, CacheStore, Digest, Group, Hit, Layout, Model, ModelKey, Options, Piece, SegmentWriter};
use tempfile::TempDir;

pub const PAGE: usize = 4;
const ROW: usize = 8;

/// A folder in memory where there is one, for syncing is slow.
pub fn folder() -> TempDir {
    match Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm").unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// Pages of 4 tokens, one group a window.
pub fn model(windows: &[Option<u32>], states: bool) -> Model {
    let group = |(i, window): (usize, &Option<u32>)| Group { page_bytes: PAGE * ROW * (i + 1), window: *window };
    let groups = windows.iter().enumerate().map(group).collect();
    let key = ModelKey::of(&[format!("{windows:?} {states}").as_bytes()]);
    Model { key, name: "toy".to_owned(), layout: Layout { page_tokens: PAGE, groups, states } }
}

/// What was told.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    pub fn options(&self, cap_bytes: u64) -> Options {
        let told = self.0.clone();
        Options { cap_bytes, notice: Arc::new(move |message| told.lock().unwrap().push(message.to_owned())) }
    }
}

pub fn open(dir: &Path, model: &Model) -> Arc<CacheStore> {
    CacheStore::open(dir, model.clone(), Told::default().options(u64::MAX)).unwrap()
}

/// A piece that owns what it is made of; token `t` has the text "t" and its number, or none where it divides by 7.
#[derive(Clone, Debug)]
pub struct Part {
    pub ids: Vec<u32>,
    pub start: usize,
    pub first_pages: Vec<usize>,
    pub states: Vec<(usize, usize)>,
    pub seconds: f64,
}

/// Group, page, bytes.
pub type Page = (usize, usize, Vec<u8>);

pub fn word(id: u32) -> String {
    if id.is_multiple_of(7) { String::new() } else { format!("t{id}") }
}

pub fn text(ids: &[u32]) -> String {
    ids.iter().map(|id| word(*id)).collect()
}

impl Part {
    /// All pages of `ids` from `start` on.
    pub fn new(ids: &[u32], start: usize, groups: usize) -> Part {
        Part { ids: ids.to_vec(), start, first_pages: vec![start / PAGE; groups], states: vec![], seconds: 1.0 }
    }

    pub fn with<T>(&self, f: impl FnOnce(&Piece<'_>) -> T) -> T {
        let own = &self.ids[self.start..];
        let lens: Vec<u32> = own.iter().map(|id| word(*id).len() as u32).collect();
        let text = text(own);
        let Part { ids, start, first_pages, states, seconds } = self;
        f(&Piece { ids, start: *start, lens: &lens, text: text.as_bytes(), first_pages, states, seconds: *seconds })
    }

    /// The records of pages, then those of states.
    pub fn records(&self) -> (Vec<Page>, Vec<Vec<u8>>) {
        let end = self.ids.len().div_ceil(PAGE);
        let groups = self.first_pages.iter().enumerate();
        let pages = groups.flat_map(|(g, first)| (*first..end).map(move |p| (g, p, page(&self.ids, g, p)))).collect();
        (pages, self.states.iter().map(|(at, bytes)| state(&self.ids[..*at], *bytes)).collect())
    }

    pub fn write_records(&self, writer: &mut SegmentWriter<'_>) {
        let (pages, states) = self.records();
        for (i, bytes) in states.iter().enumerate() {
            writer.state(i, bytes).unwrap();
        }
        for (group, page, bytes) in &pages {
            writer.page(*group, *page, bytes).unwrap();
        }
    }
}

/// Writes a part; its name, or nothing where it was not wanted.
pub fn put(store: &CacheStore, part: &Part) -> Option<Digest> {
    let Begin::Started(mut writer) = part.with(|piece| store.begin(piece)).unwrap() else { return None };
    part.write_records(&mut writer);
    Some(writer.finish().unwrap())
}

fn mix(hash: u64, n: u64) -> u64 {
    (hash ^ n).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
}

fn row(ids: &[u32], group: usize) -> [u8; ROW] {
    ids.iter().fold(0xcbf2_9ce4_8422_2325 + group as u64, |hash, id| mix(hash, u64::from(*id) + 1)).to_le_bytes()
}

/// The record of a page; rows past the end are left from something else.
pub fn page(ids: &[u32], group: usize, page: usize) -> Vec<u8> {
    let mut bytes = vec![];
    for position in page * PAGE..(page + 1) * PAGE {
        let row = if position < ids.len() { row(&ids[..=position], group) } else { *b"left-ovr" };
        (0..=group).for_each(|_| bytes.extend(row));
    }
    bytes
}

pub fn state(ids: &[u32], bytes: usize) -> Vec<u8> {
    row(ids, 99).iter().copied().cycle().take(bytes).collect()
}

/// Reads everything of a hit and compares it with what these ids compute.
pub fn check(hit: &Hit, model: &Model, ids: &[u32]) {
    for (g, group) in model.layout.groups.iter().enumerate() {
        let pages = hit.pages(g);
        let from = group.window.map_or(0, |window| hit.tokens.saturating_sub(window as usize));
        assert!(pages.start * PAGE <= from && pages.end * PAGE >= hit.tokens, "{pages:?} of {} tokens", hit.tokens);
        for p in pages {
            let mut bytes = vec![0; group.page_bytes];
            hit.read_page(g, p, &mut bytes).unwrap();
            let right = hit.tokens.min((p + 1) * PAGE) - p * PAGE;
            let row = ROW * (g + 1);
            assert_eq!(bytes[..right * row], page(ids, g, p)[..right * row], "group {g} page {p}");
        }
    }
    assert_eq!(hit.state_bytes().is_some(), model.layout.states);
    if let Some(bytes) = hit.state_bytes() {
        let mut read = vec![0; bytes];
        hit.read_state(&mut read).unwrap();
        assert_eq!(read, state(&ids[..hit.tokens], bytes));
    }
}
