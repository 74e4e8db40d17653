//! A file's vocabulary, and text through it: what is encoded comes back.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use rynd::gguf::Gguf;
use rynd::tokenizer::{Encode, Tokenizer, Vocab};

fuzz_target!(|bytes: &[u8]| {
    // The last bytes are the text.
    let (file, text) = bytes.split_at(bytes.len().saturating_sub(256));
    let Ok(gguf) = Gguf::from_bytes(Path::new("fuzz.gguf"), file.into()) else { return };
    let Ok(Ok(tokenizer)) = Vocab::from_gguf(&gguf).map(Tokenizer::new) else { return };
    let ids = tokenizer.encode(&String::from_utf8_lossy(text), Encode::default());
    tokenizer.decode(&ids, true);
});
