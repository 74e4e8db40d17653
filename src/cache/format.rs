//! The bytes of a segment file, little-endian, version 1.
//!
//! ```text
//! prefix   256 bytes: magic 8, version 4, page_tokens 4, model key 32, parent 32, name 32, start 4, tokens 4,
//!          text_bytes 8, file_bytes 8, created_ms 8, seconds 8 (f64), groups 4, states 4, body_bytes 8, body_sum 8,
//!          flags 4 (1: goes on from states only), model_name_bytes 4, zeros, prefix_sum 8
//! body     model name, groups * (page_bytes 8, window 4, first_page 4, pages 4, zero 4),
//!          states * (position 4, zero 4, bytes 8), ids tokens * 4, lens tokens * 4, text
//! records  by group its pages, then the states: the bytes and their sum 8
//! ```
//!
//! Sums are XXH3-64; a record's is seeded with the prefix's sum and the record's place, so that none passes for another one.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::digest::{self, Digest, ModelKey};
use super::error::CacheError;
use super::{Group, Layout, Model, Piece};

pub const PREFIX_BYTES: usize = 256;
pub const SUM_BYTES: u64 = 8;
pub const MOST_GROUPS: usize = 64;
pub const MOST_PAGE_TOKENS: usize = 1 << 16;
const MAGIC: &[u8; 8] = b"RYNDKV\r\n";
const VERSION: u32 = 1;
const GROUP_BYTES: u64 = 24;
const STATE_BYTES: u64 = 16;
const SUM_AT: usize = PREFIX_BYTES - 8;
const ALL: u32 = u32::MAX; // a window that sees everything

/// The fixed part: enough to place a segment in the chain and to weigh it.
#[derive(Clone, Debug)]
pub struct Prefix {
    pub key: ModelKey,
    pub parent: Digest,
    pub name: Digest,
    pub page_tokens: usize,
    pub start: usize,
    pub tokens: usize,
    pub text_bytes: u64,
    pub file_bytes: u64,
    pub created_ms: i64,
    pub seconds: f64,
    pub states: bool,
    pub sum: u64,
    group_count: usize,
    state_count: usize,
    name_bytes: usize,
    pub body_bytes: u64,
    body_sum: u64,
}

/// The rest of the header.
#[derive(Debug)]
pub struct Body {
    pub model_name: String,
    pub groups: Vec<GroupPages>,
    pub states: Vec<StateAt>,
    pub ids: Vec<u32>,
    pub lens: Vec<u32>,
    pub text: Vec<u8>,
}

/// The records of one group.
#[derive(Clone, Copy, Debug)]
pub struct GroupPages {
    pub group: Group,
    pub first_page: usize, // counted from position 0
    pub pages: usize,
    pub at: u64, // of the first record
}

#[derive(Clone, Copy, Debug)]
pub struct StateAt {
    pub position: usize,
    pub bytes: usize,
    pub at: u64,
}

/// Which record of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Group, and page counted from position 0.
    Page(usize, usize),
    State(usize),
}

/// A header on its way to a file.
pub struct Header {
    pub bytes: Vec<u8>,
    pub prefix: Prefix,
    pub body: Body,
}

