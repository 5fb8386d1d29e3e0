//! Compares the files and functions that ARCHITECTURE names with the sources.

use super::FOLDERS;
use super::pages::{cells, code_spans, prose, read, root, sources};

const PAGE: &str = "docs/ARCHITECTURE.md";

#[test]
fn docs_the_files_named_in_the_architecture_exist() {
    let mut checked = 0;
    for span in code_spans(&read(PAGE)) {
        let is_ours = FOLDERS.iter().any(|folder| span.starts_with(folder));
        if is_ours || !span.ends_with(".rs") || span.contains([' ', '*']) {
            continue;
        }
        // The table of its files names those of `presence/redis/` without their folder.
        let folders = ["src", "src/presence/redis"];
        let exists = folders
            .iter()
            .any(|folder| root().join(folder).join(&span).exists());
        assert!(exists, "{PAGE}: there is no src/{span}");
        checked += 1;
    }
    assert!(checked > 40, "only {checked} files were found");
}

/// The rows "file, function" of the hops of a record.
#[test]
fn docs_the_functions_of_a_records_hops_exist() {
    let page = read(PAGE);
    let mut checked = 0;
    for (number, line) in prose(&page) {
        let Some(cells) = cells(line).filter(|cells| cells.len() == 4) else {
            continue;
        };
        let [file, function] = [cells[1], cells[2]].map(|cell| cell.trim_matches('`'));
        if !file.ends_with(".rs") {
            continue;
        }
        let source = read(format!("src/{file}"));
        let (of, name) = function.rsplit_once("::").unwrap_or(("", function));
        let has_type = source
            .lines()
            .any(|line| line.starts_with("impl") && line.contains(&format!(" {of}")));
        let has_function = source.contains(&format!("fn {name}("));
        assert!(
            has_function && (of.is_empty() || has_type),
            "{PAGE}:{number}: there is no {function} in src/{file}"
        );
        checked += 1;
    }
    assert!(checked >= 11, "only {checked} hops were found");
}

/// What is declared in blocks of this type: `struct`, `enum` and `impl`.
fn declarations<'a>(of: &str, sources: &'a [String]) -> Vec<&'a str> {
    let is_head = |line: &str| {
        let words = || line.split(|c: char| !c.is_alphanumeric() && c != '_');
        let is_block = words().any(|word| ["struct", "enum", "impl"].contains(&word));
        is_block && !line.starts_with([' ', '/']) && words().any(|word| word == of)
    };
    let items = sources.iter().flat_map(|source| source.split("\n}\n"));
    let bodies = items.filter_map(|item| {
        let mut lines = item.lines();
        lines.find(|line| is_head(line))?;
        Some(lines)
    });
    bodies.flatten().collect()
}

/// "`Type::name`": a function, a field or a variant.
#[test]
fn docs_the_names_in_the_architecture_exist() {
    let sources = sources();
    let mut checked = 0;
    for span in code_spans(&read(PAGE)) {
        let Some((of, name)) = span.split_once("::") else {
            continue;
        };
        if !of.starts_with(|c: char| c.is_ascii_uppercase()) {
            continue;
        }
        let is_declaration = |line: &&str| {
            let line = line.trim_start();
            let line = line.trim_start_matches("pub(super) ").trim_start_matches("pub ");
            let line = line.trim_start_matches("async ").trim_start_matches("fn ");
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['(', ':', ',', ' ', '<']))
        };
        let is_there = declarations(of, &sources).iter().any(is_declaration);
        assert!(is_there, "{PAGE}: there is no {span}");
        checked += 1;
    }
    assert!(checked > 25, "only {checked} names were found");
}
