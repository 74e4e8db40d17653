//! A chat template: compiled, rendered and dropped.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rynd::chat::{Message, Template};

fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    if let Ok(template) = Template::new(source, "fuzz") {
        let _ = template.render(&[Message::user("{{ x }}")], None, true, &serde_json::Map::new());
    }
});
