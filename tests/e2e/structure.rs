//! The "never sees" column of the design, checked by reading the sources: `use` lines and paths written in full.

use std::fs;
use std::path::{Path, PathBuf};

/// A module and what its code must not name: crates, or modules of ours (`crate::…`).
const NEVER_SEES: [(&str, &[&str]); 9] = [
    (
        "protocol",
        &[
            "crate::session",
            "crate::bus",
            "crate::presence",
            "crate::ws",
            "crate::chat",
            "crate::http",
            "crate::config",
            "crate::metrics",
            "crate::shutdown",
            "crate::error",
            "hyper",
            "fastwebsockets",
            "rdkafka",
            "redis",
            "tokio",
        ],
    ),
    ("writer", &["rdkafka", "redis", "crate::session", "crate::ws"]),
    (
        "fanout",
        &[
            "hyper",
            "hyper_util",
            "rdkafka",
            "redis",
            "crate::bus",
            "crate::http",
            "crate::presence",
        ],
    ),
    (
        "session",
        &[
            "hyper",
            "hyper_util",
            "rdkafka",
            "redis",
            "crate::http",
            "crate::presence",
        ],
    ),
    (
        "bus",
        &[
            "hyper",
            "hyper_util",
            "fastwebsockets",
            "crate::http",
            "crate::ws",
            "crate::presence",
        ],
    ),
    (
        "presence",
        &[
            "hyper",
            "hyper_util",
            "fastwebsockets",
            "crate::http",
            "crate::chat",
        ],
    ),
    ("ws", &["rdkafka", "redis"]),
    (
        "chat",
        &[
            "hyper",
            "hyper_util",
            "fastwebsockets",
            "socket2",
            "tokio::net",
            "rdkafka",
            "redis",
        ],
    ),
    ("http", &["rdkafka", "redis"]),
];

/// "A file of more than some 500 lines is two rooms in one."
const MOST_LINES: usize = 600;

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

/// The code without comments, strings and white space, and with the groups of `use` written out by [`paths`].
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
fn structure_modules_never_see_what_the_design_forbids() {
    let sources = sources();
    let mut broken = Vec::new();
    for (name, forbidden) in NEVER_SEES {
        let files: Vec<_> = sources
            .iter()
            .filter(|source| module(&source.path) == name)
            .collect();
        assert!(!files.is_empty(), "no module {name} any more: mend the table");
        for source in files {
            let code = code(&source.text);
            let (path, mut seen) = (source.path.display(), used(&code));
            seen.iter_mut()
                .for_each(|used| *used = absolute(used, &source.path));
            for word in forbidden {
                if let Some(used) = seen.iter().find(|used| lies_in(used, word)) {
                    broken.push(format!("{path} uses {used}, and {name} never sees {word}"));
                }
                // Without a `use`: `hyper::Request` in the middle of a line.
                let in_full = format!("{word}::");
                let named = code.match_indices(&in_full).any(|(at, _)| {
                    let before = code[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                });
                if named {
                    broken.push(format!("{path} names {in_full}, and {name} never sees {word}"));
                }
            }
        }
    }
    broken.sort_unstable();
    broken.dedup();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn structure_nothing_on_the_message_path_sees_presence() {
    let on_the_path = ["bus", "fanout", "session", "writer"];
    for source in sources() {
        if on_the_path.contains(&&*module(&source.path)) {
            let code = code(&source.text);
            assert!(
                !code.contains("presence::"),
                "{} sees presence",
                source.path.display()
            );
        }
    }
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

/// `protocol::encode` says what becomes of a value that can't be encoded: nowhere is that an empty frame or record.
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
fn structure_the_reader_of_sources_sees_what_it_should() {
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
