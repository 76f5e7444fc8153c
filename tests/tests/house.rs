//! The house: folders are floors, and a lower floor never names an upper one. So whoever reads a folder needs
//! to know those below it, and nothing else. What the documents say of files is there.
//!
//! The floors stand here, for each crate, the lowest first; what shares a line does not name each other. Tests
//! may use anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const RUM_HOST: &[&[&str]] = &[
    &["exit", "clock", "descriptors", "reason"],
    &["error", "stack"],
    &["limits", "runtime"],
    &["signals"],
    &["plan", "stream"],
    &["forward"],
    &["runtime_dir"],
    &["hint"],
    &["guest"],
    &["config", "status"],
    &["ui"],
    &["control"],
    &["supervisor", "view"],
    &["agent", "cli"],
    &["commands"],
    &["lib"],
    &["main"],
];
const RUM_AGENT: &[&[&str]] = &[
    &["blocking", "boot", "schedule"],
    &["kernel"],
    &["hint"],
    &["port_set"],
    &["forward", "stream"],
    &["server"],
    &["cli"],
    &["lib"],
    &["main"],
];
const RUM_SHARED: &[&[&str]] = &[
    &["destination", "lines", "netns", "range", "text", "threads"],
    &["listener"],
    &["stream"],
    &["transport"],
    &["bytes"],
    &["lib"],
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files below `dir` whose names end with `end`.
fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    found
}

/// The code of a file: neither its comments nor its tests, which stand at the end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a file");
    let end = text.find("\n#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let lines = text[..end].lines();
    let lines = lines.filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The folders and files of the root that `code` names: `crate::NAME`, also in braces.
fn named(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        let word = |text: &str| {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            text.chars().take_while(|c| is_part(*c)).collect::<String>()
        };
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (index, c) in group.char_indices() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && !c.is_whitespace() => {
                    names.insert(word(&group[index..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    names
}

/// What in `folder`, the sources of a crate, is against its `floors`.
fn wrong(folder: &str, floors: &[&[&str]]) -> Vec<String> {
    let sources = root().join(folder);
    let floor = |name: &str| floors.iter().position(|all| all.contains(&name));
    let mut wrong = Vec::new();
    for path in files(&sources, ".rs") {
        let place = path.strip_prefix(&sources).expect("it is in it");
        let shown = place.display().to_string();
        if shown.contains("tests") || shown.contains("samples") {
            continue;
        }
        let top = place.components().next().expect("a name").as_os_str();
        let top = top.to_string_lossy().trim_end_matches(".rs").to_owned();
        let Some(own) = floor(&top) else {
            wrong.push(format!("{folder}/{shown}: `{top}` has no floor"));
            continue;
        };
        for name in named(&code(&path)) {
            if name != top && floor(&name).is_some_and(|other| other >= own) {
                wrong.push(format!("{folder}/{shown} names `{name}`"));
            }
        }
    }
    wrong
}

#[test]
fn a_lower_floor_never_names_an_upper_one() {
    let crates = [
        ("shared/src", RUM_SHARED),
        ("rum-agent/src", RUM_AGENT),
        ("rum-host/src", RUM_HOST),
    ];
    let wrong: Vec<_> = crates
        .iter()
        .flat_map(|(folder, floors)| wrong(folder, floors))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_are_found_in_every_form() {
    let code = "use crate::plan::Key;\nuse crate::{exit, guest::{self, Guest},\n ui::output};\ncrate::runtime::small()";
    let found: Vec<_> = named(code).into_iter().collect();
    assert_eq!(found, ["exit", "guest", "plan", "runtime", "ui"]);
}

#[test]
fn the_files_that_the_documents_name_are_there() {
    let root = root();
    let mut missing = Vec::new();
    let top = [
        "ARCHITECTURE",
        "BENCHMARKS",
        "CONTRIBUTING",
        "README",
        "SECURITY",
    ];
    let mut documents = files(&root.join("docs"), ".md");
    documents.extend(top.map(|name| root.join(name).with_extension("md")));
    for path in documents {
        let text = fs::read_to_string(&path).expect("a document");
        let document = path.strip_prefix(&root).expect("it is in it").display();
        // What stands between backticks is every second part.
        for named in text.split('`').skip(1).step_by(2) {
            let is_path = [
                "rum-host/",
                "rum-agent/",
                "shared/",
                "tests/",
                "fixtures/",
                "docs/",
            ]
            .iter()
            .any(|start| named.starts_with(start));
            if is_path && !named.contains([' ', '*', '<']) && !root.join(named).exists() {
                missing.push(format!("{document}: {named}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
