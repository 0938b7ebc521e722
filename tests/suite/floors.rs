//! The dependency map of ARCHITECTURE.md, enforced: imports point to lower floors only, no files
//! import one another in a circle, and the paths and orders of the map are those of the tree.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

/// A room whose parts stand on floors of their own.
const STAIRS: &str = "training";

const FLOORS: [&[&str]; 10] = [
    &["error", "guide", "kernel"],
    &["hyperparameter", "math", "needs", "training::reducer"],
    &["log_probs", "training::gradients", "training::mpi"],
    &["batch", "tokens"],
    &["part", "reference"],
    &["objective"],
    &["declare"],
    &["loss", "modifier", "training::metrics"],
    &[
        "config",
        "data",
        "training::accumulation",
        "training::burn_train",
        "training::class_ratio",
        "training::first_batch",
        "training::state",
    ],
    &["any_error"],
];

fn floor(room: &str) -> usize {
    FLOORS
        .iter()
        .position(|rooms| rooms.contains(&room))
        .unwrap_or_else(|| panic!("`{room}` has no floor: add it here and to ARCHITECTURE.md"))
}

/// A module, or an item of one: `log_probs`, `token`, `TokenLogProbs`.
type Name = Vec<String>;

/// A source file, which is one module.
#[derive(Default)]
struct File {
    children: BTreeSet<String>,
    /// Re-exported names, and what they stand for.
    exports: BTreeMap<String, Name>,
    /// Every name that the file takes from another one.
    imports: BTreeSet<Name>,
}

/// The files of a crate by their modules.
type Files = BTreeMap<Name, File>;

/// Words, `::` and single characters; comments, literals and tests left out.
pub fn tokens(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code = code.split("#[cfg(all(test").next().unwrap();
    let mut tokens: Vec<String> = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.expect("a literal ends") + 2
        } else if first == '\'' && rest[1..].starts_with('\\') {
            rest[2..].find('\'').expect("a literal ends") + 3
        } else if first == '\'' && rest.chars().nth(2) == Some('\'') {
            rest.chars().take(3).map(char::len_utf8).sum()
        } else {
            let length = match rest {
                _ if word(first) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
                _ if rest.starts_with("::") => 2,
                _ => first.len_utf8(),
            };
            if !first.is_whitespace() {
                tokens.push(rest[..length].to_owned());
            }
            length
        };
        rest = &rest[length..];
    }
    tokens
}

/// The names of a tree of `use`, each with what it is called here: `a::{b, c as d}`.
fn leaves(tokens: &mut VecDeque<&str>, prefix: &[String], found: &mut Vec<(String, Name)>) {
    let mut name = prefix.to_vec();
    while let Some(token) = tokens.pop_front() {
        match token {
            "::" => {}
            "{" => {
                while tokens.front() != Some(&"}") {
                    leaves(tokens, &name, found);
                    if tokens.front() == Some(&",") {
                        tokens.pop_front();
                    }
                }
                tokens.pop_front();
                return;
            }
            "*" => return found.push(("*".to_owned(), name)),
            "as" => {
                let called = tokens.pop_front().expect("a name").to_owned();
                return found.push((called, name));
            }
            "self" if !name.is_empty() => {}
            _ => name.push(token.to_owned()),
        }
        if [Some(&","), Some(&"}"), Some(&";"), None].contains(&tokens.front()) {
            break;
        }
    }
    if let Some(called) = name.last() {
        found.push((called.clone(), name));
    }
}

/// `name` as a path from the root; nothing if it is of another crate. Inside `inline` modules that
/// the file contains, the first `super` of each is the file itself.
fn absolute(module: &[String], file: &File, name: &[String], inline: usize) -> Option<Name> {
    let mut base = module.to_vec();
    let rest = match name[0].as_str() {
        "crate" => {
            base.clear();
            &name[1..]
        }
        "self" => &name[1..],
        "super" => {
            let count = name.iter().take_while(|part| *part == "super").count();
            base.truncate(
                (module.len() + inline)
                    .checked_sub(count)?
                    .min(module.len()),
            );
            &name[count..]
        }
        child if inline == 0 && file.children.contains(child) => name,
        _ => return None,
    };
    base.extend_from_slice(rest);
    Some(base)
}

