use std::fs;
use std::sync::Arc;

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
