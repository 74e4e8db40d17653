use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rynd::catalog::{Error, Net, Pull};

use super::server::{Reply, Server};
use super::{Place, failures, model, names_in, net, noise, sha256, url_source};

#[test]
fn a_file_comes_in_parallel_pieces_and_is_verified() {
    let bytes = noise(1_000_000, 1);
    let server = Server::serving(bytes.clone());
    let place = Place::with_model(&bytes, &url_source(&server.url));
    let (result, told) = place.pull_told(&net(), "m");
    assert_eq!(result.unwrap().path(), place.folder().join("m.gguf"));
    assert_eq!(place.file(), bytes);
    assert_eq!(names_in(&place.folder()), ["m.gguf", "rynd.json"]);
    assert_eq!(told.last().unwrap(), "done verified=true");
    let mut ranges: Vec<_> = server.requests().iter().map(|request| request.range.unwrap()).collect();
    ranges.sort();
    assert_eq!(ranges.len(), 16);
    assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "{ranges:?}");
    assert_eq!(place.catalog().resolve("m").unwrap().files.len(), 1);
}

#[test]
fn a_second_pull_fetches_nothing() {
    let bytes = noise(1000, 2);
    let server = Server::serving(bytes.clone());
    let place = Place::with_model(&bytes, &url_source(&server.url));
    place.pull(&net()).unwrap();
    let (result, told) = place.pull_told(&net(), "m");
    result.unwrap();
    assert_eq!(told, ["present m.gguf"]);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_connection_that_breaks_goes_on_where_it_stopped() {
    let bytes = Arc::new(noise(200_000, 3));
    let file = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0..3 => Reply::Cut(file.clone(), 30_000),
        _ => Reply::File(file.clone()),
    });
    let place = Place::with_model(&bytes, &url_source(&server.url));
    place.pull(&Net { connections: 1, piece_bytes: 1 << 20, ..net() }).unwrap();
    assert_eq!(place.file(), *bytes);
    let starts: Vec<_> = server.requests().iter().map(|request| request.range.unwrap().0).collect();
    assert_eq!(starts, [0, 30_000, 60_000, 90_000]);
}

#[test]
fn ctrl_c_keeps_what_came_and_the_next_pull_asks_only_for_the_rest() {
    let bytes = noise(1_000_000, 4);
    let server = Server::serving(bytes.clone());
    let place = Place::with_model(&bytes, &url_source(&server.url));
    let kept = match place.pull_until(&net(), 300_000).unwrap_err() {
        Error::Interrupted { kept, .. } => kept,
        other => panic!("{other}"),
    };
    assert!((300_000..1_000_000).contains(&kept), "{kept}");
    assert!(place.has("m.gguf.partial") && !place.has("m.gguf"));
    match place.catalog().resolve("m").unwrap_err() {
        Error::Missing { have, .. } => assert_eq!(have, kept),
        other => panic!("{other}"),
    }

    let before = server.requests().len();
    place.pull(&net()).unwrap();
    assert_eq!(place.file(), bytes);
    let asked: usize = server.requests()[before..].iter().map(|r| r.range.unwrap()).map(|(a, b)| b - a).sum();
    assert_eq!(asked as u64, 1_000_000 - kept);
    assert_eq!(names_in(&place.folder()), ["m.gguf", "rynd.json"]);
}

#[test]
fn ctrl_c_ends_a_pull_from_a_silent_server_at_once() {
    let bytes = Arc::new(noise(500_000, 5));
    let file = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0 => Reply::File(file.clone()),
        _ => Reply::Silent,
    });
    let place = Place::with_model(&bytes, &url_source(&server.url));
    let begun = Instant::now();
    let patient = Net { stall_timeout: Duration::from_secs(60), ..net() };
    assert!(matches!(place.pull_until(&patient, 64 << 10), Err(Error::Interrupted { .. })));
    assert!(begun.elapsed() < Duration::from_secs(30), "the requests were not cut");
}

