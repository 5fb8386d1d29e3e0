//! The modules table of docs/ARCHITECTURE.md, checked by reading the sources: which module may use which, by `use` lines
//! and paths written in full, that no files import each other, and that none is too long.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules by layers, the lowest first. A module uses those of lower layers, and in its own layer those that are
/// listed before it.
const FLOORS: [&[&str]; 10] = [
    &[
        "address",
        "clock",
        "error",
        "lifecycle",
        "secret",
        "supervise",
        "protocol",
        "auth",
        "config",
        "logging",
        "metrics",
    ],
    &["writer"],
    &["history"],
    &["session"],
    &["fanout"],
    &["bus"],
    &["presence"],
    &["chat"],
    &["ws", "http"],
    &["shutdown", "signals", "server"],
];

/// Of a module that sees no socket, log or store.
const NO_IO: &[&str] = &[
    "hyper",
    "hyper_util",
    "fastwebsockets",
    "socket2",
    "tokio::net",
    "rdkafka",
    "redis",
];

/// A module, and what its code must not use in addition to the layers above it.
const NEVER_USES: [(&str, &[&str]); 11] = [
    (
        "protocol",
        &["hyper", "fastwebsockets", "rdkafka", "redis", "tokio"],
    ),
    ("auth", NO_IO),
    (
        "writer",
        &["hyper", "hyper_util", "fastwebsockets", "rdkafka", "redis"],
    ),
    (
        "history",
        &["hyper", "hyper_util", "fastwebsockets", "rdkafka", "redis"],
    ),
    (
        "session",
        &["hyper", "hyper_util", "fastwebsockets", "rdkafka", "redis"],
    ),
    (
        "fanout",
        &["hyper", "hyper_util", "fastwebsockets", "rdkafka", "redis"],
    ),
    (
        "bus",
        &[
            "hyper",
            "hyper_util",
            "fastwebsockets",
            "socket2",
            "tokio::net",
            "redis",
            "crate::writer",
        ],
    ),
    ("presence", &["hyper", "hyper_util", "fastwebsockets", "rdkafka"]),
    ("ws", &["rdkafka", "redis"]),
    ("chat", NO_IO),
    ("http", &["rdkafka", "redis"]),
];

/// A longer file must be split.
const MOST_LINES: usize = 500;

struct Source {
    /// Relative to `src/`.
    path: PathBuf,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("read a folder of src/") {
            let path = entry.expect("an entry of src/").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("read a source");
                sources.push(Source {
                    path: path.strip_prefix(&root).expect("below src/").to_owned(),
                    text,
                });
            }
        }
    }
    sources
}

/// The module of the first level that a file belongs to: `ws/connection.rs` and `ws.rs` are both `ws`.
fn module(path: &Path) -> String {
    let first = path.components().next().expect("a path").as_os_str();
    Path::new(first).with_extension("").to_string_lossy().into_owned()
}

