//! One file by HTTP: ranged requests in parallel where the server allows them, else one stream.
//!
//! The first request asks for the first missing piece; its answer tells whether the server knows ranges, how large the
//! file is, and already carries that piece. The other pieces are then handed out to a few threads. A connection that
//! breaks costs only what it had not yet written: the next request starts there.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::error::{Error, Result};
use super::http::{Client, Failure, Net, Pauses, Place, content_range, header_text, sleep};
use super::partial::Partial;
use super::pull::{Event, Watch};

type Piece = (u64, u64); // (start, end)

/// Brings the file to its end; what is there stays there on failure.
pub(super) fn download(net: &Net, place: &Place, partial: &Partial, watch: &Watch) -> Result<()> {
    let client = net.client()?;
    let result = Download { net, client: &client, place, partial, watch, failed: AtomicBool::new(false) }.run();
    let saved = partial.save();
    result.and(saved)
}

struct Download<'a> {
    net: &'a Net,
    client: &'a Client,
    place: &'a Place,
    partial: &'a Partial,
    watch: &'a Watch<'a>,
    /// Set with the first failure, so that the other threads stop too.
    failed: AtomicBool,
}

/// What a server's first answer means.
enum Plan {
    Ranges(Response<Body>, Piece),
    Stream(Response<Body>),
    /// What was kept came from another version of the file.
    Anew,
}

