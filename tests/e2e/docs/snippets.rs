//! The programs of `examples/tokens`, and what the security model shows of them.
//! `scripts/check-token-snippets.sh` runs them.

use std::fs;

use super::pages::{blocks, read, root};

/// In the program of each language, this begins what is not for the page, up to the next blank line.
const NOT_FOR_THE_PAGE: &str = "The command line: ";

const PROGRAMS: [(&str, &str); 4] = [
    ("go", "go/main.go"),
    ("js", "node/token.mjs"),
    ("python", "python/issue_token.py"),
    ("java", "java/Token.java"),
];

fn for_the_page(program: &str) -> String {
    let (mut kept, mut is_kept) = (String::new(), true);
    for line in program.lines() {
        if line.contains(NOT_FOR_THE_PAGE) {
            is_kept = false;
        }
        if is_kept {
            kept.push_str(line);
            kept.push('\n');
        } else if line.is_empty() {
            is_kept = true;
        }
    }
    format!("{}\n", kept.trim_end())
}

#[test]
fn docs_programs_that_issue_tokens_are_on_the_page_as_they_are() {
    let page = read("docs/SECURITY_MODEL.md");
    for (language, path) in PROGRAMS {
        let program = read(format!("examples/tokens/{path}"));
        assert!(program.contains(NOT_FOR_THE_PAGE), "{path}: no command line");
        let shown = blocks(&page, language);
        assert_eq!(shown, [for_the_page(&program)], "{path}");
    }
}

#[test]
fn docs_every_program_that_issues_tokens_is_checked() {
    let folders = fs::read_dir(root().join("examples/tokens")).expect("programs");
    let mut languages: Vec<String> = folders
        .map(|entry| {
            entry
                .expect("a folder")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    languages.sort();
    let mut on_the_page = PROGRAMS.map(|(_, path)| path.split('/').next().expect("a folder"));
    on_the_page.sort_unstable();
    assert_eq!(languages, on_the_page);
    let script = read("scripts/check-token-snippets.sh");
    for (_, path) in PROGRAMS {
        assert!(script.contains(&format!("$HERE/{path}")), "{path} is not run");
    }
    assert!(read(".ci/run").contains("step scripts/check-token-snippets.sh\n"));
}