/// The code without its comments.
fn code(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Every path of the `use` items, groups written out: `use a::{b, c::{d}};` gives `a::b` and `a::c::d`.
fn used(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for item in code.split(';') {
        let Some(at) = item
            .rfind("use ")
            .filter(|&at| at == 0 || item[..at].ends_with(['\n', ' ', '}', ')']))
        else {
            continue;
        };
        let tree: String = item[at + 4..].split_whitespace().collect();
        expand("", tree.trim_start_matches("::"), &mut paths);
    }
    paths
}

fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((head, group)) = tree.split_once('{') else {
        paths.push(format!("{prefix}{tree}"));
        return;
    };
    let group = group.strip_suffix('}').unwrap_or(group);
    let (mut depth, mut start) = (0, 0);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&format!("{prefix}{head}"), &group[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    if start < group.len() {
        expand(&format!("{prefix}{head}"), &group[start..], paths);
    }
}

/// Whether `path` is `name` or lies in it.
fn lies_in(path: &str, name: &str) -> bool {
    path.strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// A path of a file, seen from the crate's root: `super::x` in `ws/connection.rs` is `crate::ws::x`.
fn absolute(path: &str, file: &Path) -> String {
    let mut place: Vec<_> = file
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if place
        .last()
        .is_some_and(|last| last == "mod" || last == "lib" || last == "main")
    {
        place.pop();
    }
    let mut rest = path;
    let mut relative = false;
    while let Some(after) = rest.strip_prefix("super::") {
        place.pop();
        (rest, relative) = (after, true);
    }
    if let Some(after) = rest.strip_prefix("self::") {
        (rest, relative) = (after, true);
    }
    if !relative {
        return path.to_owned();
    }
    place.insert(0, "crate".to_owned());
    place.push(rest.to_owned());
    place.join("::")
}

#[test]
fn structure_modules_do_not_use_what_the_architecture_forbids() {
    let sources = sources();
    let mut broken = Vec::new();
    for (name, forbidden) in NEVER_USES {
        let files: Vec<_> = sources
            .iter()
            .filter(|source| module(&source.path) == name)
            .collect();
        assert!(!files.is_empty(), "no module {name} any more: fix the table");
        for source in files {
            let code = code(&source.text);
            let (path, mut seen) = (source.path.display(), used(&code));
            seen.iter_mut()
                .for_each(|used| *used = absolute(used, &source.path));
            for word in forbidden {
                if let Some(used) = seen.iter().find(|used| lies_in(used, word)) {
                    broken.push(format!("{path} uses {used}, and {name} never uses {word}"));
                }
                // Without a `use`: `hyper::Request` in the middle of a line.
                let in_full = format!("{word}::");
                let named = code.match_indices(&in_full).any(|(at, _)| {
                    let before = code[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                });
                if named {
                    broken.push(format!("{path} names {in_full}, and {name} never uses {word}"));
                }
            }
        }
    }
    broken.sort_unstable();
    broken.dedup();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Every path of this crate that a source uses, from the crate's root.
fn named(source: &Source) -> Vec<String> {
    let code = code(&source.text);
    let mut paths = used(&code);
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                let path = code[at..].split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
                paths.extend(path.take(1).map(|path| path.trim_end_matches(':').to_owned()));
            }
        }
    }
    let ours = paths.iter().map(|path| absolute(path, &source.path));
    ours.filter(|path| lies_in(path, "crate")).collect()
}

/// The imports that go upwards.
fn upward(sources: &[Source]) -> Vec<String> {
    let modules: Vec<_> = FLOORS.concat();
    let floor = |module: &str| modules.iter().position(|name| *name == module);
    let mut broken = Vec::new();
    for source in sources {
        let (path, from) = (source.path.display(), module(&source.path));
        if from == "lib" || from == "main" {
            continue;
        }
        let Some(own) = floor(&from) else {
            broken.push(format!("{path} is in no module of the table"));
            continue;
        };
        for used in named(source) {
            let to = used.split("::").nth(1).unwrap_or_default();
            if floor(to).is_some_and(|floor| floor > own) {
                broken.push(format!("{path} uses {used}, and {to} is above {from}"));
            }
        }
    }
    broken.sort_unstable();
    broken.dedup();
    broken
}

/// The place of a file in the tree of modules: `ws/mod.rs` is `crate::ws`.
fn place(file: &Path) -> String {
    absolute("self::", file).trim_end_matches("::").to_owned()
}

/// The file that a path belongs to, following the re-exports of a `mod.rs`.
fn file_of<'a>(path: &str, sources: &'a [Source]) -> Option<&'a Source> {
    let mut best: Option<(&Source, usize)> = None;
    for source in sources {
        let place = place(&source.path);
        if lies_in(path, &place) && best.is_none_or(|(_, length)| length < place.len()) {
            best = Some((source, place.len()));
        }
    }
    let (source, length) = best?;
    let name = path[length..].trim_start_matches("::").split("::").next()?;
    let place = place(&source.path);
    let re_exported = used(&code(&source.text))
        .into_iter()
        .filter(|used| !name.is_empty() && used.ends_with(&format!("::{name}")))
        .map(|used| absolute(&used, &source.path))
        .map(|used| {
            if lies_in(&used, "crate") {
                used
            } else {
                format!("{place}::{used}")
            }
        })
        .find(|used| lies_in(used, &place) && used != path);
    match re_exported {
        Some(path) => file_of(&path, sources),
        None => Some(source),
    }
}