impl Download<'_> {
    fn run(&self) -> Result<()> {
        loop {
            if self.partial.is_whole() {
                return Ok(());
            }
            match self.ask()? {
                Plan::Anew => {
                    (self.watch.tell)(Event::Restart);
                    self.partial.restart()?;
                }
                Plan::Ranges(response, piece) => return self.ranges(response, piece),
                Plan::Stream(response) => return self.stream(response),
            }
        }
    }

    fn ask(&self) -> Result<Plan> {
        let known = self.partial.bytes();
        let (start, end) = self.partial.gaps(known.unwrap_or(u64::MAX)).first().copied().unwrap_or((0, u64::MAX));
        let end = end.min(start.saturating_add(self.net.piece_bytes));
        let tell = |error: &Error, wait| (self.watch.tell)(Event::Retry { error, wait });
        let response =
            self.net.retry(self.watch.stop, &tell, || self.net.get(self.client, self.place, Some((start, Some(end)))));
        let response = response.map_err(|error| self.or_interrupted(error))?;

        let ranged = response.status() == StatusCode::PARTIAL_CONTENT;
        let bytes = if ranged {
            let Some((from, bytes)) = content_range(&response) else {
                return Err(self.net.broken(self.place, "a partial answer without Content-Range".to_owned()));
            };
            if from != start {
                return Err(self.net.broken(self.place, format!("asked for byte {start}, got byte {from}")));
            }
            Some(bytes)
        } else {
            header_text(&response, header::CONTENT_LENGTH).and_then(|text| text.parse().ok())
        };
        if let (Some(expected), Some(got)) = (known, bytes)
            && expected != got
        {
            return Err(Error::WrongSize { url: self.place.url.clone(), expected, got });
        }
        if !self.partial.accept_etag(strong_etag(&response)) {
            return Ok(Plan::Anew);
        }
        if let Some(bytes) = bytes {
            self.partial.set_bytes(bytes);
        }
        Ok(match bytes {
            Some(bytes) if ranged => Plan::Ranges(response, (start, end.min(bytes))),
            _ => Plan::Stream(response),
        })
    }

    /// A server without ranges: from the start, in one go; a break means the start again.
    fn stream(&self, response: Response<Body>) -> Result<()> {
        let ready = Mutex::new(Some(response));
        let result = Mutex::new(Ok(()));
        self.guarded(1, &|| {
            let tell = |error: &Error, wait| (self.watch.tell)(Event::Retry { error, wait });
            let outcome = self.net.retry(self.watch.stop, &tell, || {
                let response = match locked(&ready).take() {
                    Some(response) => response,
                    None => self.net.get(self.client, self.place, None)?,
                };
                if self.partial.have() > 0 {
                    (self.watch.tell)(Event::Restart);
                }
                self.partial.restart().map_err(Failure::Final)?;
                let mut at = 0;
                self.copy(response, &mut at, self.partial.bytes().unwrap_or(u64::MAX))?;
                self.partial.set_bytes(at);
                Ok(())
            });
            *locked(&result) = outcome;
        });
        result.into_inner().unwrap_or_else(PoisonError::into_inner).map_err(|error| self.or_interrupted(error))
    }

    fn ranges(&self, first: Response<Body>, piece: Piece) -> Result<()> {
        let bytes = self.partial.bytes().unwrap_or(piece.1);
        let mut missing: VecDeque<Piece> = self.partial.gaps(bytes).into();
        if let Some(gap) = missing.front_mut() {
            // The first piece is on its way.
            gap.0 = piece.1;
        }
        let pieces: u64 = missing.iter().map(|(start, end)| (end - start).div_ceil(self.net.piece_bytes.max(1))).sum();
        let threads = self.net.connections.clamp(1, usize::try_from(pieces + 1).unwrap_or(usize::MAX));
        let work = Mutex::new((Some((piece, first)), missing));
        let next = || {
            let (begun, missing) = &mut *locked(&work);
            match begun.take() {
                Some((piece, response)) => Some((piece, Some(response))),
                None => Some((cut(missing, self.net.piece_bytes)?, None)),
            }
        };
        let failure = Mutex::new(None);
        self.guarded(threads, &|| {
            while !self.is_over() {
                let Some((piece, ready)) = next() else { return };
                if let Err(error) = self.piece(piece, ready) {
                    self.failed.store(true, Ordering::Release);
                    locked(&failure).get_or_insert(error);
                }
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(self.or_interrupted(error)),
            None if self.partial.is_whole() => Ok(()),
            None => Err(self.or_interrupted(self.short(self.partial.have(), bytes))),
        }
    }

    /// Runs `work` on threads while this one saves the state and looks out for the user's wish to stop.
    fn guarded(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let mut saved = Instant::now();
            let mut running = true;
            while handles.iter().any(|handle| !handle.is_finished()) {
                std::thread::sleep(Duration::from_millis(10));
                if running && self.is_over() {
                    self.client.shutdown();
                    running = false;
                }
                if saved.elapsed() > Duration::from_millis(500) {
                    // A state that can not be saved only costs the resumption; a full disk shows in the data itself.
                    let _ = self.partial.save();
                    saved = Instant::now();
                }
            }
        });
    }

    /// One piece, with as many requests as it takes.
    fn piece(&self, (start, end): Piece, mut ready: Option<Response<Body>>) -> Result<()> {
        let mut at = start;
        let mut pauses = Pauses::new(self.net);
        loop {
            let before = at;
            let (error, wait) = match self.request(&mut at, end, ready.take()) {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { error, wait }) => (error, wait),
            };
            if at > before {
                pauses = Pauses::new(self.net);
            }
            let Some(pause) = pauses.next().filter(|_| !self.is_over()) else { return Err(error) };
            let wait = wait.unwrap_or(pause);
            (self.watch.tell)(Event::Retry { error: &error, wait });
            if !sleep(wait, &|| self.is_over()) {
                return Err(error);
            }
        }
    }

    fn request(&self, at: &mut u64, end: u64, ready: Option<Response<Body>>) -> std::result::Result<(), Failure> {
        let response = match ready {
            Some(response) => response,
            None => {
                let response = self.net.get(self.client, self.place, Some((*at, Some(end))))?;
                let fits = content_range(&response).is_some_and(|(from, bytes)| {
                    from == *at
                        && Some(bytes) == self.partial.bytes()
                        && self.partial.accept_etag(strong_etag(&response))
                });
                if !fits {
                    let cause = "the file on the server changed, or it no longer serves ranges".to_owned();
                    return Err(Failure::Final(self.net.broken(self.place, cause)));
                }
                response
            }
        };
        self.copy(response, at, end)
    }

    /// Writes what the server sends, up to `end`, and moves `at` along.
    fn copy(&self, response: Response<Body>, at: &mut u64, end: u64) -> std::result::Result<(), Failure> {
        let mut body = response.into_body().into_reader();
        let mut writer = self.partial.writer(*at).map_err(Failure::Final)?;
        let mut block = vec![0; 128 << 10];
        while *at < end {
            let wanted = block.len().min(usize::try_from(end - *at).unwrap_or(usize::MAX));
            let passing = |error| Failure::Passing { error, wait: None };
            let count = match body.read(&mut block[..wanted]) {
                Ok(_) if self.is_over() => return Err(passing(self.short(*at, end))),
                Ok(0) if end == u64::MAX => return Ok(()),
                Ok(0) => return Err(passing(self.short(*at, end))),
                Ok(count) => count,
                Err(e) => return Err(passing(self.net.broken(self.place, e.to_string()))),
            };
            writer.write(&block[..count]).map_err(Failure::Final)?;
            *at = writer.offset();
            (self.watch.tell)(Event::Bytes(count as u64));
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.failed.load(Ordering::Acquire) || (self.watch.stop)()
    }

    fn short(&self, at: u64, end: u64) -> Error {
        self.net.broken(self.place, format!("it ended at byte {at} of {end}"))
    }

    fn or_interrupted(&self, error: Error) -> Error {
        if (self.watch.stop)() { self.watch.interrupted(self.partial) } else { error }
    }
}

/// Takes a piece of at most so many bytes off what is missing.
fn cut(missing: &mut VecDeque<Piece>, most: u64) -> Option<Piece> {
    while let Some(gap) = missing.front_mut() {
        let start = gap.0;
        gap.0 = gap.1.min(start.saturating_add(most.max(1)));
        if start < gap.0 {
            return Some((start, gap.0));
        }
        missing.pop_front();
    }
    None
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is whole between any two statements, so another thread's panic does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Weak etags may stand for different bytes.
fn strong_etag(response: &Response<Body>) -> Option<&str> {
    header_text(response, header::ETAG).filter(|etag| !etag.starts_with("W/"))
}
