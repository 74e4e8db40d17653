//! The way to a server: what the environment says of it, and redirects.
//!
//! A setting that can not be used is an error: to go on without it would send the token past the user's proxy. Redirects
//! are followed here and not by the HTTP client, because the token may go along only to the very origin it belongs to:
//! scheme, host and port.

use ureq::Proxy;
use ureq::http::{HeaderValue, Uri};

use super::error::{Error, Result};

/// Where ureq looks for a proxy, in its order.
const PROXIES: [&str; 6] = ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// The proxy that the environment names, if it names one.
pub(super) fn proxy() -> Result<Option<Proxy>> {
    for name in PROXIES {
        let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else { continue };
        // The address may hold a password and is not shown.
        let usable = value.to_str().is_some_and(|text| Proxy::new(text).is_ok());
        if !usable {
            let problem = "it is no proxy that rynd can use; write http://HOST:PORT or socks5://HOST:PORT, or unset it";
            return Err(Error::Setting { name, problem });
        }
        break;
    }
    Ok(Proxy::try_from_env())
}

/// The hub's address and token, checked before anything is sent.
pub(super) fn check_hub(endpoint: &str, token: Option<&str>) -> Result<()> {
    let wrong = |name, problem| Error::Setting { name, problem };
    let uri: Uri = endpoint.parse().map_err(|_| wrong("HF_ENDPOINT", "it is no address; write https://HOST"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong("HF_ENDPOINT", "it has no http:// or https:// in front; write https://HOST"));
    }
    if token.is_some_and(|token| HeaderValue::from_str(token).is_err() || token.contains(char::is_whitespace)) {
        return Err(wrong("HF_TOKEN", "it holds a line break or another character that no token has; copy it again"));
    }
    Ok(())
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// Whether what may be sent to the one may be sent to the other.
pub(super) fn same_origin(one: &str, other: &str) -> bool {
    origin(one).is_some_and(|one| Some(one) == origin(other))
}

/// Where a redirect from `url` leads; none for what is no address of the web.
pub(super) fn follow(url: &str, location: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(host_end);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let target = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{host}{path}{location}")
    } else if location.split(['/', '?', '#']).next().is_some_and(|first| first.contains(':')) {
        location.to_owned()
    } else {
        let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
        format!("{scheme}://{host}{folder}{location}")
    };
    let target = target.split('#').next()?.to_owned();
    origin(&target).filter(|(scheme, ..)| matches!(scheme.as_str(), "http" | "https")).map(|_| target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_where_the_web_says() {
        let at = |location| follow("https://hub:8443/a/b/c?x=1", location);
        assert_eq!(at("https://other/x#y").as_deref(), Some("https://other/x"));
        assert_eq!(at("//other/x").as_deref(), Some("https://other/x"));
        assert_eq!(at("/x?y").as_deref(), Some("https://hub:8443/x?y"));
        assert_eq!(at("x").as_deref(), Some("https://hub:8443/a/b/x"));
        assert_eq!(at("?z").as_deref(), Some("https://hub:8443/a/b/c?z"));
        for bad in ["file:///etc/passwd", "ftp://x/y", "javascript:alert(1)", "http://", "https://a b/c"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert!(same_origin("https://Hub/a", "https://hub:443/b"));
        for other in ["https://hub:444/", "http://hub/", "https://sub.hub/", "https://hub.evil/", "nonsense"] {
            assert!(!same_origin("https://hub/", other), "{other}");
        }
    }
}
