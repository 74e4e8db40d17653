use std::fs;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rynd::catalog::{Error, Net};

use super::server::{Reply, Request, Server};
use super::{Place, failures, net, noise, sha256};

type Files = Vec<(&'static str, Arc<Vec<u8>>)>;

/// A hub with one repository `o/r`.
fn hub(files: Files) -> Server {
    Server::start(move |request| answer(&files, request))
}

fn answer(files: &Files, request: &Request) -> Reply {
    if request.path.starts_with("/api/models/o/r/tree/") {
        return Reply::Text(tree(files), None);
    }
    let file = request.path.strip_prefix("/o/r/resolve/main/");
    match file.and_then(|path| files.iter().find(|(name, _)| *name == path)) {
        Some((_, bytes)) => Reply::File(bytes.clone()),
        None => Reply::Status(404),
    }
}

fn tree(files: &Files) -> String {
    let node = |(path, bytes): &(&str, Arc<Vec<u8>>)| {
        let (size, oid) = (bytes.len(), sha256(bytes));
        format!(r#"{{"type":"file","oid":"1","size":{size},"path":"{path}","lfs":{{"oid":"{oid}","size":{size}}}}}"#)
    };
    let nodes: Vec<_> = files.iter().map(node).collect();
    format!(r#"[{{"type":"directory","oid":"2","size":0,"path":"BF16"}},{}]"#, nodes.join(","))
}

fn file(seed: u64) -> Arc<Vec<u8>> {
    Arc::new(noise(100_000 + seed as usize, seed))
}

fn quants() -> Files {
    vec![
        ("x-Q4_K_M.gguf", file(1)),
        ("x-UD-Q2_K_XL.gguf", file(2)),
        ("Q8_0/x-Q8_0-00001-of-00002.gguf", file(3)),
        ("Q8_0/x-Q8_0-00002-of-00002.gguf", file(4)),
        ("BF16/x-BF16-00001-of-00002.gguf", file(5)),
        ("mmproj-Q8_0.gguf", file(6)),
        ("../x-Q3_K_M.gguf", file(7)),
        ("README.md", file(8)),
    ]
}

fn at(server: &Server) -> Net {
    Net { endpoint: server.url.clone(), ..net() }
}

fn pulled(text: &str) -> Vec<String> {
    let server = hub(quants());
    let place = Place::new();
    let (result, told) = place.pull_told(&at(&server), text);
    let resolved = result.unwrap();
    assert_eq!(told.last().unwrap(), "done verified=true");
    assert_eq!(place.catalog().resolve(text).unwrap().files, resolved.files, "without the network");
    let folder = place.home().cache.join("models/hf/o/r");
    resolved.files.iter().map(|path| path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_quantisation_is_picked_by_its_name() {
    assert_eq!(pulled("hf:o/r"), ["x-Q4_K_M.gguf"]);
    assert_eq!(pulled("hf:o/r:q4_k_m"), ["x-Q4_K_M.gguf"]);
    assert_eq!(pulled("hf:o/r:Q2_K_XL"), ["x-UD-Q2_K_XL.gguf"]);
    assert_eq!(pulled("hf:o/r:x-UD-Q2_K_XL.gguf"), ["x-UD-Q2_K_XL.gguf"]);
    let parts = ["Q8_0/x-Q8_0-00001-of-00002.gguf", "Q8_0/x-Q8_0-00002-of-00002.gguf"];
    assert_eq!(pulled("hf:o/r:Q8_0"), parts);
    assert_eq!(pulled(&format!("hf:o/r:{}", parts[1])), parts);
}

#[test]
fn a_quantisation_that_is_not_there_shows_those_that_are() {
    let server = hub(quants());
    let place = Place::new();
    let error = place.pull_told(&at(&server), "hf:o/r:Q6_K").0.unwrap_err();
    match &error {
        Error::NotInRepository { have, .. } => assert_eq!(have[..], ["Q8_0", "Q4_K_M", "UD-Q2_K_XL"]),
        other => panic!("{other}"),
    }
    // A set without all of its parts is no model.
    assert!(place.pull_told(&at(&server), "hf:o/r:BF16").0.is_err());
    assert!(place.pull_told(&at(&server), "hf:o/r:../x-Q3_K_M.gguf").0.is_err());
}

#[test]
fn a_listing_of_several_pages_is_read_to_its_end() {
    let (first, second) = (vec![("a-Q8_0.gguf", file(1))], vec![("a-Q4_K_M.gguf", file(2))]);
    let server = Server::start(move |request| {
        if !request.path.starts_with("/api/") {
            return answer(&second, request);
        }
        match request.path.contains("cursor=2") {
            true => Reply::Text(tree(&second), None),
            false => {
                let next = format!("<{}/api/models/o/r/tree/main?recursive=true&cursor=2>; rel=\"next\"", "ENDPOINT");
                Reply::Text(tree(&first), Some(next))
            }
        }
    });
    // The address of the server is known only after it started; a page elsewhere is refused.
    let place = Place::new();
    let error = place.pull_told(&at(&server), "hf:o/r:Q4_K_M").0.unwrap_err();
    assert!(error.to_string().contains("next page lies elsewhere"), "{error}");

    let url = std::sync::OnceLock::<String>::new();
    let url = Arc::new(url);
    let (known, all) = (url.clone(), quants());
    let server = Server::start(move |request| {
        if !request.path.starts_with("/api/") || request.path.contains("cursor=2") {
            return answer(&all, request);
        }
        let next = format!("<{}/api/models/o/r/tree/main?cursor=2>; rel=\"next\"", known.get().unwrap());
        Reply::Text("[]".to_owned(), Some(next))
    });
    url.set(server.url.clone()).unwrap();
    place.pull_told(&at(&server), "hf:o/r:Q4_K_M").0.unwrap();
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let files = quants();
    let other = Server::serving(files[0].1.to_vec());
    let to = other.url.replace("127.0.0.1", "localhost");
    let server = Server::start(move |request| match request.path.starts_with("/api/") {
        true => answer(&files, request),
        false => Reply::Redirect(format!("{to}/signed")),
    });
    let place = Place::new();
    let net = Net { token: Some("secret".to_owned()), ..at(&server) };
    place.pull_told(&net, "hf:o/r").0.unwrap();
    assert!(server.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer secret")));
    assert!(!other.requests().is_empty());
    assert!(other.requests().iter().all(|request| request.authorization.is_none()));
}

#[test]
fn an_answer_that_is_no_listing_is_an_error() {
    let server = Server::start(|_| Reply::Text("<html>".to_owned(), None));
    let error = Place::new().pull_told(&at(&server), "hf:o/r").0.unwrap_err();
    assert!(matches!(error, Error::Listing { .. }), "{error}");
    let server = Server::start(|_| Reply::Status(401));
    let error = Place::new().pull_told(&at(&server), "hf:o/r").0.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
}

fn unpinned(name: &str) -> Place {
    Place::with(&format!(
        "[model.m]\ndescription = \"\"\nlicence = \"\"\nfile = [{{ name = \"{name}\", unpinned = true }}]\n\
         source = [{{ kind = \"hf\", repo = \"o/r\" }}]\n"
    ))
}

#[test]
fn an_unpinned_file_is_verified_by_the_sum_that_the_hub_lists() {
    let server = hub(quants());
    let place = unpinned("x-Q4_K_M.gguf");
    let (result, told) = place.pull_told(&at(&server), "m");
    result.unwrap();
    assert_eq!(told.last().unwrap(), "done verified=true");
    assert!(place.catalog().resolve("m").is_ok());

    let mut lying = quants();
    let listed = tree(&lying);
    lying[0].1 = Arc::new(noise(100_001, 99));
    let server = Server::start(move |request| match request.path.starts_with("/api/") {
        true => Reply::Text(listed.clone(), None),
        false => answer(&lying, request),
    });
    let place = unpinned("x-Q4_K_M.gguf");
    assert!(matches!(failures(place.pull(&at(&server)))[..], [Error::WrongSum { .. }]));

    let error = unpinned("y.gguf").pull(&at(&server)).unwrap_err();
    assert!(matches!(error, Error::NotInRepository { .. }), "{error}");
}

#[test]
fn fetched_hub_models_are_listed_and_removed_one_by_one() {
    let server = hub(quants());
    let place = Place::new();
    for text in ["hf:o/r:Q8_0", "hf:o/r:Q4_K_M"] {
        place.pull_told(&at(&server), text).0.unwrap();
    }
    let catalog = place.catalog();
    let local = || -> Vec<(String, u64)> {
        let rows = catalog.rows().unwrap();
        rows.into_iter().filter(|row| row.local).map(|row| (row.name, row.have)).collect()
    };
    let split = "hf:o/r:Q8_0/x-Q8_0-00001-of-00002.gguf".to_owned();
    assert_eq!(local(), [(split.clone(), 200_007), ("hf:o/r:x-Q4_K_M.gguf".to_owned(), 100_001)]);
    // The listed name can be used as it stands.
    assert_eq!(catalog.resolve(&split).unwrap().files.len(), 2);
    catalog.remove(&catalog.find(&split).unwrap()).unwrap();
    assert_eq!(local(), [("hf:o/r:x-Q4_K_M.gguf".to_owned(), 100_001)]);
    catalog.remove(&catalog.find("hf:o/r").unwrap()).unwrap();
    assert!(local().is_empty() && !fs::exists(place.home().cache.join("models/hf/o/r")).unwrap());
}

/// Where a listing says less than it should.
fn listed(listing: &'static str, file: Vec<u8>) -> (Place, Result<rynd::catalog::Resolved, Error>) {
    let file = Arc::new(file);
    let server = Server::start(move |request| match request.path.starts_with("/api/") {
        true => Reply::Text(listing.to_owned(), None),
        false => Reply::File(file.clone()),
    });
    let place = Place::new();
    let (result, _) = place.pull_told(&at(&server), "hf:o/r:x.gguf");
    (place, result)
}

#[test]
fn a_listing_without_sizes_installs_the_whole_file_or_nothing() {
    let sizeless = r#"[{"type":"file","oid":"1","path":"x.gguf"}]"#;
    let mut bytes = noise(100_000, 5);
    bytes[..4].copy_from_slice(b"GGUF");
    let (_place, result) = listed(sizeless, bytes.clone());
    assert_eq!(fs::read(result.unwrap().path()).unwrap(), bytes);
    // Nothing, or what is no model, is not installed when no sum says that it is right.
    for (listing, bytes) in [
        (sizeless, vec![]),
        (sizeless, noise(1000, 6)),
        (r#"[{"type":"file","oid":"1","path":"x.gguf","size":0}]"#, vec![]),
    ] {
        let (place, result) = listed(listing, bytes);
        assert!(result.is_err());
        assert!(place.catalog().resolve("hf:o/r:x.gguf").is_err());
        assert!(!place.home().cache.join("models/hf/o/r/x.gguf").exists());
    }
}

#[test]
fn a_listing_of_endless_pages_is_refused_in_little_memory() {
    let patient = |server: &Server| Net { stall_timeout: Duration::from_secs(60), ..at(server) };
    // Pages of a megabyte that hold no models, then ones that hold nothing else.
    for (name, node_bytes, word) in [("x.txt", 4000, "pages"), ("x-Q4_K_M.gguf", 200, "models")] {
        let nodes = (0..1_000_000 / node_bytes).map(|i| {
            let folder = "d".repeat(node_bytes - 60);
            format!(r#"{{"type":"file","size":1,"path":"{folder}{i}/{name}"}}"#)
        });
        let text = format!("[{}]", nodes.collect::<Vec<_>>().join(","));
        let url = Arc::new(OnceLock::<String>::new());
        let known = url.clone();
        let server = Server::start(move |request| {
            let next = format!("{}/api/models/o/r/tree/main?cursor={}", known.get().unwrap(), request.number);
            Reply::Text(text.clone(), Some(format!("<{next}>; rel=\"next\"")))
        });
        url.set(server.url.clone()).unwrap();
        let error = Place::new().pull_told(&patient(&server), "hf:o/r").0.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let endless = Server::start(|_| {
        let mut page = br#"HTTP/1.1 200 X
Connection: close

["#
        .to_vec();
        page.extend(b" ".repeat(9 << 20));
        Reply::Raw(page)
    });
    let error = Place::new().pull_told(&patient(&endless), "hf:o/r").0.unwrap_err().to_string();
    assert!(error.contains("more than 8388608 bytes"), "{error}");
}

#[test]
fn what_another_try_can_not_mend_is_not_tried_again() {
    let raw = |text: &str| text.replace('\n', "\r\n").into_bytes();
    let huge = format!("HTTP/1.1 200 X\nX: {}\n\n", "x".repeat(1 << 20));
    let mut not_utf8 = raw("HTTP/1.1 200 X\nConnection: close\n\n[{\"path\": \"");
    not_utf8.extend(b"\xff\xfe\"}]");
    let mut odd_place = raw("HTTP/1.1 302 X\nConnection: close\nLocation: ");
    odd_place.extend(b"\xff\xfe\r\n\r\n");
    let answers: Vec<(&str, Vec<u8>)> = vec![
        ("a loop", raw("HTTP/1.1 302 X\nConnection: close\nLocation: /api/models/o/r/tree/main\n\n")),
        ("a file", raw("HTTP/1.1 302 X\nConnection: close\nLocation: file:///etc/passwd\n\n")),
        ("no place", raw("HTTP/1.1 302 X\nConnection: close\n\n")),
        ("an odd place", odd_place),
        ("a huge head", raw(&huge)),
        ("no HTTP", raw("SSH-2.0-OpenSSH_9.2\n\n\n")),
        ("no UTF-8", not_utf8),
    ];
    for (name, answer) in answers {
        let server = Server::start(move |_| Reply::Raw(answer.clone()));
        let (result, told) = Place::new().pull_told(&at(&server), "hf:o/r");
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Answer { .. } | Error::Listing { .. }), "{name}: {error}");
        assert!(!told.contains(&"retry".to_owned()), "{name}: {told:?}");
    }
}

#[test]
fn a_setting_that_can_not_be_used_is_named_and_nothing_is_asked() {
    let server = hub(quants());
    let place = Place::new();
    for endpoint in ["hf-mirror.com", "http://a b", "ftp://x", "", "http://"] {
        let (result, told) = place.pull_told(&Net { endpoint: endpoint.to_owned(), ..net() }, "hf:o/r");
        let error = result.unwrap_err().to_string();
        assert!(error.contains("HF_ENDPOINT"), "{endpoint}: {error}");
        assert!(told.is_empty(), "{told:?}");
    }
    let token = Some("hf_secret\nX: y".to_owned());
    let error = place.pull_told(&Net { token, ..at(&server) }, "hf:o/r").0.unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN") && !error.contains("secret"), "{error}");
    assert!(server.requests().is_empty());
}

#[test]
fn the_token_stays_at_its_origin_also_when_the_host_is_the_same() {
    let files = quants();
    // The same host, another port.
    let other = Server::serving(files[0].1.to_vec());
    let to = other.url.clone();
    let server = Server::start(move |request| match request.path.as_str() {
        path if path.starts_with("/api/") => answer(&files, request),
        path if path.starts_with("/o/r/") => Reply::Redirect(format!("/moved{path}")),
        _ => Reply::Redirect(format!("{to}/signed")),
    });
    let net = Net { token: Some("secret".to_owned()), ..at(&server) };
    Place::new().pull_told(&net, "hf:o/r").0.unwrap();
    // A redirect within the hub keeps the token, as a repository that was renamed needs.
    assert!(server.requests().iter().any(|request| request.path.starts_with("/moved/")));
    assert!(server.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer secret")));
    assert!(!other.requests().is_empty());
    assert!(other.requests().iter().all(|request| request.authorization.is_none()));
}

/// A pull by the program with this in its environment.
fn pulled_with(server: &Server, variable: &str, value: &std::ffi::OsStr) -> std::process::Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rynd"));
    for name in
        ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"]
    {
        command.env_remove(name);
    }
    command.args(["pull", "hf:o/r"]).env("RYND_HOME", home.path()).env("HF_ENDPOINT", &server.url);
    command.env("HF_TOKEN", "secret").env(variable, value).stdin(std::process::Stdio::null()).output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_proxy_is_used_or_the_pull_stops() {
    use std::os::unix::ffi::OsStrExt;
    let server = hub(quants());
    let unusable: [(&str, &[u8]); 5] = [
        ("HTTPS_PROXY", b"socks5://127.0.0.1:1"),
        ("https_proxy", b"http://127.0.0.1:1"),
        ("ALL_PROXY", b"gopher://127.0.0.1:1"),
        ("ALL_PROXY", b"http://["),
        ("HTTP_PROXY", b"\xff\xfe"),
    ];
    for (variable, value) in unusable {
        let output = pulled_with(&server, variable, std::ffi::OsStr::from_bytes(value));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{variable}: {stderr}");
        assert!(server.requests().is_empty(), "{variable}={value:?}: {stderr}");
    }
    assert!(pulled_with(&server, "HTTP_PROXY", "".as_ref()).status.success(), "an empty one is none");
}

#[test]
fn socks_proxies_are_spoken_to() {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    let server = hub(quants());
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("socks5://{}", proxy.local_addr().unwrap());
    let carried = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = carried.clone();
    std::thread::spawn(move || {
        for stream in proxy.incoming().flatten() {
            let count = count.clone();
            std::thread::spawn(move || -> std::io::Result<()> {
                // RFC 1928: no authentication, CONNECT to an IPv4 address.
                let mut client = stream;
                let mut head = [0; 2];
                client.read_exact(&mut head)?;
                client.read_exact(&mut vec![0; head[1] as usize])?;
                client.write_all(&[5, 0])?;
                let mut request = [0; 10];
                client.read_exact(&mut request)?;
                let ip = std::net::Ipv4Addr::new(request[4], request[5], request[6], request[7]);
                let mut target = TcpStream::connect((ip, u16::from_be_bytes([request[8], request[9]])))?;
                client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let (mut from, mut to) = (client.try_clone()?, target.try_clone()?);
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                std::io::copy(&mut target, &mut client)?;
                client.shutdown(Shutdown::Write)
            });
        }
    });
    let output = pulled_with(&server, "ALL_PROXY", address.as_ref());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(carried.load(std::sync::atomic::Ordering::SeqCst), server.requests().len());
    assert!(!server.requests().is_empty());
}