#[test]
fn a_wrong_sum_removes_the_file_and_the_next_source_is_tried() {
    let bytes = noise(300_000, 6);
    let mut damaged = bytes.clone();
    damaged[200_000] ^= 1;
    let (bad, good) = (Server::serving(damaged), Server::serving(bytes.clone()));
    let place = Place::with_model(&bytes, &(url_source(&bad.url) + &url_source(&good.url)));
    let (result, told) = place.pull_told(&net(), "m");
    result.unwrap();
    assert_eq!(place.file(), bytes);
    let [first, second] = [&bad.url, &good.url].map(|url| format!("{url}/m.gguf"));
    let expected = [format!("trying {first}"), format!("failed {first}"), format!("trying {second}")];
    assert_eq!(told[..3], expected);
}

#[test]
fn a_wrong_sum_from_the_last_source_leaves_nothing_behind() {
    let bytes = noise(300_000, 7);
    let server = Server::serving(noise(300_000, 8));
    let place = Place::with_model(&bytes, &url_source(&server.url));
    match &failures(place.pull(&net()))[..] {
        [Error::WrongSum { expected, got, .. }] => {
            assert_eq!((expected, got), (&sha256(&bytes), &sha256(&noise(300_000, 8))));
        }
        other => panic!("{other:?}"),
    }
    assert!(names_in(&place.folder()).is_empty());
}

#[test]
fn each_refusal_has_an_error_of_its_own() {
    let bytes = noise(1000, 9);
    let error = |status: u16| {
        let server = Server::start(move |_| Reply::Status(status));
        let place = Place::with_model(&bytes, &url_source(&server.url));
        (failures(place.pull(&net())).remove(0), server.requests().len())
    };
    assert!(matches!(error(404), (Error::NotFound { .. }, 1)));
    assert!(matches!(error(401), (Error::Denied { status: 401, .. }, 1)));
    assert!(matches!(error(403), (Error::Denied { status: 403, .. }, 1)));
    assert!(matches!(error(416), (Error::OutOfRange { offset: 0, .. }, 1)));
    assert!(matches!(error(418), (Error::Status { status: 418, .. }, 1)));
    assert!(matches!(error(503), (Error::Status { status: 503, attempts: 3, .. }, 3)));
    assert!(error(401).0.to_string().contains("HF_TOKEN"));
}

#[test]
fn a_passing_server_error_is_tried_again() {
    let bytes = Arc::new(noise(300_000, 10));
    let file = bytes.clone();
    let server = Server::start(move |request| match request.number % 3 {
        0 => Reply::File(file.clone()),
        1 => Reply::Status(503),
        _ => Reply::Status(429),
    });
    let place = Place::with_model(&bytes, &url_source(&server.url));
    place.pull(&Net { connections: 1, attempts: 4, ..net() }).unwrap();
    assert_eq!(place.file(), *bytes);
}

#[test]
fn a_silent_server_is_given_up_after_some_tries() {
    let server = Server::start(|_| Reply::Silent);
    let place = Place::with_model(b"x", &url_source(&server.url));
    let impatient = Net { stall_timeout: Duration::from_millis(50), ..net() };
    assert!(matches!(failures(place.pull(&impatient))[..], [Error::Broken { attempts: 3, .. }]));
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_slow_server_is_no_silent_one() {
    let bytes = Arc::new(noise(300_000, 11));
    let file = bytes.clone();
    let server = Server::start(move |_| Reply::Slow(file.clone()));
    let place = Place::with_model(&bytes, &url_source(&server.url));
    let slower_than_a_stall = Net { connections: 1, piece_bytes: 1 << 20, ..net() };
    let (result, told) = place.pull_told(&slower_than_a_stall, "m");
    result.unwrap();
    assert!(!told.contains(&"retry".to_owned()), "{told:?}");
}

#[test]
fn a_server_without_ranges_sends_one_stream() {
    let bytes = Arc::new(noise(300_000, 12));
    let file = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0 => Reply::WholeCut(file.clone(), 100_000),
        _ => Reply::Whole(file.clone()),
    });
    let place = Place::with_model(&bytes, &url_source(&server.url));
    let (result, told) = place.pull_told(&net(), "m");
    result.unwrap();
    assert_eq!(place.file(), *bytes);
    assert_eq!(told[1..3], ["retry", "restart"]);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn what_was_kept_is_thrown_away_when_the_server_knows_no_ranges() {
    let bytes = Arc::new(noise(1_000_000, 13));
    let (file, whole) = (bytes.clone(), Arc::new(AtomicUsize::new(0)));
    let now_whole = whole.clone();
    let server = Server::start(move |_| match now_whole.load(Ordering::SeqCst) {
        0 => Reply::File(file.clone()),
        _ => Reply::Whole(file.clone()),
    });
    let place = Place::with_model(&bytes, &url_source(&server.url));
    place.pull_until(&net(), 200_000).unwrap_err();
    whole.store(1, Ordering::SeqCst);
    place.pull(&net()).unwrap();
    assert_eq!(place.file(), *bytes);
}

