//! Reads the Markdown pages: prose, code blocks, code spans, tables. And the sources, with which they are compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn markdown_in(folder: &str) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join(folder)).expect("a folder of pages") {
        let name = entry
            .expect("an entry")
            .file_name()
            .to_string_lossy()
            .into_owned();
        if name.ends_with(".md") {
            names.push(format!("{folder}{name}"));
        }
    }
    names.sort();
    assert!(!names.is_empty(), "no pages in {folder:?}");
    names
}

/// Every page, by its path.
pub fn pages() -> BTreeMap<String, String> {
    let paths = ["./", "docs/", "docs/decisions/"]
        .into_iter()
        .flat_map(markdown_in);
    let paths = paths.map(|path| path.trim_start_matches("./").to_owned());
    paths.map(|path| (path.clone(), read(&path))).collect()
}

/// The sources of the server, without their tests.
pub fn sources() -> Vec<String> {
    let mut folders = vec![root().join("src")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            let name = path.to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("_tests.rs") {
                let source = read(&path);
                let code = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
                sources.push(code.to_owned());
            }
        }
    }
    sources
}

/// A page's lines outside of code blocks, with their numbers.
pub fn prose(page: &str) -> Vec<(usize, &str)> {
    let mut in_block = false;
    let mut lines = Vec::new();
    for (number, line) in page.lines().enumerate() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            lines.push((number + 1, line));
        }
    }
    assert!(!in_block, "a code block is not closed");
    lines
}

/// The texts of a page's code blocks of this language.
pub fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut open: Option<bool> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), open) {
            (Some(_), Some(_)) => open = None,
            (Some(name), None) => {
                open = Some(name == language);
                if name == language {
                    blocks.push(String::new());
                }
            }
            (None, Some(true)) => {
                let block = blocks.last_mut().expect("an open block");
                block.push_str(line);
                block.push('\n');
            }
            (None, _) => {}
        }
    }
    blocks
}

/// What stands between single backticks, also across a line break.
pub fn code_spans(page: &str) -> Vec<String> {
    let text: Vec<&str> = prose(page).into_iter().map(|(_, line)| line).collect();
    let text = text.join("\n");
    // Paragraphs and table rows: a span never goes beyond one.
    let parts = text.split("\n\n").flat_map(|part| part.split("\n|"));
    parts
        .flat_map(|part| part.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// The cells of a table's row.
pub fn cells(line: &str) -> Option<Vec<&str>> {
    let row = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(row.split('|').map(str::trim).collect())
}

/// The cells of the row that begins with `first`.
pub fn row<'a>(page: &'a str, first: &str) -> Vec<&'a str> {
    let mut rows = prose(page)
        .into_iter()
        .filter_map(|(_, line)| cells(line))
        .filter(|cells| cells[0] == first);
    let row = rows
        .next()
        .unwrap_or_else(|| panic!("no row begins with {first}"));
    assert!(rows.next().is_none(), "two rows begin with {first}");
    row
}
