//! Runs each target on its corpus, and on each file of the corpus shortened and with bytes changed.

use std::{fs, path::Path};

use fuzz_targets::TARGETS;

/// The changed bytes take these values.
const VALUES: [u8; 4] = [0, 1, 0x7f, 0xff];
/// Changed files of a corpus file at most.
const CHANGED: usize = 400;

#[test]
fn each_target_holds_on_its_corpus_and_near_it() {
    let corpus = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs tests")).join("corpus");
    for (name, target) in TARGETS {
        let mut files = fs::read_dir(corpus.join(name)).expect(name).map(|entry| entry.expect(name).path());
        assert!(files.by_ref().next().is_some(), "{name} has no corpus");
        for file in fs::read_dir(corpus.join(name)).expect(name) {
            let data = fs::read(file.expect(name).path()).expect(name);
            target(&data);
            let step = (data.len() * VALUES.len() / CHANGED).max(1);
            for at in (0..data.len()).step_by(step) {
                target(&data[..at]);
                for value in VALUES {
                    let mut changed = data.clone();
                    changed[at] = value;
                    target(&changed);
                }
            }
        }
    }
}