fn read(module: &[String], source: &str) -> File {
    let tokens = tokens(source);
    let at = |index: usize| tokens.get(index).map_or("", String::as_str);
    let mut file = File::default();
    for (index, token) in tokens.iter().enumerate() {
        if token == "mod" && at(index + 2) == ";" {
            file.children.insert(at(index + 1).to_owned());
        }
    }
    // The modules that other names begin with: `use crate::kernel;`.
    let mut called: BTreeMap<String, Name> = BTreeMap::new();
    let mut braces = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let inline = braces.iter().filter(|inline| **inline).count();
        match at(index) {
            "{" => braces.push(index >= 2 && at(index - 2) == "mod"),
            "}" => drop(braces.pop()),
            // `impl Trait + use<T>` imports nothing.
            "use" if at(index + 1) != "<" => {
                let public = index > 0 && ["pub", ")"].contains(&at(index - 1));
                let end = (index..tokens.len()).find(|end| at(*end) == ";").unwrap();
                let mut tree = tokens[index + 1..end].iter().map(String::as_str).collect();
                let mut names = Vec::new();
                leaves(&mut tree, &[], &mut names);
                for (here, name) in names {
                    let Some(name) = absolute(module, &file, &name, inline) else {
                        continue;
                    };
                    if public && name.starts_with(module) {
                        file.exports.insert(here, name);
                    } else {
                        file.imports.insert(name.clone());
                        called.insert(here, name);
                    }
                }
                index = end;
            }
            first if at(index + 1) == "::" && (index == 0 || at(index - 1) != "::") => {
                let mut name = vec![first.to_owned()];
                while at(index + 1) == "::"
                    && at(index + 2).starts_with(|c: char| c.is_alphabetic())
                {
                    name.push(at(index + 2).to_owned());
                    index += 2;
                }
                let name = match called.get(&name[0]) {
                    Some(module) => Some([&module[..], &name[1..]].concat()),
                    None => absolute(module, &file, &name, inline),
                };
                file.imports.extend(name);
            }
            _ => {}
        }
        index += 1;
    }
    file
}

/// The module whose file defines `name`.
fn definer(files: &Files, name: &[String]) -> Name {
    let inside = (0..=name.len()).take_while(|length| files.contains_key(&name[..*length]));
    let length = inside.last().expect("a root");
    let module = &name[..length];
    match name
        .get(length)
        .and_then(|item| files[module].exports.get(item))
    {
        Some(exported) => definer(files, &[exported, &name[length + 1..]].concat()),
        None => module.to_vec(),
    }
}

/// All source files below a folder.
pub fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    files
}

fn crate_files() -> Files {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = |path: &PathBuf| {
        let parts = path.strip_prefix(&src).unwrap().with_extension("");
        let parts = parts.iter().map(|part| part.to_str().unwrap().to_owned());
        let module: Name = parts
            .filter(|part| part != "mod" && part != "lib")
            .collect();
        let file = read(&module, &fs::read_to_string(path).unwrap());
        (module, file)
    };
    sources(&src).iter().map(read).collect()
}

/// The files that each file imports from.
fn graph(files: &Files) -> BTreeMap<&Name, BTreeSet<Name>> {
    let edges = |(module, file): (_, &File)| {
        let targets = file.imports.iter().map(|name| definer(files, name));
        (module, targets.filter(|target| target != module).collect())
    };
    files.iter().map(edges).collect()
}

/// The shortest circle through `start`.
fn circle(graph: &BTreeMap<&Name, BTreeSet<Name>>, start: &Name) -> Option<Vec<Name>> {
    let mut paths = VecDeque::from([vec![start.clone()]]);
    let mut seen = BTreeSet::new();
    while let Some(path) = paths.pop_front() {
        for next in &graph[path.last().unwrap()] {
            let longer = [&path[..], std::slice::from_ref(next)].concat();
            if next == start {
                return Some(longer);
            }
            if seen.insert(next) {
                paths.push_back(longer);
            }
        }
    }
    None
}