/// The sum of a record.
pub fn record_sum(prefix_sum: u64, place: Place, bytes: &[u8]) -> u64 {
    let place = match place {
        Place::Page(group, page) => (group as u64 + 1) << 32 | page as u64,
        Place::State(state) => state as u64,
    };
    xxh3_64_with_seed(bytes, prefix_sum ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl Header {
    /// The header of this piece, whose name is that of its content.
    pub fn new(model: &Model, root: Digest, piece: &Piece<'_>, created_ms: i64) -> Result<Header, CacheError> {
        let layout = &model.layout;
        let own = check(layout, piece)?;
        let parent = digest::chain(root, &piece.ids[..piece.start], layout.page_tokens).pop().unwrap_or(root);
        let end_page = piece.ids.len().div_ceil(layout.page_tokens);

        let model_name = shown(&model.name);
        let mut body = model_name.as_bytes().to_vec();
        for (group, first) in layout.groups.iter().zip(piece.first_pages) {
            body.extend((group.page_bytes as u64).to_le_bytes());
            for n in [group.window.unwrap_or(ALL), *first as u32, (end_page - first) as u32, 0] {
                body.extend(n.to_le_bytes());
            }
        }
        for (position, bytes) in piece.states {
            body.extend((*position as u64).to_le_bytes());
            body.extend((*bytes as u64).to_le_bytes());
        }
        own.iter().chain(piece.lens).for_each(|n| body.extend(n.to_le_bytes()));
        body.extend(piece.text);

        let records: u64 = layout
            .groups
            .iter()
            .zip(piece.first_pages)
            .map(|(group, first)| (group.page_bytes as u64 + SUM_BYTES) * (end_page - first) as u64)
            .sum();
        let states: u64 = piece.states.iter().map(|(_, bytes)| *bytes as u64 + SUM_BYTES).sum();
        let mut prefix = Prefix {
            key: model.key,
            parent,
            name: digest::name(&parent, own),
            page_tokens: layout.page_tokens,
            start: piece.start,
            tokens: own.len(),
            text_bytes: piece.text.len() as u64,
            file_bytes: (PREFIX_BYTES + body.len()) as u64 + records + states,
            created_ms,
            seconds: piece.seconds.max(0.0),
            states: layout.states,
            sum: 0,
            group_count: layout.groups.len(),
            state_count: piece.states.len(),
            name_bytes: model_name.len(),
            body_bytes: body.len() as u64,
            body_sum: xxh3_64(&body),
        };
        let mut bytes = prefix.encode();
        prefix.sum = xxh3_64(&bytes);
        bytes.extend(prefix.sum.to_le_bytes());
        let read = prefix.body(&body).map_err(|_| CacheError::Piece("its header can not be read back"))?;
        bytes.extend(body);
        Ok(Header { bytes, prefix, body: read })
    }
}

/// What a caller got wrong; the ids of the piece itself else.
fn check<'a>(layout: &Layout, piece: &Piece<'a>) -> Result<&'a [u32], CacheError> {
    let page = layout.page_tokens;
    let end_page = piece.ids.len().div_ceil(page);
    let text: u64 = piece.lens.iter().map(|n| u64::from(*n)).sum();
    let wrong = |what, is: bool| if is { Err(CacheError::Piece(what)) } else { Ok(()) };
    wrong("it has no tokens", piece.start >= piece.ids.len())?;
    wrong("it does not begin at a page", !piece.start.is_multiple_of(page))?;
    wrong("it has more than 2^31 tokens", piece.ids.len() > 1 << 31)?;
    wrong("it has not one length a token", piece.lens.len() != piece.ids.len() - piece.start)?;
    wrong("the lengths are not those of its text", text != piece.text.len() as u64)?;
    wrong("it has not one first page a group", piece.first_pages.len() != layout.groups.len())?;
    let inside = |first: &usize| (piece.start / page..=end_page).contains(first);
    wrong("a group's first page is not one of its pages", !piece.first_pages.iter().all(inside))?;
    let ascending = piece.states.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let inside = |&(position, _): &(usize, usize)| position > piece.start && position <= piece.ids.len();
    wrong("its states are not at ascending positions in it", !ascending || !piece.states.iter().all(inside))?;
    wrong("the seconds are not a number", !piece.seconds.is_finite())?;
    Ok(&piece.ids[piece.start..])
}

/// A name of at most 200 bytes.
fn shown(name: &str) -> &str {
    let end = (0..=name.len().min(200)).rev().find(|end| name.is_char_boundary(*end));
    &name[..end.unwrap_or(0)]
}