#[test]
fn a_file_of_another_size_is_refused_before_it_is_fetched() {
    let bytes = noise(300_000, 14);
    let server = Server::serving(noise(400_000, 14));
    let place = Place::with_model(&bytes, &url_source(&server.url));
    let errors = failures(place.pull(&net()));
    assert!(matches!(errors[..], [Error::WrongSize { expected: 300_000, got: 400_000, .. }]), "{errors:?}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_file_that_changed_on_the_server_is_started_anew() {
    let (old, new) = (Arc::new(noise(1_000_000, 15)), Arc::new(noise(1_000_000, 16)));
    let (first, second, switched) = (old, new.clone(), Arc::new(AtomicUsize::new(0)));
    let now = switched.clone();
    let server = Server::start(move |_| match now.load(Ordering::SeqCst) {
        0 => Reply::Tagged(first.clone(), "\"old\""),
        _ => Reply::Tagged(second.clone(), "\"new\""),
    });
    let place = Place::with_model(&new, &url_source(&server.url));
    place.pull_until(&net(), 200_000).unwrap_err();
    switched.store(1, Ordering::SeqCst);
    let (result, told) = place.pull_told(&net(), "m");
    result.unwrap();
    assert!(told.contains(&"restart".to_owned()));
    assert_eq!(place.file(), *new);
}

#[test]
fn a_damaged_state_file_costs_only_the_resumption() {
    let bytes = noise(1_000_000, 17);
    let server = Server::serving(bytes.clone());
    for damage in ["", "{}", "[1,2", r#"{"bytes":1000000,"sha256":null,"etag":null,"done":[[9,2]],"part_ends":[]}"#] {
        let place = Place::with_model(&bytes, &url_source(&server.url));
        place.pull_until(&net(), 200_000).unwrap_err();
        fs::write(place.folder().join("m.gguf.partial.json"), damage).unwrap();
        place.pull(&net()).unwrap();
        assert_eq!(place.file(), bytes);
    }
}

#[test]
fn redirects_are_followed() {
    let bytes = noise(300_000, 18);
    let target = Server::serving(bytes.clone());
    let to = target.url.clone();
    let server = Server::start(move |_| Reply::Redirect(format!("{to}/elsewhere")));
    let place = Place::with_model(&bytes, &url_source(&server.url));
    place.pull(&net()).unwrap();
    assert!(target.requests().iter().all(|request| request.path == "/elsewhere"));
}

#[test]
fn a_full_disk_is_noticed_before_the_first_byte() {
    let bytes = noise(300_000, 19);
    let server = Server::serving(bytes.clone());
    let place = Place::with_model(&bytes, &url_source(&server.url));
    let (catalog, net) = (place.catalog(), net());
    let pull = Pull { free_bytes: &|_| Ok(299_999), ..Pull::new(&catalog, &net) };
    let error = pull.run(&catalog.find("m").unwrap()).unwrap_err();
    assert!(matches!(error, Error::NoSpace { free: 299_999, .. }), "{error}");
    assert!(server.requests().is_empty());
}

#[test]
fn a_disk_that_becomes_full_keeps_what_was_written() {
    let bytes = noise(1_000_000, 20);
    let (first, second) = (Server::serving(bytes.clone()), Server::serving(bytes.clone()));
    let place = Place::with_model(&bytes, &(url_source(&first.url) + &url_source(&second.url)));
    let (catalog, net) = (place.catalog(), net());
    let pull = Pull { room_bytes: Some(400_000), ..Pull::new(&catalog, &net) };
    let error = pull.run(&catalog.find("m").unwrap()).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(second.requests().is_empty(), "another source does not make room");
    assert!(!place.has("m.gguf"));
    match place.catalog().resolve("m").unwrap_err() {
        Error::Missing { have, .. } => assert!((200_000..=400_000).contains(&have), "{have}"),
        other => panic!("{other}"),
    }
    place.pull(&net).unwrap();
    assert_eq!(place.file(), bytes);
}

#[test]
fn a_server_that_is_not_there_costs_no_waiting() {
    let bytes = noise(1000, 21);
    let server = Server::serving(bytes.clone());
    let nobody = "http://127.0.0.1:9";
    let place = Place::with_model(&bytes, &(url_source(nobody) + &url_source(&server.url)));
    let (result, told) = place.pull_told(&Net { attempts: 50, pause: Duration::from_secs(9), ..net() }, "m");
    result.unwrap();
    assert_eq!(told[1], format!("failed {nobody}/m.gguf"));
    let alone = Place::with_model(&bytes, &url_source(nobody));
    assert!(matches!(failures(alone.pull(&net()))[..], [Error::Unreachable { .. }]));
}

#[test]
fn split_files_are_one_model() {
    let parts = [noise(200_000, 22), noise(300_000, 23)];
    let names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
    let files = parts.clone().map(Arc::new);
    let server = Server::start(move |request| match request.path.as_str() {
        "/d/m-00001-of-00002.gguf" => Reply::File(files[0].clone()),
        "/d/m-00002-of-00002.gguf" => Reply::File(files[1].clone()),
        _ => Reply::Status(404),
    });
    let entry = model(&[(names[0], &parts[0]), (names[1], &parts[1])]);
    let place = Place::with(&format!("{entry}[[model.m.source]]\nkind = \"url\"\nurl = \"{}/d/\"\n", server.url));
    let resolved = place.pull(&net()).unwrap();
    assert_eq!(resolved.files, names.map(|name| place.folder().join(name)));
    assert_eq!(fs::read(&resolved.files[1]).unwrap(), parts[1]);

    fs::remove_file(&resolved.files[1]).unwrap();
    match place.catalog().resolve("m").unwrap_err() {
        Error::Missing { have, bytes, .. } => assert_eq!((have, bytes), (200_000, Some(500_000))),
        other => panic!("{other}"),
    }
    let (result, told) = place.pull_told(&net(), "m");
    result.unwrap();
    assert_eq!(told[0], format!("present {}", names[0]));
}

#[test]
fn a_file_put_into_the_cache_by_hand_is_verified_and_taken() {
    let bytes = noise(1000, 24);
    let server = Server::serving(bytes.clone());
    let place = Place::with_model(&bytes, &url_source(&server.url));
    fs::create_dir_all(place.folder()).unwrap();
    fs::write(place.folder().join("m.gguf"), noise(1000, 25)).unwrap();
    place.pull(&net()).unwrap();
    assert_eq!((place.file(), server.requests().len()), (bytes.clone(), 1));

    fs::remove_file(place.folder().join("rynd.json")).unwrap();
    place.pull(&net()).unwrap();
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn two_pulls_of_one_model_do_not_meet() {
    let bytes = noise(1000, 26);
    let server = Server::serving(bytes.clone());
    let place = Place::with_model(&bytes, &url_source(&server.url));
    fs::create_dir_all(place.folder()).unwrap();
    let lock = fs::File::create(place.folder().join(".lock")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(place.pull(&net()), Err(Error::Busy { .. })));
    drop(lock);
    place.pull(&net()).unwrap();
}

#[test]
fn rm_takes_the_files_and_what_an_interruption_left() {
    let bytes = noise(1_000_000, 27);
    let server = Server::serving(bytes.clone());
    let place = Place::with_model(&bytes, &url_source(&server.url));
    let catalog = place.catalog();
    let m = catalog.find("m").unwrap();
    assert!(matches!(catalog.remove(&m), Err(Error::NotLocal { .. })));
    place.pull_until(&net(), 200_000).unwrap_err();
    assert!(catalog.remove(&m).unwrap() >= 200_000);
    assert!(!place.folder().exists());
    place.pull(&net()).unwrap();
    assert!(catalog.remove(&m).unwrap() >= 1_000_000);
    assert!(!place.folder().exists());
    let own = place.folder.path().join("own.gguf");
    fs::write(&own, b"GGUF").unwrap();
    let path = catalog.find(own.to_str().unwrap()).unwrap();
    assert!(matches!(catalog.remove(&path), Err(Error::NotInCache { .. })));
    assert!(own.exists());
}
