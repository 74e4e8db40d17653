//! JSON-RPC messages over a byte stream, as the Language Server Protocol frames them.
//!
//! Our own reader, because it must outlive a client that misbehaves: what is no JSON is reported and skipped, a wrong
//! length costs the messages up to the next header, an absurd one is not allocated, and ids may be any number or text.

use std::io::{self, BufRead, Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

/// Larger messages are skipped.
const MAX_BODY: u64 = 64 << 20;
/// Longer header lines are no headers.
const MAX_HEADER: u64 = 8 << 10;

/// Error codes of JSON-RPC and of the protocol.
pub const PARSE_ERROR: i64 = -32700;
pub const INVALID_REQUEST: i64 = -32600;
pub const METHOD_NOT_FOUND: i64 = -32601;
pub const INVALID_PARAMS: i64 = -32602;
pub const NOT_INITIALIZED: i64 = -32002;
pub const REQUEST_CANCELLED: i64 = -32800;
pub const REQUEST_FAILED: i64 = -32803;

/// What came in.
#[derive(Debug)]
pub enum Incoming {
    Message(Value),
    /// Something that is no message; the stream goes on behind it.
    Broken(String),
    End,
}

/// Reads up to the next message, or what is none.
pub fn read(reader: &mut impl BufRead) -> io::Result<Incoming> {
    let mut bytes: Option<u64> = None;
    let mut stray = false;
    loop {
        let mut line = vec![];
        if reader.by_ref().take(MAX_HEADER).read_until(b'\n', &mut line)? == 0 {
            return Ok(Incoming::End);
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            match bytes {
                Some(_) => break,
                None if stray => return Ok(Incoming::Broken("a header without Content-Length".into())),
                None => continue,
            }
        }
        stray = true;
        // The rest of a message that was longer than it said may stand in front of the name.
        if let Some((name, value)) = line.rsplit_once(':')
            && name.to_ascii_lowercase().ends_with("content-length")
        {
            match value.trim().parse() {
                Ok(length) => bytes = Some(length),
                Err(_) => return Ok(Incoming::Broken(format!("Content-Length is no number: {value:?}"))),
            }
        }
    }
    let bytes = bytes.unwrap_or(0);
    if bytes > MAX_BODY {
        io::copy(&mut reader.by_ref().take(bytes), &mut io::sink())?;
        return Ok(Incoming::Broken(format!("a message of {bytes} bytes is too large")));
    }
    let mut body = vec![];
    if reader.by_ref().take(bytes).read_to_end(&mut body)? < bytes as usize {
        return Ok(Incoming::End);
    }
    Ok(match serde_json::from_slice(&body) {
        Ok(message) => Incoming::Message(message),
        Err(error) => Incoming::Broken(format!("a message is no JSON: {error}")),
    })
}

/// An error that a request is answered with.
#[derive(Debug)]
pub struct Failure {
    pub code: i64,
    pub message: String,
}

/// The way back to the client, shared by those who answer.
pub struct Client {
    out: Mutex<Box<dyn Write + Send>>,
    gone: AtomicBool,
}

impl Client {
    /// Writes to `out`.
    pub fn new(out: Box<dyn Write + Send>) -> Client {
        Client { out: Mutex::new(out), gone: AtomicBool::new(false) }
    }

    /// Whether nobody reads our answers any more.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Answers a request.
    pub fn answer(&self, id: &Value, result: Result<Value, Failure>) {
        let message = match result {
            Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Err(Failure { code, message }) => {
                json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
            }
        };
        let text = message.to_string();
        let Ok(mut out) = self.out.lock() else { return };
        let written = write!(out, "Content-Length: {}\r\n\r\n{text}", text.len()).and_then(|()| out.flush());
        if written.is_err() {
            self.gone.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut bytes: &[u8]) -> Vec<Incoming> {
        let mut found = vec![];
        loop {
            match read(&mut bytes).unwrap() {
                Incoming::End => return found,
                incoming => found.push(incoming),
            }
        }
    }

    fn is_message(incoming: &Incoming, wanted: &Value) -> bool {
        matches!(incoming, Incoming::Message(found) if found == wanted)
    }

    #[test]
    fn messages_are_read_whatever_the_headers_look_like() {
        let found = all(b"Content-Type: x\r\ncontent-length:  2\r\n\r\n{}Content-Length: 4\n\nnull");
        assert_eq!(found.len(), 2);
        assert!(is_message(&found[0], &json!({})) && is_message(&found[1], &Value::Null));
    }

    #[test]
    fn what_is_no_message_is_reported_and_the_next_one_is_read() {
        let good = "Content-Length: 2\r\n\r\n[]";
        for bad in [
            "Content-Length: 5\r\n\r\n{oops",
            "Content-Length: 2\r\n\r\n\u{e9}",
            "Content-Length: many\r\n\r\n",
            "hello\r\n\r\n",
            "Content-Length: -1\r\n\r\n",
        ] {
            let found = all(format!("{bad}{good}").as_bytes());
            assert!(matches!(found[0], Incoming::Broken(_)), "{bad:?}: {found:?}");
            assert!(is_message(&found[found.len() - 1], &json!([])), "{bad:?}: {found:?}");
        }
        // Longer than it said: the rest stands in front of the next header.
        let found = all(format!("Content-Length: 2\r\n\r\n{{}}}}}}{good}").as_bytes());
        assert!(is_message(&found[0], &json!({})) && is_message(&found[1], &json!([])));
    }

    #[test]
    fn a_length_without_end_is_not_allocated_and_a_cut_message_ends_the_stream() {
        assert!(
            all(b"Content-Length: 18446744073709551615\r\n\r\n{}").iter().all(|i| matches!(i, Incoming::Broken(_)))
        );
        assert!(all(b"Content-Length: 100\r\n\r\n{}").is_empty());
        assert!(all(&vec![b'x'; 100_000]).is_empty());
    }
}
