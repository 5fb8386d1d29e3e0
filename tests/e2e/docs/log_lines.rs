//! Compares LOG_LINES with the tracing macros in the sources: sentence, level and names of fields.
//!
//! The page writes a line as `sentence field=… field=…`, with `…` for every value.

use std::collections::{BTreeMap, BTreeSet};

use super::pages::{cells, code_spans, prose, read, sources};

const PAGE: &str = "docs/LOG_LINES.md";

/// The levels whose lines must all be on the page.
const COMPLETE: [&str; 3] = ["info", "warn", "error"];

/// A sentence with its level. The same one may be logged with different fields.
type Lines = BTreeMap<(String, String), BTreeSet<Vec<String>>>;

/// The arguments of a macro's call whose opening parenthesis has just been passed.
fn arguments(source: &str) -> Vec<String> {
    let (mut depth, mut in_string, mut is_escaped) = (0, false, false);
    let mut arguments = vec![String::new()];
    for c in source.chars() {
        let is_string_end = in_string && c == '"' && !is_escaped;
        is_escaped = in_string && c == '\\' && !is_escaped;
        match c {
            _ if is_string_end => in_string = false,
            _ if in_string => {}
            '"' => in_string = true,
            ')' if depth == 0 => {
                let arguments = arguments.iter().map(|argument| argument.trim().to_owned());
                return arguments.filter(|argument| !argument.is_empty()).collect();
            }
            ',' if depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        arguments.last_mut().expect("at least one").push(c);
    }
    panic!("a call without an end: {source:.100}");
}

/// `{warning}` and `{}` as the page writes them.
fn with_dots(literal: &str) -> String {
    let mut text = String::new();
    for (number, part) in literal.split('{').enumerate() {
        match part.split_once('}') {
            Some((_, rest)) if number > 0 => {
                text.push('…');
                text.push_str(rest);
            }
            _ => text.push_str(part),
        }
    }
    text
}

fn logged() -> Lines {
    let mut lines = Lines::new();
    for source in &sources() {
        for level in ["debug", "info", "warn", "error"] {
            for call in source.split(&format!("tracing::{level}!(")).skip(1) {
                let (mut fields, mut sentence) = (Vec::new(), None);
                for argument in arguments(call) {
                    if let Some(literal) = argument.strip_prefix('"') {
                        sentence = Some(with_dots(literal.trim_end_matches('"')));
                        // What follows are the literal's own values.
                        break;
                    }
                    let name = argument.split('=').next().unwrap_or_default();
                    fields.push(name.trim_matches(['%', '?', ' ']).to_owned());
                }
                let sentence = sentence.unwrap_or_else(|| panic!("no sentence: {call:.100}"));
                let variants = lines.entry((sentence, level.to_owned())).or_default();
                variants.insert(fields);
            }
        }
    }
    lines
}

/// The rows of the page's table of lines.
fn documented() -> Lines {
    let page = read(PAGE);
    let mut lines = Lines::new();
    for (number, line) in prose(&page) {
        let Some(cells) = cells(line).filter(|cells| cells.len() == 4 && cells[0].starts_with('`')) else {
            continue;
        };
        assert!(!cells[1].is_empty(), "{PAGE}:{number}: no level");
        let spans = code_spans(cells[0]);
        let mut words: Vec<&str> = spans[0].split(' ').collect();
        let is_field = |word: &&str| word.strip_suffix("=…").is_some_and(|name| !name.is_empty());
        let first_field = words
            .iter()
            .rposition(|word| !is_field(word))
            .map_or(0, |at| at + 1);
        let fields = words.split_off(first_field);
        let fields = fields.iter().map(|field| field.trim_end_matches("=…").to_owned());
        let at = (words.join(" "), cells[1].to_owned());
        let is_new = lines.entry(at).or_default().insert(fields.collect());
        assert!(is_new, "{PAGE}:{number}: this line is there twice");
    }
    lines
}

#[test]
fn docs_every_log_line_is_documented_with_its_level_and_its_fields() {
    let (logged, documented) = (logged(), documented());
    assert!(logged.len() > 50, "only {} lines were found", logged.len());
    let mut missing = Vec::new();
    for ((sentence, level), variants) in &logged {
        let at = (sentence.clone(), level.clone());
        match documented.get(&at) {
            Some(found) if !found.is_subset(variants) => {
                missing.push(format!("{level}: {sentence}: its fields are {variants:?}"));
            }
            None if COMPLETE.contains(&level.as_str()) => missing.push(format!("{level}: {sentence}")),
            _ => {}
        }
    }
    let unknown = documented.keys().filter(|at| !logged.contains_key(*at));
    missing.extend(unknown.map(|(sentence, level)| format!("{level}: {sentence}: it is never logged")));
    assert!(missing.is_empty(), "{PAGE}:\n{}", missing.join("\n"));
}

/// The line about a task that has failed names the tasks.
#[test]
fn docs_the_tasks_that_are_restarted_are_documented() {
    let page = read(PAGE);
    let row = page.lines().find(|line| line.contains("a task has failed"));
    let row = row.expect("the row of that line");
    let sources = sources();
    let spawned = sources
        .iter()
        .flat_map(|source| source.split("supervise::spawn(\"").skip(1));
    let names: BTreeSet<&str> = spawned
        .map(|rest| rest.split('"').next().unwrap_or_default())
        .collect();
    assert!(names.len() >= 3, "{names:?}");
    for name in names {
        assert!(
            row.contains(&format!("`{name}`")),
            "{PAGE}: {name} is not in {row}"
        );
    }
}

/// A line that says nothing by itself stands for texts from elsewhere: each is a section of the page.
#[test]
fn docs_the_texts_of_warnings_are_documented() {
    let page = read(PAGE);
    let told = |path: &str, function: &str| {
        let source = read(path);
        let (_, body) = source.split_once(function).expect("the function");
        let body = body.split("\n}\n").next().unwrap_or_default().to_owned();
        // The literals that are sentences, not names.
        let literals = body.split('"').skip(1).step_by(2).map(with_dots);
        let is_sentence = |text: &String| text.split(' ').count() > 2;
        let sentences: Vec<String> = literals.filter(is_sentence).collect();
        assert!(sentences.len() >= 3, "{path}: {sentences:?}");
        sentences
    };
    let mut sentences = told("src/config/surprises.rs", "fn surprises(");
    sentences.extend(told("src/presence/redis/answers.rs", "pub fn of(info: &str)"));
    for sentence in sentences {
        // The page shortens what follows a colon or a comma.
        let beginning = sentence.split([':', ',']).next().unwrap_or_default();
        assert!(page.contains(&format!("`{beginning}")), "{PAGE}: {beginning}");
    }
}

/// The causes that health names as constants are on OPERATIONS.
#[test]
fn docs_the_causes_of_outages_are_documented() {
    let page = read("docs/OPERATIONS.md");
    let kafka = read("src/bus/kafka/reasons.rs");
    let (_, kafka) = kafka
        .split_once("fn text(self) -> &'static str")
        .expect("the texts");
    let (kafka, _) = kafka.split_once("\n    }\n").expect("their end");
    let redis = read("src/presence/redis/cause.rs");
    let (redis, _) = redis
        .split_once("#[cfg(test)]")
        .expect("the code without its tests");
    let redis = redis.split("::plain(\"").chain(redis.split("::with(\"")).skip(1);
    let redis = redis.map(|rest| rest.split('"').next().unwrap_or_default());
    let redis = redis.filter(|text| !text.contains('\n'));
    let texts: BTreeSet<&str> = kafka.split('"').skip(1).step_by(2).chain(redis).collect();
    assert!(texts.len() >= 30, "{texts:?}");
    for text in texts {
        assert!(page.contains(&format!("`{text}`")), "docs/OPERATIONS.md: {text}");
    }
}
