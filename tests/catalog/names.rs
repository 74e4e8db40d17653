use std::fs;

use rynd::catalog::{Catalog, Error, Model, State};

use super::{Place, model, noise, url_source};

fn load_error(toml: &str) -> String {
    let place = Place::with(toml);
    Catalog::load(place.home()).unwrap_err().to_string()
}

#[test]
fn the_built_in_catalog_has_the_models_of_the_readme() {
    let place = Place::new();
    let catalog = place.catalog();
    for name in [
        "qwen3-coder-480b",
        "qwen3-coder-480b-q2",
        "qwen3-coder-30b",
        "qwen3-coder-next",
        "qwen2.5-coder-0.5b",
        "qwen2.5-coder-1.5b",
        "qwen2.5-coder-7b",
        "smollm2-135m",
        "gemma3-270m",
    ] {
        assert!(catalog.entry(name).is_some(), "{name}");
    }
    assert_eq!(catalog.default_model(), "qwen2.5-coder-1.5b");
    assert_eq!(catalog.entry("qwen3-coder-480b").unwrap().bytes(), Some(290_058_826_208));
    assert_eq!(catalog.entry("qwen2.5-coder").unwrap().name, "qwen2.5-coder-1.5b");
}

#[test]
fn a_missing_model_is_an_error_with_the_command_that_fetches_it() {
    let place = Place::new();
    match place.catalog().resolve("smollm2").unwrap_err() {
        Error::Missing { model, bytes, have, command } => {
            assert_eq!((model.as_str(), bytes, have), ("smollm2-135m", Some(98_362_432), 0));
            assert_eq!(command, "rynd pull smollm2-135m");
        }
        other => panic!("{other}"),
    }
    let hub = place.catalog().resolve("hf:owner/repo:Q8_0").unwrap_err();
    assert!(hub.to_string().contains("rynd pull hf:owner/repo:Q8_0"), "{hub}");
}

#[test]
fn an_unknown_name_suggests_near_ones() {
    let place = Place::new();
    let near = |text: &str| match place.catalog().find(text) {
        Err(Error::UnknownName { near, .. }) => near,
        other => panic!("{other:?}"),
    };
    assert_eq!(near("smolm2-135"), ["smollm2-135m"]);
    assert_eq!(near("qwen3-coder-39b")[0], "qwen3-coder-30b");
    assert_eq!(near("480b")[0], "qwen3-coder-480b");
    assert!(near("xylophone-9000").is_empty());
    assert!(place.catalog().find("smolm2-135").unwrap_err().to_string().contains("did you mean smollm2-135m?"));
}

#[test]
fn names_are_found_in_any_case() {
    let place = Place::new();
    assert_eq!(place.catalog().find("Qwen3-Coder-30B").unwrap().name(), "qwen3-coder-30b");
}

#[test]
fn a_path_is_a_path_even_if_it_is_not_there() {
    let place = Place::new();
    let catalog = place.catalog();
    let file = place.folder.path().join("own.gguf");
    let text = file.to_str().unwrap();
    assert!(matches!(catalog.find(text), Err(Error::NoSuchFile { .. })));
    assert!(matches!(catalog.find("nowhere.gguf"), Err(Error::NoSuchFile { .. })));
    assert!(matches!(catalog.find("some/where"), Err(Error::NoSuchFile { .. })));
    assert!(matches!(catalog.find(place.folder.path().to_str().unwrap()), Err(Error::Folder { .. })));
    fs::write(&file, b"GGUF").unwrap();
    let resolved = catalog.resolve(text).unwrap();
    assert_eq!(resolved.path(), file);
    assert!(resolved.entry.is_none());
}

#[test]
fn a_catalogued_file_given_by_its_path_keeps_its_hints() {
    let bytes = noise(1000, 1);
    let place = Place::with_model(&bytes, &url_source("http://127.0.0.1:9"));
    let file = place.folder.path().join("m.gguf");
    fs::write(&file, &bytes).unwrap();
    let resolved = place.catalog().resolve(file.to_str().unwrap()).unwrap();
    assert_eq!(resolved.entry.unwrap().name, "m");
}

