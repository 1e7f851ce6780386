//! libFuzzer around one of the targets, which the environment's `FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    match fuzz_targets::TARGETS.iter().find(|(target, _)| *target == name) {
        Some((_, target)) => *target,
        None => panic!("FUZZ_TARGET: one of {:?}", fuzz_targets::TARGETS.map(|(target, _)| target)),
    }
});

fuzz_target!(|data: &[u8]| TARGET(data));
