//! The house: folders are floors, and a lower floor never names an upper one. So whoever reads a folder needs
//! to know those below it, and nothing else. What the documents say of files is there.
//!
//! The floors stand here, for each crate, the lowest first; what shares a line does not name each other. Tests
//! may use anything.

use std::collections::{BTreeMap, BTreeSet};
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
    &["blocking", "schedule"],
    &["boot", "kernel"],
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
    &["transport"],
    &["stream"],
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
    let end = text
        .find("\n#[cfg(test)]\nmod tests {")
        .unwrap_or(text.len());
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

/// The paths in `tree`, what follows `use`, without its braces.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, group)) = tree.strip_suffix('}').and_then(|t| t.split_once('{')) else {
        let path = tree.split(" as ").next().unwrap_or(tree);
        return vec![path.trim_end_matches("::self").to_owned()];
    };
    let (mut depth, mut begin, mut found) = (0, 0, Vec::new());
    let end = group.len();
    let commas = group.char_indices().chain([(end, ',')]);
    for (at, c) in commas {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = &group[begin..at];
                let parts = paths(part).into_iter();
                found.extend(parts.map(|path| format!("{prefix}{path}")));
                begin = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// The module of each file of a crate, `a::b` for a/b.rs and a/b/mod.rs, and the modules that it imports.
fn modules(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let sources = root().join(folder);
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for path in files_of(&sources) {
        let place = path.strip_prefix(&sources).expect("it is in it");
        let place = place.with_extension("").display().to_string();
        let module = place.trim_end_matches("/mod").replace('/', "::");
        files.insert(module, code(&path));
    }
    let known: BTreeSet<String> = files.keys().cloned().collect();
    let imports = |module: &str, code: &str| -> BTreeSet<String> {
        let uses = code.split("use ").skip(1);
        let uses = uses.filter_map(|rest| rest.split_once(';'));
        let named = uses.flat_map(|(tree, _)| paths(&tree.replace('\n', " ")));
        let inline = code.split("crate::").skip(1).map(|rest| {
            let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            let path: String = rest.chars().take_while(|c| is_path(*c)).collect();
            format!("crate::{path}")
        });
        let absolute = named.chain(inline).filter_map(|path| {
            let mut base: Vec<&str> = module.split("::").collect();
            let mut rest = path.trim();
            if let Some(own) = rest.strip_prefix("crate::") {
                return Some(own.to_owned());
            }
            if let Some(own) = rest.strip_prefix("self::") {
                return Some(format!("{module}::{own}"));
            }
            if !rest.starts_with("super::") {
                return None;
            }
            while let Some(upper) = rest.strip_prefix("super::") {
                base.pop();
                rest = upper;
            }
            base.push(rest);
            Some(base.join("::"))
        });
        let files = absolute.filter_map(|path| {
            let mut path = path.as_str();
            while !known.contains(path) {
                path = path.rsplit_once("::")?.0;
            }
            Some(path.to_owned())
        });
        let is_family = |other: &str| {
            let below = |upper: &str, lower: &str| lower.starts_with(&format!("{upper}::"));
            other == module || below(other, module) || below(module, other)
        };
        files.filter(|other| !is_family(other)).collect()
    };
    let imported = files
        .iter()
        .map(|(module, code)| (module.clone(), imports(module, code)));
    imported.collect()
}

/// The files of `sources` that are neither tests nor samples for them.
fn files_of(sources: &Path) -> Vec<PathBuf> {
    let mut found = files(sources, ".rs");
    found.retain(|path| {
        let shown = path.to_string_lossy();
        let place = shown
            .strip_prefix(&*sources.to_string_lossy())
            .unwrap_or(&shown);
        !place.contains("tests") && !place.contains("samples")
    });
    found
}

#[test]
fn no_files_import_each_other_but_parent_and_child() {
    let mut circles = Vec::new();
    for folder in ["shared/src", "rum-agent/src", "rum-host/src"] {
        let imports = modules(folder);
        assert!(
            imports.values().any(|all| all.len() > 3),
            "{folder} has imports"
        );
        for module in imports.keys() {
            let (mut seen, mut next) = (BTreeSet::new(), vec![module]);
            while let Some(at) = next.pop() {
                next.extend(imports[at].iter().filter(|other| seen.insert(*other)));
            }
            if seen.contains(module) {
                circles.push(format!("{folder}: {module} is in a circle"));
            }
        }
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn the_paths_of_a_use_are_found() {
    let found = paths("crate::a::{self, B, c::{D, e::F as G}}");
    assert_eq!(
        found,
        [
            "crate::a::self",
            "crate::a::B",
            "crate::a::c::D",
            "crate::a::c::e::F"
        ]
    );
}

#[test]
fn names_are_found_in_every_form() {
    let code = "use crate::plan::Key;\nuse crate::{exit, guest::{self, Guest},\n ui::output};\ncrate::runtime::small()";
    let found: Vec<_> = named(code).into_iter().collect();
    assert_eq!(found, ["exit", "guest", "plan", "runtime", "ui"]);
}

/// What stands between backticks: every second part.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_files_that_the_documents_name_are_there() {
    const FOLDERS: [&str; 6] = [
        "rum-host/",
        "rum-agent/",
        "shared/",
        "tests/",
        "fixtures/",
        "docs/",
    ];
    let root = root();
    let mut missing = Vec::new();
    let mut documents = files(&root.join("docs"), ".md");
    for name in [
        "ARCHITECTURE",
        "BENCHMARKS",
        "CONTRIBUTING",
        "README",
        "SECURITY",
    ] {
        documents.push(root.join(name).with_extension("md"));
    }
    for path in documents {
        let text = fs::read_to_string(&path).expect("a document");
        let document = path.strip_prefix(&root).expect("it is in it").display();
        for named in quoted(&text) {
            let is_path = FOLDERS.iter().any(|folder| named.starts_with(folder));
            if is_path && !named.contains([' ', '*', '<']) && !root.join(named).exists() {
                missing.push(format!("{document}: {named}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The text of the sources that a cell of SECURITY's table names: the first by its whole path, others also
/// beside it or from the sources of its crate on.
fn sources(cell: &str) -> Option<String> {
    let first = Path::new(quoted(cell).next()?);
    let beside = first.parent()?;
    let of_crate: PathBuf = first.iter().take(2).collect();
    let mut all = String::new();
    for named in quoted(cell) {
        let bases = [Path::new(""), beside, &of_crate];
        let mut places = bases.map(|base| root().join(base).join(named)).into_iter();
        let place = places.find(|place| place.exists())?;
        let found = if place.is_dir() {
            files(&place, ".rs")
        } else {
            vec![place]
        };
        for path in found {
            all.push_str(&fs::read_to_string(path).expect("a file"));
        }
    }
    Some(all)
}

#[test]
fn the_bounds_that_security_lists_are_constants_of_the_files_it_names() {
    let text = fs::read_to_string(root().join("SECURITY.md")).expect("a document");
    let (mut rows, mut missing) = (0, Vec::new());
    for line in text.lines() {
        let cells: Vec<_> = line.split('|').collect();
        let [_, what, _, constants, places, _] = cells[..] else {
            continue;
        };
        if quoted(constants).next().is_none() {
            continue;
        }
        rows += 1;
        let code = sources(places).unwrap_or_default();
        for constant in quoted(constants) {
            let name = constant.rsplit("::").next().unwrap_or(constant);
            if !code.contains(&format!("{name}:")) {
                missing.push(format!("{}: {constant}", what.trim()));
            }
        }
    }
    assert!(rows > 50, "the table has {rows} rows");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
