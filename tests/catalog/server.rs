//! An HTTP server on loopback that misbehaves as told.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// (first byte, last byte + 1)
    pub range: Option<(usize, usize)>,
    pub authorization: Option<String>,
    /// How many requests came before.
    pub number: usize,
}

pub enum Reply {
    /// The file, or the range that was asked for.
    File(Arc<Vec<u8>>),
    /// The same with an etag.
    Tagged(Arc<Vec<u8>>, &'static str),
    /// Promises the range and closes after so many bytes of it.
    Cut(Arc<Vec<u8>>, usize),
    /// Always the whole file, whatever was asked for.
    Whole(Arc<Vec<u8>>),
    /// The whole file, cut.
    WholeCut(Arc<Vec<u8>>, usize),
    /// A kilobyte each few milliseconds.
    Slow(Arc<Vec<u8>>),
    /// Text with a Link header.
    Text(String, Option<String>),
    Redirect(String),
    Status(u16),
    /// These bytes, head and all.
    Raw(Vec<u8>),
    /// Nothing at all, until the client gives up.
    Silent,
}

pub struct Server {
    pub url: String,
    log: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let handler = Arc::new(handler);
        let (seen, ended) = (log.clone(), over.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (handler, seen, ended) = (handler.clone(), seen.clone(), ended.clone());
                // The client closing early is part of the tests.
                std::thread::spawn(move || drop(answer(stream, &*handler, &seen, &ended)));
            }
        });
        Server { url, log, over }
    }

    pub fn serving(file: Vec<u8>) -> Server {
        let file = Arc::new(file);
        Server::start(move |_| Reply::File(file.clone()))
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the listener, which then ends.
        drop(TcpStream::connect(self.url.trim_start_matches("http://")));
    }
}

fn answer(
    stream: TcpStream,
    handler: &dyn Fn(&Request) -> Reply,
    log: &Mutex<Vec<Request>>,
    over: &AtomicBool,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let Some(path) = first.split(' ').nth(1) else { return Ok(()) };
    let mut request = Request { path: path.to_owned(), range: None, authorization: None, number: 0 };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (start, end) = value.trim().trim_start_matches("bytes=").split_once('-').unwrap();
                request.range = Some((start.parse().unwrap(), end.parse().map_or(usize::MAX, |last: usize| last + 1)));
            }
            "authorization" => request.authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    {
        let mut log = log.lock().unwrap();
        request.number = log.len();
        log.push(request.clone());
    }
    let mut out = stream;
    match handler(&request) {
        Reply::File(file) => ranged(&mut out, &request, &file, "", usize::MAX),
        Reply::Tagged(file, tag) => ranged(&mut out, &request, &file, &format!("ETag: {tag}\r\n"), usize::MAX),
        Reply::Cut(file, after) => ranged(&mut out, &request, &file, "", after),
        Reply::Whole(file) => whole(&mut out, &file, usize::MAX),
        Reply::WholeCut(file, after) => whole(&mut out, &file, after),
        Reply::Slow(file) => {
            let (start, end) = bounds(&request, &file);
            head(&mut out, 206, end - start, &content_range(start, end, &file))?;
            for block in file[start..end].chunks(1024) {
                out.write_all(block)?;
                std::thread::sleep(Duration::from_millis(3));
            }
            Ok(())
        }
        Reply::Text(text, link) => {
            let link = link.map(|link| format!("Link: {link}\r\n")).unwrap_or_default();
            head(&mut out, 200, text.len(), &link)?;
            out.write_all(text.as_bytes())
        }
        Reply::Redirect(to) => head(&mut out, 302, 0, &format!("Location: {to}\r\n")),
        Reply::Status(status) => head(&mut out, status, 0, ""),
        Reply::Raw(bytes) => out.write_all(&bytes),
        Reply::Silent => {
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        }
    }
}

fn bounds(request: &Request, file: &[u8]) -> (usize, usize) {
    let (start, end) = request.range.unwrap_or((0, file.len()));
    (start, end.min(file.len()))
}

fn content_range(start: usize, end: usize, file: &[u8]) -> String {
    format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, file.len())
}

fn ranged(out: &mut TcpStream, request: &Request, file: &[u8], extra: &str, cut: usize) -> std::io::Result<()> {
    let (start, end) = bounds(request, file);
    if start >= end {
        return head(out, 416, 0, &format!("Content-Range: bytes */{}\r\n", file.len()));
    }
    let status = if request.range.is_some() { 206 } else { 200 };
    head(out, status, end - start, &format!("{}{extra}", content_range(start, end, file)))?;
    out.write_all(&file[start..end.min(start.saturating_add(cut))])
}

fn whole(out: &mut TcpStream, file: &[u8], cut: usize) -> std::io::Result<()> {
    head(out, 200, file.len(), "")?;
    out.write_all(&file[..cut.min(file.len())])
}

fn head(out: &mut TcpStream, status: u16, length: usize, extra: &str) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{extra}\r\n")
}
