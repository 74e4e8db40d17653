//! Requests: one place that knows the hub's address and token, what is worth another try, and how an answer that is no
//! answer is called.
//!
//! The token goes only to the hub's own address: not to mirrors, and not along with a redirect to another origin. What
//! another try can not mend, such as an answer that makes no sense, ends at once. A server that can not be reached at all is given up at once, so that the next source gets its turn; one that answered
//! before is tried again with growing pauses.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::error::{Error, Result};
use super::route;

/// Of one request.
const REDIRECTS: usize = 10;

/// How to fetch. The fields are public for tests and for callers with other needs.
#[derive(Clone, Debug)]
pub struct Net {
    /// Of the Hugging Face hub or a mirror of it, without a slash at the end.
    pub endpoint: String,
    pub token: Option<String>,
    /// Parallel requests for one file.
    pub connections: usize,
    /// The size of one ranged request.
    pub piece_bytes: u64,
    pub connect_timeout: Duration,
    /// How long a connection may send nothing.
    pub stall_timeout: Duration,
    /// Tries in a row without a byte of progress.
    pub attempts: u32,
    /// The first pause between two tries; each further one is twice as long, up to 30 s.
    pub pause: Duration,
    /// The Pythons to run pip with; the first that starts is taken.
    pub python: Vec<PathBuf>,
}

impl Default for Net {
    fn default() -> Net {
        Net {
            endpoint: "https://huggingface.co".to_owned(),
            token: None,
            connections: 8,
            piece_bytes: 32 << 20,
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            attempts: 6,
            pause: Duration::from_millis(500),
            python: vec!["python3".into(), "python".into()],
        }
    }
}

/// The connections of one download: they can be cut without harm to others.
pub(super) struct Client {
    agent: Agent,
    /// Whether any server has answered yet. Until then a failure means that there is no way to it.
    met: AtomicBool,
}

impl Client {
    /// Ends all requests, also those that wait for a silent server.
    pub fn shutdown(&self) {
        self.agent.clone().shutdown();
    }
}

/// Where one file can be fetched by HTTP.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub url: String,
    /// Whether it belongs to the hub, which may see the token.
    pub is_hub: bool,
}

/// Why a request gave no usable answer.
pub(super) enum Failure {
    /// Another try may help.
    Passing {
        error: Error,
        wait: Option<Duration>,
    },
    Final(Error),
}

impl Net {
    /// HF_ENDPOINT and HF_TOKEN, as the hub's own tools read them.
    pub fn from_env() -> Net {
        let set = |name| std::env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
        let default = Net::default();
        Net {
            endpoint: set("HF_ENDPOINT").map_or(default.endpoint, |url| url.trim().trim_end_matches('/').to_owned()),
            token: set("HF_TOKEN").map(|token| token.trim().to_owned()),
            ..default
        }
    }

    pub(super) fn hub_file(&self, repo: &str, revision: &str, path: &str) -> Place {
        Place {
            url: format!("{}/{repo}/resolve/{}/{}", self.endpoint, escape(revision), escape_path(path)),
            is_hub: true,
        }
    }