#[test]
fn hub_names_are_taken_apart() {
    let place = Place::new();
    let catalog = place.catalog();
    let parts = |text: &str| match catalog.find(text) {
        Ok(Model::Hub(hub)) => {
            assert_eq!(hub.to_string(), text);
            (hub.repo, hub.revision, hub.pick)
        }
        other => panic!("{other:?}"),
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(parts("hf:o/r"), ("o/r".to_owned(), None, None));
    assert_eq!(parts("hf:o/r:Q4_K_M"), ("o/r".to_owned(), None, some("Q4_K_M")));
    assert_eq!(parts("hf:o/r@v1:d/x.gguf"), ("o/r".to_owned(), some("v1"), some("d/x.gguf")));
    for bad in ["hf:", "hf:o", "hf:o/r:", "hf:o/r/x", "hf:../r", "hf:o/r:../x.gguf", "hf:o/r@a b", "hf:o/r?x"] {
        assert!(matches!(catalog.find(bad), Err(Error::HubName { .. })), "{bad}");
    }
}

#[test]
fn the_users_file_replaces_single_keys_and_adds_entries() {
    let own = format!(
        "default = \"m\"\n{}{}[model.smollm2-135m]\nlicence = \"mine\"\nsampler = {{ top_p = 0.5 }}\n",
        model(&[("m.gguf", b"x")]),
        url_source("https://example.org")
    );
    let place = Place::with(&own);
    let catalog = place.catalog();
    assert_eq!(catalog.default_model(), "m");
    let entry = catalog.entry("smollm2").unwrap();
    assert_eq!((entry.licence.as_str(), entry.files[0].bytes), ("mine", Some(98_362_432)));
    assert_eq!((entry.sampler.temp, entry.sampler.top_p), (Some(0.2), Some(0.5)));
}

#[test]
fn errors_in_the_users_file_name_the_file_and_the_entry() {
    let good = format!("{}{}", model(&[("m.gguf", b"x")]), url_source("https://example.org"));
    let cases = [
        ("[model.m]\nfoo = 1\n".to_owned(), "unknown field `foo`"),
        (good.replace("sha256", "sha265"), "unknown field `sha265`"),
        (good.replace("kind = \"url\"", "kind = \"ftp\""), "unknown variant `ftp`"),
        (good.replace("url = ", "link = "), "link"),
        (good.replace("https://", "file://"), "https://"),
        (good.replace("bytes = 1", "bytes = \"1\""), "invalid type"),
        (good.replace("bytes = 1\n", ""), "no bytes"),
        (good.replace("name = \"m.gguf\"", "name = \"../m.gguf\""), "plain file name"),
        (good.replace("sha256 = \"", "sha256 = \"z"), "64 lower-case hex digits"),
        (good.replace("[model.m]", "[model.m]\naliases = [\"smollm2\"]"), "already names the model 'smollm2-135m'"),
        (good.replace("[model.m]", "[model.m]\nsampler = { temp = -1 }"), "temp"),
        (good.replace("model.m", "model.M"), "short name"),
        (model(&[("m.gguf", b"x")]), "source"),
    ];
    for (toml, expected) in cases {
        let message = load_error(&toml);
        assert!(message.contains(expected) && message.contains("models.toml: model '"), "{expected}: {message}");
        assert!(!message.contains("built-in"), "{message}");
    }
    assert!(load_error("[model.m\n").contains("models.toml: TOML parse error at line 1"));
    assert!(load_error("default = \"nothing\"\n").contains("'nothing' has no entry"));
}

#[test]
fn pip_sources_take_only_exact_packages() {
    let with = |packages: &str| {
        format!(
            "{}[[model.m.source]]\nkind = \"pip\"\npart = \"x\"\npackages = {packages}\n",
            model(&[("m.gguf", b"x")])
        )
    };
    for bad in ["[]", "[\"a\"]", "[\"a>=1\"]", "[\"--index-url==x\"]", "[\"a==1 --x\"]", "{ prefix = \"a\" }", "3"] {
        let message = load_error(&with(bad));
        assert!(message.contains("packages") && message.contains("model 'm'"), "{bad}: {message}");
    }
    let place = Place::with(&with("{ prefix = \"a-\", count = 2, version = \"1.0\" }"));
    let catalog = place.catalog();
    assert_eq!(catalog.entry("m").unwrap().sources[0].to_string(), "pip a-1==1.0 .. a-2==1.0");
}

#[test]
fn an_unpinned_file_must_say_so() {
    let toml = |file: &str| {
        format!(
            "[model.m]\ndescription = \"\"\nlicence = \"\"\nfile = [{file}]\n{}",
            "source = [{ kind = \"hf\", repo = \"o/r\" }]\n"
        )
    };
    assert!(load_error(&toml("{ name = \"a.gguf\" }")).contains("unpinned = true"));
    let sum = "0".repeat(64);
    let both = format!("{{ name = \"a.gguf\", bytes = 1, sha256 = \"{sum}\", unpinned = true }}");
    assert!(load_error(&toml(&both)).contains("can not be both"));
    let place = Place::with(&toml("{ name = \"a.gguf\", unpinned = true }"));
    let catalog = place.catalog();
    assert_eq!(catalog.entry("m").unwrap().bytes(), None);
    let state = catalog.state(&catalog.find("m").unwrap()).unwrap();
    assert!(matches!(state, State::Missing { bytes: None, have: 0 }));
}
