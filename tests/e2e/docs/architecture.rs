//! Compares the files and functions that ARCHITECTURE names with the sources.

use super::FOLDERS;
use super::pages::{cells, code_spans, prose, read, root};

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
    assert!(checked >= 9, "only {checked} hops were found");
}