impl Prefix {
    /// All but the sum.
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((self.page_tokens as u32).to_le_bytes());
        out.extend(self.key.0);
        out.extend(self.parent.0);
        out.extend(self.name.0);
        out.extend((self.start as u32).to_le_bytes());
        out.extend((self.tokens as u32).to_le_bytes());
        out.extend(self.text_bytes.to_le_bytes());
        out.extend(self.file_bytes.to_le_bytes());
        out.extend(self.created_ms.to_le_bytes());
        out.extend(self.seconds.to_le_bytes());
        out.extend((self.group_count as u32).to_le_bytes());
        out.extend((self.state_count as u32).to_le_bytes());
        out.extend(self.body_bytes.to_le_bytes());
        out.extend(self.body_sum.to_le_bytes());
        out.extend(u32::from(self.states).to_le_bytes());
        out.extend((self.name_bytes as u32).to_le_bytes());
        out.resize(SUM_AT, 0);
        out
    }

    /// Reads the first bytes of a file of `file_bytes`.
    pub fn decode(bytes: &[u8; PREFIX_BYTES], file_bytes: u64) -> Result<Prefix, &'static str> {
        let (inside, sum) = bytes.split_at(SUM_AT);
        let mut at = Cursor(inside);
        if at.take::<8>() != MAGIC.as_slice() {
            return Err("it is not a cache file");
        }
        let version = at.u32();
        let prefix_sum = u64::from_le_bytes(Cursor(sum).take());
        if xxh3_64(inside) != prefix_sum {
            return Err("its header is damaged");
        }
        if version != VERSION {
            return Err("it was written by another version");
        }
        let prefix = Prefix {
            page_tokens: at.u32() as usize,
            key: ModelKey(at.take()),
            parent: Digest(at.take()),
            name: Digest(at.take()),
            start: at.u32() as usize,
            tokens: at.u32() as usize,
            text_bytes: at.u64(),
            file_bytes: at.u64(),
            created_ms: at.u64() as i64,
            seconds: f64::from_bits(at.u64()),
            group_count: at.u32() as usize,
            state_count: at.u32() as usize,
            body_bytes: at.u64(),
            body_sum: at.u64(),
            states: at.u32() != 0,
            name_bytes: at.u32() as usize,
            sum: prefix_sum,
        };
        if prefix.file_bytes != file_bytes {
            return Err("it has another length than its header says");
        }
        let page_fits = prefix.page_tokens > 0 && prefix.start.is_multiple_of(prefix.page_tokens.max(1));
        let tables = prefix.group_count as u64 * GROUP_BYTES + prefix.state_count as u64 * STATE_BYTES;
        let body = (prefix.name_bytes as u64 + tables + prefix.tokens as u64 * 8).checked_add(prefix.text_bytes);
        let fits = body == Some(prefix.body_bytes) && prefix.body_bytes <= file_bytes - PREFIX_BYTES as u64;
        if !page_fits || prefix.tokens == 0 || prefix.group_count > MOST_GROUPS || !fits || !prefix.seconds.is_finite()
        {
            return Err("its header contradicts itself");
        }
        Ok(prefix)
    }

    /// Where its tokens end.
    pub fn end(&self) -> usize {
        self.start + self.tokens
    }

    /// Reads the body, whose length is right.
    pub fn body(&self, bytes: &[u8]) -> Result<Body, &'static str> {
        if xxh3_64(bytes) != self.body_sum {
            return Err("its header is damaged");
        }
        let wrong = "its header contradicts itself";
        let mut at = Cursor(bytes);
        let model_name = String::from_utf8(at.slice(self.name_bytes).to_vec()).map_err(|_| wrong)?;
        let end_page = self.end().div_ceil(self.page_tokens);
        let mut record = PREFIX_BYTES as u64 + self.body_bytes;
        let mut groups = Vec::with_capacity(self.group_count);
        for _ in 0..self.group_count {
            let (page_bytes, window, first, pages, zero) =
                (at.u64(), at.u32(), at.u32() as usize, at.u32() as usize, at.u32());
            let inside = first >= self.start / self.page_tokens && first <= end_page && pages == end_page - first;
            let bytes = page_bytes.checked_add(SUM_BYTES).and_then(|n| n.checked_mul(pages as u64));
            let next = bytes.and_then(|n| n.checked_add(record)).filter(|_| inside && zero == 0 && page_bytes > 0);
            let group = Group { page_bytes: page_bytes as usize, window: Some(window).filter(|w| *w != ALL) };
            groups.push(GroupPages { group, first_page: first, pages, at: record });
            record = next.ok_or(wrong)?;
        }
        let mut states = Vec::with_capacity(self.state_count);
        for _ in 0..self.state_count {
            let (position, bytes) = (at.u64() as usize, at.u64());
            let after = states.last().map_or(self.start, |state: &StateAt| state.position);
            let next = bytes.checked_add(SUM_BYTES).and_then(|n| n.checked_add(record));
            states.push(StateAt { position, bytes: bytes as usize, at: record });
            record = next.filter(|_| position > after && position <= self.end()).ok_or(wrong)?;
        }
        let mut numbers = || -> Vec<u32> { (0..self.tokens).map(|_| at.u32()).collect() };
        let (ids, lens) = (numbers(), numbers());
        let text = at.slice(self.text_bytes as usize).to_vec();
        let text_bytes: u64 = lens.iter().map(|n| u64::from(*n)).sum();
        if record != self.file_bytes || text_bytes != self.text_bytes || digest::name(&self.parent, &ids) != self.name {
            return Err(wrong);
        }
        Ok(Body { model_name, groups, states, ids, lens, text })
    }
}

impl Body {
    /// Where a record lies, and its bytes without the sum.
    pub fn record(&self, place: Place) -> Option<(u64, usize)> {
        match place {
            Place::State(i) => self.states.get(i).map(|state| (state.at, state.bytes)),
            Place::Page(group, page) => {
                let group = self.groups.get(group)?;
                let i = page.checked_sub(group.first_page).filter(|i| *i < group.pages)?;
                let bytes = group.group.page_bytes;
                Some((group.at + i as u64 * (bytes as u64 + SUM_BYTES), bytes))
            }
        }
    }

    /// All records, as they lie in the file.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let pages = self.groups.iter().enumerate().flat_map(|(g, group)| {
            (group.first_page..group.first_page + group.pages).map(move |page| Place::Page(g, page))
        });
        pages.chain((0..self.states.len()).map(Place::State))
    }

    /// Whether its groups are those of the layout.
    pub fn fits(&self, layout: &Layout) -> bool {
        self.groups.iter().map(|pages| &pages.group).eq(&layout.groups)
    }
}

/// Takes numbers off the front; what is past the end reads as zero, which no check lets through.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn slice(&mut self, n: usize) -> &[u8] {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let head = self.slice(N);
        out[..head.len()].copy_from_slice(head);
        out
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}