#[test]
fn no_circle_of_files() {
    let files = crate_files();
    let graph = graph(&files);
    let mut circles = BTreeSet::new();
    for start in graph.keys().filter(|module| !module.is_empty()) {
        if let Some(circle) = circle(&graph, start) {
            let circle: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
            circles.insert(circle.join(" → "));
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn imports_point_down() {
    let files = crate_files();
    let room = |module: &[String]| match module {
        [stairs, part, ..] if stairs == STAIRS => Some(format!("{STAIRS}::{part}")),
        [] => None,
        [stairs] if stairs == STAIRS => None,
        [room, ..] => Some(room.clone()),
    };
    let mut checked = 0;
    for (module, targets) in graph(&files) {
        let Some(here) = room(module) else { continue };
        for target in targets {
            let file = module.join("::");
            let Some(there) = room(&target) else {
                panic!("`{file}` may not import from `{}`", target.join("::"))
            };
            let inside = here == there && here != "loss";
            assert!(
                inside || floor(&there) < floor(&here),
                "`{file}` may not import `{}`",
                target.join("::")
            );
            checked += 1;
        }
    }
    assert!(checked > 200, "only {checked}: is the reader broken?");
}

/// The tables of ARCHITECTURE.md list the files of a room from the bottom up, in groups.
#[test]
fn files_are_listed_from_the_bottom_up() {
    let files = crate_files();
    let graph = graph(&files);
    let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let map = fs::read_to_string(map).unwrap();
    let (_, table) = map.split_once("| room | files |").expect("a table");
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let mut checked = 0;
    for row in rows {
        let (room, listed) = row[2..].split_once(" | ").expect("two cells");
        let module = |path: &str| -> Name {
            let path = path.trim_end_matches(".rs").trim_end_matches('/');
            path.split('/').map(str::to_owned).collect()
        };
        let room = module(code(room).next().expect("a room"));
        let groups: Vec<Vec<Name>> = listed
            .split(';')
            .map(|group| {
                code(group)
                    .map(|file| [&room[..], &module(file)].concat())
                    .collect()
            })
            .collect();
        let group = |file: &Name| groups.iter().position(|group| group.contains(file));
        for (file, targets) in &graph {
            for target in targets {
                let (Some(above), Some(below)) = (group(file), group(target)) else {
                    continue;
                };
                let (from, to) = (file.join("/"), target.join("/"));
                assert!(below < above, "`{from}` stands before `{to}`");
                checked += 1;
            }
        }
    }
    assert!(checked > 100, "only {checked}: is the reader broken?");
}

/// The code of a line: what stands between backticks.
fn code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// True for what is meant as a path of the repository: a file's name, a folder, or a path of both.
fn is_path(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let file = Path::new(word).extension().is_some_and(|extension| {
        ["md", "patch", "py", "rs", "sh", "toml"].contains(&extension.to_str().unwrap())
    });
    word.chars().all(plain) && (file || word.contains('/'))
}

#[test]
fn every_path_of_the_map_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    let mut checked = 0;
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        let always = [root.join("tests"), root.to_owned(), root.join("src")];
        let (mut of_heading, mut is_command) = (Vec::new(), false);
        for line in text.lines() {
            if let Some(language) = line.strip_prefix("```") {
                is_command = language == "console";
                continue;
            }
            // A path may begin in a folder that its heading or its line has named.
            let mut folders = [&always[..], &of_heading[..]].concat();
            let words: Vec<&str> = if is_command {
                line.split_whitespace()
                    .filter(|w| w.starts_with("scripts/"))
                    .collect()
            } else {
                code(line).filter(|word| is_path(word)).collect()
            };
            for word in words {
                let mut places = folders.iter().rev().map(|folder| folder.join(word));
                match places.find(|place| place.exists()) {
                    Some(place) if place.is_dir() => folders.push(place),
                    Some(place) => folders.push(place.parent().unwrap().to_owned()),
                    None => missing.push(format!("{document}: {word}")),
                }
                checked += 1;
            }
            if line.starts_with('#') {
                of_heading = folders.split_off(always.len());
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(checked > 150, "only {checked}: is the reader broken?");
}

#[test]
fn the_reader_sees_imports_of_all_kinds() {
    let name = |path: &str| path.split("::").map(str::to_owned).collect::<Name>();
    let files: Files = [
        (
            "a",
            "mod b; mod c; pub use b::{B, C as D}; use c::f; mod s { use super::{B, x::Y}; }",
        ),
        (
            "a::b",
            "use crate::a::c::{self, g}; fn h() -> super::super::e::E { c::k('{', \"}\") }",
        ),
        (
            "a::c",
            "// use super::B;\n#[cfg(test)]\nmod tests { use super::super::b::B; }",
        ),
        (
            "e",
            "use crate::a::{B, D}; use burn::x; pub(crate) use crate::a::b::C;",
        ),
        ("", "mod a; mod e; pub use a::B;"),
    ]
    .into_iter()
    .map(|(module, source)| {
        let module = if module.is_empty() {
            Vec::new()
        } else {
            name(module)
        };
        let file = read(&module, source);
        (module, file)
    })
    .collect();
    let graph = graph(&files);
    let targets = |module: &str| -> Vec<String> {
        let targets = graph[&name(module)].iter();
        targets.map(|target| target.join("::")).collect()
    };
    assert_eq!(targets("a"), ["a::b", "a::c"]);
    assert_eq!(targets("a::b"), ["a::c", "e"]);
    assert_eq!(targets("a::c"), [""; 0]);
    assert_eq!(targets("e"), ["a::b"]);
    assert_eq!(definer(&files, &name("B")), name("a::b"));
    let circle = circle(&graph, &name("e")).unwrap();
    assert_eq!(circle, [name("e"), name("a::b"), name("e")]);
}
