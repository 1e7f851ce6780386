//! What the fuzzer runs. A target takes any bytes, and panics if the code under test does what it must not.
//!
//! `tests/fuzz/libfuzzer` runs a target under libFuzzer; `tests/replay.rs` runs each target on the files of `corpus`, and on changed ones.

mod bytes;
mod decoder;
mod firmware;
mod images;
mod server;
mod service;
mod unit;

/// A target by its name, which is also that of its folder in the corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 8] = [
    ("acpi", firmware::acpi),
    ("bzimage", images::bzimage),
    ("decoder", decoder::decoder),
    ("elf", images::elf),
    ("hypercalls", service::hypercalls),
    ("stores", service::stores),
    ("unit", unit::unit),
    ("vfio_user", server::vfio_user),
];
