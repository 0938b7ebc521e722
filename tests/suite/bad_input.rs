//! Bad input: the targets of `fuzz/` on their corpus and on random bytes, and the words of errors.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use crate::support::cases;
use crate::support::fuzz::TARGETS;

/// What the fuzzers found worth keeping, `fuzz/corpus/TARGET/*`.
#[test]
fn the_corpus() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let files: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        assert!(!files.is_empty(), "{}", folder.display());
        for file in files {
            target(&fs::read(file).unwrap());
        }
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn random_bytes(data in prop::collection::vec(any::<u8>(), 0..800)) {
        for (_, target) in TARGETS {
            target(&data);
        }
    }
}