    pub(super) fn client(&self) -> Result<Client> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(route::proxy()?)
            .max_redirects(0)
            .user_agent(concat!("rynd/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .timeout_resolve(Some(self.connect_timeout))
            .timeout_connect(Some(self.connect_timeout))
            .timeout_recv_response(Some(self.stall_timeout))
            .timeout_per_read(Some(self.stall_timeout))
            .max_idle_connections_per_host(self.connections)
            .build()
            .into();
        Ok(Client { agent, met: AtomicBool::new(false) })
    }

    /// Asks for the bytes from `start` on, up to `end` if there is one. Answers other than 200 and 206 are failures.
    pub(super) fn get(
        &self,
        client: &Client,
        place: &Place,
        range: Option<(u64, Option<u64>)>,
    ) -> std::result::Result<Response<Body>, Failure> {
        if place.is_hub {
            route::check_hub(&self.endpoint, self.token.as_deref()).map_err(Failure::Final)?;
        }
        let mut at = place.url.clone();
        for _ in 0..=REDIRECTS {
            let mut request = client.agent.get(&at);
            let token = self.token.as_ref().filter(|_| place.is_hub && route::same_origin(&at, &self.endpoint));
            if let Some(token) = token {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some((start, end)) = range {
                let end = end.map(|end| (end - 1).to_string()).unwrap_or_default();
                request = request.header(header::RANGE, format!("bytes={start}-{end}"));
            }
            let response = request.call().map_err(|e| self.failure(client, place, &e))?;
            client.met.store(true, Ordering::Relaxed);
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return self.judge(place, range, response);
            }
            let location = header_text(&response, header::LOCATION);
            let next = location.and_then(|location| route::follow(&at, location));
            at = next.ok_or_else(|| Failure::Final(self.nonsense(place, "it redirects to what is no address")))?;
        }
        Err(Failure::Final(self.nonsense(place, &format!("it redirects more than {REDIRECTS} times"))))
    }

    /// Which answers are of use.
    fn judge(
        &self,
        place: &Place,
        range: Option<(u64, Option<u64>)>,
        response: Response<Body>,
    ) -> std::result::Result<Response<Body>, Failure> {
        let url = place.url.clone();
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Failure::Final(Error::NotFound { url })),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(Failure::Final(Error::Denied { url, status: status.as_u16() }))
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Err(Failure::Final(Error::OutOfRange { url, offset: range.map_or(0, |range| range.0) }))
            }
            status => {
                let passing = status.is_server_error()
                    || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
                let attempts = if passing { self.attempts } else { 1 };
                let error = Error::Status { url, status: status.as_u16(), attempts };
                let wait = header_text(&response, header::RETRY_AFTER).and_then(|text| text.trim().parse().ok());
                let wait = wait.map(|seconds: u64| Duration::from_secs(seconds.min(60)));
                Err(if passing { Failure::Passing { error, wait } } else { Failure::Final(error) })
            }
        }
    }

    fn failure(&self, client: &Client, place: &Place, error: &ureq::Error) -> Failure {
        use ureq::Error::*;
        use ureq::Timeout::{Connect, Resolve};
        let no_way = match error {
            Timeout(Resolve | Connect)
            | HostNotFound
            | ConnectionFailed
            | InvalidProxyUrl
            | ConnectProxyFailed(_)
            | Tls(_)
            | Rustls(_) => true,
            // A failed look-up has no kind of its own, so what is not a broken connection counts as no connection.
            Io(e) => {
                use ErrorKind::*;
                let broke = [ConnectionReset, ConnectionAborted, BrokenPipe, UnexpectedEof, TimedOut, WouldBlock];
                !broke.contains(&e.kind())
            }
            _ => false,
        };
        // What the other side sent makes no sense, and would not the next time.
        let nonsense = matches!(
            error,
            Http(_)
                | BadUri(_)
                | Protocol(_)
                | LargeResponseHeader(..)
                | TooManyRedirects
                | RedirectFailed
                | TlsRequired
        );
        if nonsense {
            return Failure::Final(self.nonsense(place, &error.to_string()));
        }
        if no_way && !client.met.load(Ordering::Relaxed) {
            let rest = place.url.split_once("://").map_or(place.url.as_str(), |(_, rest)| rest);
            let host = rest.split('/').next().unwrap_or(rest).to_owned();
            return Failure::Final(Error::Unreachable { host, cause: error.to_string() });
        }
        Failure::Passing { error: self.broken(place, error.to_string()), wait: None }
    }

    fn nonsense(&self, place: &Place, cause: &str) -> Error {
        Error::Answer { url: place.url.clone(), cause: cause.to_owned() }
    }

    /// The connection failed after it had stood.
    pub(super) fn broken(&self, place: &Place, cause: String) -> Error {
        Error::Broken { url: place.url.clone(), cause, attempts: self.attempts }
    }

    /// Runs `request` until it succeeds, fails for good, or `stop` says so (then the last failure is given).
    pub(super) fn retry<T>(
        &self,
        stop: &dyn Fn() -> bool,
        tell: &dyn Fn(&Error, Duration),
        mut request: impl FnMut() -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut pauses = Pauses::new(self);
        loop {
            match request() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { error, wait }) => match pauses.next() {
                    None => return Err(error),
                    Some(pause) => {
                        let pause = wait.unwrap_or(pause);
                        tell(&error, pause);
                        if !sleep(pause, stop) {
                            return Err(error);
                        }
                    }
                },
            }
        }
    }
}

/// The growing pauses between tries; ends after [`Net::attempts`].
pub(super) struct Pauses {
    left: u32,
    pause: Duration,
}

impl Pauses {
    pub fn new(net: &Net) -> Pauses {
        Pauses { left: net.attempts, pause: net.pause }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.saturating_sub(1);
        let pause = self.pause;
        self.pause = (pause * 2).min(Duration::from_secs(30));
        (self.left > 0).then_some(pause)
    }
}

/// False if it was stopped.
pub(super) fn sleep(time: Duration, stop: &dyn Fn() -> bool) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if stop() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20).min(time));
    }
    !stop()
}

pub(super) fn header_text<T>(response: &Response<T>, name: header::HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

/// The start and the whole size of `bytes 0-99/1000`.
pub(super) fn content_range<T>(response: &Response<T>) -> Option<(u64, u64)> {
    let text = header_text(response, header::CONTENT_RANGE)?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

pub(super) fn escape(text: &str) -> String {
    text.replace('/', "%2F")
}

/// Percent-encodes what may stand in a file's name but not in an address.
pub(super) fn escape_path(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/+@!$&'(),;=".contains(&b);
    path.bytes().fold(String::new(), |mut url, byte| {
        if plain(byte) {
            url.push(byte.into())
        } else {
            url.push_str(&format!("%{byte:02X}"))
        }
        url
    })
}