/// Groups of files that import each other. A file and the one of the module that it lies in count as one: what a
/// `mod.rs` declares, its files may use.
fn cycles(sources: &[Source]) -> Vec<Vec<String>> {
    let places: Vec<_> = sources.iter().map(|source| place(&source.path)).collect();
    let edges: Vec<Vec<usize>> = sources
        .iter()
        .enumerate()
        .map(|(from, source)| {
            let code = code(&source.text);
            let tests = code.find("#[cfg(test)]\nmod tests").unwrap_or(code.len());
            let source = Source {
                path: source.path.clone(),
                text: code[..tests].to_owned(),
            };
            let files = named(&source)
                .into_iter()
                .filter_map(|path| file_of(&path, sources));
            let files = files.filter_map(|file| sources.iter().position(|source| source.path == file.path));
            files
                .filter(|&to| !lies_in(&places[to], &places[from]) && !lies_in(&places[from], &places[to]))
                .collect()
        })
        .collect();
    let reached = |start: usize| {
        let (mut seen, mut next) = (vec![false; sources.len()], vec![start]);
        while let Some(at) = next.pop() {
            for &to in &edges[at] {
                if !std::mem::replace(&mut seen[to], true) {
                    next.push(to);
                }
            }
        }
        seen
    };
    let reach: Vec<_> = (0..sources.len()).map(reached).collect();
    let mut groups: Vec<Vec<String>> = (0..sources.len())
        .filter(|&at| reach[at][at])
        .map(|at| {
            let group = (0..sources.len()).filter(|&other| reach[at][other] && reach[other][at]);
            let mut group: Vec<_> = group.map(|at| sources[at].path.display().to_string()).collect();
            group.sort_unstable();
            group
        })
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The sources but for those of unit tests.
fn shipped() -> Vec<Source> {
    let mut sources = sources();
    sources.retain(|source| {
        let name = source
            .path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        !name.ends_with("_tests.rs") && name != "main.rs"
    });
    sources
}

#[test]
fn structure_imports_go_down_only() {
    let broken = upward(&sources());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn structure_files_do_not_import_each_other() {
    let cycles = cycles(&shipped());
    assert!(cycles.is_empty(), "files that import each other: {cycles:#?}");
}

#[test]
fn structure_upward_imports_and_cycles_are_detected() {
    let mut sources = shipped();
    let mut inject = |path: &str, text: &str| {
        let source = sources.iter_mut().find(|source| source.path == Path::new(path));
        let source = source.unwrap_or_else(|| panic!("no {path} any more"));
        source.text.insert_str(0, text);
    };
    inject(
        "session/registry.rs",
        "use crate::{clock, fanout::batch::Batch};\n",
    );
    inject("writer/memory.rs", "fn up() { super::super::ws::rate::up() }\n");
    inject("writer/liveness.rs", "use super::ConnectionWriter;\n");
    let broken = upward(&sources);
    assert_eq!(
        broken,
        [
            "session/registry.rs uses crate::fanout::batch::Batch, and fanout is above session",
            "writer/memory.rs uses crate::ws::rate::up, and ws is above writer"
        ]
    );
    let through_the_facade = ["writer/connection_writer.rs", "writer/liveness.rs"].map(str::to_owned);
    let cycles = cycles(&sources);
    let is_in_one = |file| cycles.iter().any(|cycle| cycle.contains(file));
    assert!(through_the_facade.iter().all(is_in_one), "{cycles:#?}");
}

#[test]
fn structure_no_source_is_too_long() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|source| source.text.lines().count() > MOST_LINES)
        .map(|source| format!("{}: {} lines", source.path.display(), source.text.lines().count()))
        .collect();
    assert!(long.is_empty(), "more than {MOST_LINES} lines: {long:?}");
}

/// `protocol::encode` handles values that can't be encoded, so that none becomes an empty frame or record.
#[test]
fn structure_values_are_encoded_in_one_place() {
    let mut encoders = Vec::new();
    for source in sources() {
        let code = code(&source.text);
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        if code.contains("serde_json::to_") {
            encoders.push(source.path.display().to_string());
        }
    }
    assert_eq!(encoders, ["protocol/mod.rs"]);
}

#[test]
fn structure_imports_are_parsed_correctly() {
    let code = code(
        "use std::fmt;\n// use redis::Client;\npub(crate) use crate::{a, ws::{self, b as c}};\nfn f() { use hyper::body; }",
    );
    assert_eq!(
        used(&code),
        [
            "std::fmt",
            "crate::a",
            "crate::ws::self",
            "crate::ws::basc",
            "hyper::body"
        ]
    );
    assert!(lies_in("hyper::body", "hyper") && !lies_in("hyper_util::rt", "hyper"));
    assert_eq!(
        absolute("super::x::Y", Path::new("ws/connection.rs")),
        "crate::ws::x::Y"
    );
    assert_eq!(
        absolute("super::bus::Bus", Path::new("session/mod.rs")),
        "crate::bus::Bus"
    );
    assert_eq!(absolute("tokio::net", Path::new("ws/mod.rs")), "tokio::net");
    assert_eq!(module(Path::new("ws.rs")), "ws");
}
