//! A page of a hub's listing.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = rynd::catalog::models_of_page(bytes);
});
