//! Each function of `rum_tests::fuzz`, on its committed corpus and on changes of it that are the
//! same in every run. What this finds in seconds needs no fuzzer; what a fuzzer found is in the
//! corpus.

use std::fs;
use std::path::PathBuf;

use rum_tests::fuzz::mutate::Mutator;
use rum_tests::fuzz::{TARGETS, Target};

/// Changed inputs for each function; all of them together take some seconds.
const INPUTS: usize = 500;

/// The corpus of `name`, in the order of the file names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/corpus")).join(name);
    let entries = fs::read_dir(&dir).expect("each function has a corpus");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("a file"))
        .collect()
}

/// Says which input it was when one panics.
struct Told<'a>(&'a str, &'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} panicked on b\"{}\"", self.0, self.1.escape_ascii());
        }
    }
}

fn run((name, target): (&str, Target)) {
    let corpus = corpus(name);
    assert!(corpus.len() > 1, "{name} has no corpus to speak of");
    for input in &corpus {
        let _told = Told(name, input);
        target(input);
    }
    let mut mutator = Mutator::new(1);
    for _ in 0..INPUTS {
        let input = mutator.mutate(&corpus);
        let _told = Told(name, &input);
        target(&input);
    }
}

#[test]
fn no_corpus_and_no_change_of_it_breaks_anything() {
    std::thread::scope(|scope| {
        for target in TARGETS {
            scope.spawn(move || run(target));
        }
    });
}

#[test]
fn every_function_is_a_target_of_the_fuzzer() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("the fuzzer's crate");
    for (name, _) in TARGETS {
        assert!(
            manifest.contains(&format!("\nname = \"{name}\"\n")),
            "{name}"
        );
        let file = format!("{}/fuzz/fuzz_targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let target = fs::read_to_string(&file).expect("a target");
        assert!(
            target.contains(&format!("rum_tests::fuzz::{name}(data)")),
            "{name}"
        );
    }
}
