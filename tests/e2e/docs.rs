//! Compares the documentation with the code: variables, codes, routes, metrics, links, and frames of a running server.
//!
//! Expected values come from the library's own tables or its sources, never from a list kept here.

mod architecture;
mod log_lines;
mod pages;
mod snippets;

use std::collections::BTreeSet;
use std::path::Path;

use livechat_ws::config::{VARIABLES, Variable};
use livechat_ws::protocol::code::{CloseCode, ErrorCode};
use livechat_ws::protocol::record::Poison;
use serde_json::{Value, json};

use crate::support::{Client, Http, Server, tokens};
pub use pages::pages;
use pages::{blocks, cells, code_spans, prose, read, root, row};

/// The widest line of prose, in characters.
const WIDTH: usize = 120;

/// What begins a path of ours in a code span.
const FOLDERS: [&str; 7] = [
    "src/",
    "tests/",
    "benches/",
    "scripts/",
    "examples/",
    "docs/",
    ".ci/",
];

#[test]
fn docs_the_readme_names_every_variable_with_its_default() {
    let readme = read("README.md");
    for variable in VARIABLES {
        let row = row(&readme, &format!("`{}`", variable.name));
        let default = row[1];
        if variable.default.is_empty() {
            assert!(
                !default.is_empty() && !default.contains('`'),
                "{} has no default to be written: {default:?}",
                variable.name
            );
        } else {
            assert_eq!(default, format!("`{}`", variable.default), "{}", variable.name);
        }
    }
}

#[test]
fn docs_no_page_names_a_variable_that_does_not_exist_or_another_default() {
    // Of the scripts, of the tests, and of other programs.
    let foreign = [
        "LIVECHAT_TEST_SERVICES",
        "FAULT_ROUNDS",
        "FRESH_CACHE",
        "SSL_CERT_FILE",
        "MIMALLOC_PURGE_DELAY",
        "TEST_KAFKA_BROKERS",
    ];
    for (path, page) in pages() {
        for (number, line) in prose(&page) {
            let Some(cells) = cells(line) else { continue };
            let Some(variable) = Variable::named(cells[0].trim_matches('`')) else {
                continue;
            };
            if !variable.default.is_empty() {
                let default = format!("`{}`", variable.default);
                assert_eq!(cells[1], default, "{path}:{number}: {}", variable.name);
            }
        }
        for span in code_spans(&page) {
            let name = span.split('=').next().unwrap_or_default();
            let is_name = name.contains('_')
                && name
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b == b'_' || b.is_ascii_digit());
            if is_name && !foreign.contains(&name) {
                assert!(Variable::named(name).is_some(), "{path}: there is no {name}");
            }
        }
    }
}

/// "`MAX_MESSAGE_BYTES` 65536": a variable and its default in the running text of PROTOCOL's limits.
#[test]
fn docs_the_limits_of_the_protocol_are_the_defaults() {
    let page = read("docs/PROTOCOL.md");
    let mut checked = 0;
    for (number, line) in prose(&page) {
        for variable in VARIABLES {
            let Some((_, rest)) = line.split_once(&format!("`{}` ", variable.name)) else {
                continue;
            };
            let word: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
            if line.starts_with('|') && word.starts_with(|c: char| c.is_ascii_digit()) {
                assert_eq!(
                    word, variable.default,
                    "docs/PROTOCOL.md:{number}: {}",
                    variable.name
                );
                checked += 1;
            }
        }
    }
    assert!(checked >= 10, "only {checked} limits were found");
}

#[test]
fn docs_every_close_code_is_documented() {
    let (protocol, readme) = (read("docs/PROTOCOL.md"), read("README.md"));
    for code in CloseCode::ALL {
        let number = code.code().to_string();
        let cells = row(&protocol, &number);
        assert_eq!(cells[1], format!("`{}`", code.name()), "{number}");
        assert!(cells.len() == 4 && !cells[3].is_empty(), "{number}: no advice");
        assert!(!row(&readme, &number)[2].is_empty(), "{number}: no advice");
    }
    // And none that is never sent.
    for (_, line) in prose(&protocol) {
        if let Some(cells) = cells(line)
            && let Ok(number) = cells[0].parse::<u16>()
            && cells
                .get(1)
                .is_some_and(|name| !name.contains(|c: char| c == ' ' || c.is_uppercase()))
        {
            assert!(
                CloseCode::ALL.iter().any(|code| code.code() == number),
                "{number} is not sent"
            );
        }
    }
}

#[test]
fn docs_every_error_code_is_documented() {
    let page = read("docs/PROTOCOL.md");
    for code in ErrorCode::ALL {
        let retryable = if code.is_retryable() { "yes" } else { "no" };
        assert_eq!(
            row(&page, &format!("`{}`", code.as_str()))[1],
            retryable,
            "{}",
            code.as_str()
        );
    }
}

#[test]
fn docs_every_poison_reason_is_documented() {
    let page = read("docs/PROTOCOL.md");
    for poison in Poison::ALL {
        assert!(!row(&page, &format!("`{}`", poison.name()))[1].is_empty());
    }
}

/// The routes as the router's own match has them: `["api", "session", session_id, "connection-status"]`.
pub fn routes() -> Vec<String> {
    let router = read("src/http/router.rs");
    let arms = router.lines().map(str::trim);
    let arms = arms.filter(|line| line.starts_with("(_, [") || line.starts_with("(ListenerKind::"));
    let segments = arms.filter_map(|line| line.split_once('[')?.1.split_once(']'));
    segments
        .map(|(segments, _)| {
            let segments = segments.split(", ").map(|segment| {
                match segment.strip_prefix('"').and_then(|s| s.strip_suffix('"')) {
                    Some(literal) => format!("/{literal}"),
                    None => format!("/{{{segment}}}"),
                }
            });
            segments.collect()
        })
        .collect()
}

#[test]
fn docs_every_route_is_documented() {
    let routes = routes();
    assert!(
        routes.len() >= 6 && routes.contains(&"/ws/{session_id}/{user_id}/{user_type}".to_owned()),
        "{routes:?}"
    );
    let page = read("docs/PROTOCOL.md");
    let addresses = page
        .split("\n## ")
        .find(|section| section.starts_with("Addresses\n"));
    let addresses = addresses.expect("a section Addresses");
    for route in routes {
        let is_there = |method| addresses.contains(&format!("{method} {route}`"));
        assert!(["GET", "DELETE"].into_iter().any(is_there), "{route}");
    }
}

/// What GitHub makes of a heading for links to it.
fn slug(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn docs_every_relative_link_resolves() {
    let pages = pages();
    let anchors = |page: &str| -> BTreeSet<String> {
        let headings = prose(page).into_iter().filter(|(_, line)| line.starts_with('#'));
        headings.map(|(_, line)| slug(line)).collect()
    };
    let mut checked = 0;
    for (path, page) in &pages {
        let text: Vec<&str> = prose(page).into_iter().map(|(_, line)| line).collect();
        for link in text.join("\n").split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            if link.contains("://") {
                continue;
            }
            checked += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => {
                    let folder = Path::new(path).parent().expect("a folder");
                    let whole = root().join(folder).join(file);
                    let whole = whole
                        .canonicalize()
                        .unwrap_or_else(|error| panic!("{path}: {link}: {error}"));
                    let root = root().canonicalize().expect("the repository");
                    let inside = whole.strip_prefix(root).expect("a path inside the repository");
                    inside.to_string_lossy().into_owned()
                }
            };
            if !anchor.is_empty() {
                let page = pages
                    .get(&target)
                    .unwrap_or_else(|| panic!("{path}: {link} is no page"));
                assert!(
                    anchors(page).contains(anchor),
                    "{path}: nothing in {target} is called #{anchor}"
                );
            }
        }
    }
    assert!(checked > 30, "only {checked} links were found");
}

#[test]
fn docs_every_path_in_a_code_span_exists() {
    for (path, page) in pages() {
        for span in code_spans(&page) {
            let name = span.trim_start_matches("./");
            let name = name.split([' ', '\n', ':']).next().unwrap_or_default();
            if FOLDERS.iter().any(|folder| name.starts_with(folder)) {
                assert!(root().join(name).exists(), "{path}: there is no {name}");
            }
        }
        for script in page.split("./scripts/").skip(1) {
            let name: String = script
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "-.".contains(*c))
                .collect();
            let name = name.trim_end_matches('.');
            assert!(
                root().join("scripts").join(name).exists(),
                "{path}: there is no scripts/{name}"
            );
        }
    }
}

#[test]
fn docs_the_index_names_every_page() {
    let indexes = ["docs/DOCUMENTATION.md", "docs/decisions/README.md"];
    let [index, decisions] = indexes.map(read);
    for path in pages().keys().filter(|path| *path != indexes[0]) {
        let decision = path
            .strip_prefix("docs/decisions/")
            .filter(|_| path != indexes[1]);
        let (index, link) = match (decision, path.strip_prefix("docs/")) {
            (Some(name), _) => (&decisions, format!("]({name})")),
            (None, Some(name)) => (&index, format!("]({name})")),
            (None, None) => (&index, format!("](../{path})")),
        };
        assert!(index.contains(&link), "{path} is not in the index");
    }
}

#[test]
fn docs_prose_is_not_too_wide() {
    for (path, page) in pages() {
        for (number, line) in prose(&page) {
            // Rows of tables can't be wrapped.
            let width = line.chars().count();
            assert!(
                line.starts_with('|') || width <= WIDTH,
                "{path}:{number}: {width} wide"
            );
        }
    }
}

/// The values of a JSON block: it may hold several, each over several lines.
pub fn examples(path: &str) -> Vec<Value> {
    let mut examples = Vec::new();
    for block in blocks(&read(path), "json") {
        let values = serde_json::Deserializer::from_str(&block).into_iter::<Value>();
        let values: Vec<Value> = values
            .map(|value| value.unwrap_or_else(|error| panic!("{path}: {error} in:\n{block}")))
            .collect();
        assert!(!values.is_empty(), "{path}: an empty block");
        examples.extend(values);
    }
    examples
}

#[test]
fn docs_json_examples_parse() {
    assert!(examples("docs/PROTOCOL.md").len() > 20);
    for path in pages().keys() {
        examples(path);
    }
}

/// The names in a frame and in its `data`; deeper ones depend on what is said and who is there.
fn shape(frame: &Value) -> [BTreeSet<&str>; 2] {
    [frame, &frame["data"]].map(|value| {
        let names = value.as_object().into_iter().flatten();
        names.map(|(name, _)| name.as_str()).collect()
    })
}

fn assert_documented(documented: &[Value], frame: &Value) {
    let same = |other: &&Value| other["type"] == frame["type"] && shape(other) == shape(frame);
    assert!(
        documented.iter().any(|other| same(&other)),
        "docs/PROTOCOL.md has no such example: {frame}"
    );
}

/// Sends PROTOCOL's own client frames, and looks for every answer among its examples.
#[tokio::test]
async fn docs_frames_are_those_of_a_running_server() {
    let server = Server::builder().env("RATE_LIMIT_MESSAGES", 0).start();
    let documented = examples("docs/PROTOCOL.md");
    let mut alice = Client::connect(&server, "demo", "alice", "customer").await;
    let mut bob = Client::connect(&server, "demo", "bob", "agent").await;
    let requests: Vec<&Value> = documented
        .iter()
        .filter(|frame| {
            let is_request = frame["type"].is_string() && frame.get("success").is_none();
            // Tokens have a test of their own.
            is_request && frame.get("session_id").is_none() && frame["type"] != "auth"
        })
        .collect();
    assert!(requests.len() >= 7, "{requests:?}");
    for request in &requests {
        alice.send((*request).clone()).await;
    }
    // The error that the page shows for it.
    alice.send(json!({"type": "dance", "request_id": "r4"})).await;
    alice.fence().await;
    bob.next("typing_indicator").await;
    alice.fence_session(&mut bob).await;
    // A second tab's snapshot.
    let mut tab = Client::connect(&server, "demo", "alice", "customer").await;
    tab.next("connection_status_update").await;
    let mut seen = BTreeSet::new();
    for frame in alice.log.iter().chain(&bob.log).chain(&tab.log) {
        // A fence is this test's own ping.
        let is_fence = frame["request_id"]
            .as_str()
            .is_some_and(|id| id.starts_with("fence"));
        let kind = frame["type"].as_str().expect("a type").to_owned();
        if !is_fence {
            assert!(frame["success"] == (kind != "error"), "{frame}");
            assert_documented(&documented, frame);
        }
        seen.insert(kind);
    }
    // Those of clients that come back.
    let id = alice
        .log
        .iter()
        .find_map(|frame| frame["data"]["message_id"].as_str());
    let id = id.expect("a message");
    for query in [format!("since={id}"), "since=".to_owned(), "rewind=20".to_owned()] {
        let mut back = crate::resume::open(&server, "demo", "alice", &query).await;
        let resumed = back.next("resumed").await;
        let greeting = json!({"type": "connection_established", "success": true, "data": back.greeting});
        assert_documented(&documented, &greeting);
        assert_documented(&documented, &resumed);
    }
    let expected = [
        "connection_established",
        "connection_status_update",
        "error",
        "message_sent",
        "new_message",
        "pong",
        "read_receipt",
        "read_state",
        "session_joined",
        "typing_indicator",
    ];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    // Only what was meant to be wrong was refused.
    let errors: Vec<_> = alice
        .log
        .iter()
        .filter(|frame| frame["type"] == "error")
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[tokio::test]
async fn docs_frames_of_tokens_are_those_of_a_running_server() {
    let server = Server::builder().env("JWT_SECRET", tokens::SECRET).start();
    let documented = examples("docs/PROTOCOL.md");
    let request = documented.iter().find(|frame| frame["type"] == "auth");
    let mut request = request.expect("an example of auth").clone();
    let mut claims = tokens::claims("alice", "customer", json!(["demo"]));
    claims["exp"] = (tokens::now() + 20).into();
    let token = tokens::hs().token(&claims);
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str())];
    let path = "/ws/demo/alice/customer";
    let mut alice = Client::open(server.http_addr(), path, &headers)
        .await
        .expect("let in");
    alice.greet().await;
    assert_documented(&documented, &alice.next("token_expiring").await);
    request["data"]["token"] = token.into();
    alice.send(request).await;
    assert_documented(&documented, &alice.next("authenticated").await);
}

#[test]
fn docs_health_and_metrics_are_those_of_a_running_server() {
    let page = read("docs/OPERATIONS.md");
    let documented = &examples("docs/OPERATIONS.md")[0];
    assert_eq!(shape(documented), shape(&Server::start().health()));
    // With both dependencies, wherever they are, for the metrics that only then are there.
    let server = Server::builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("KAFKA_BROKERS", "127.0.0.1:1")
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .start_listening();
    let metrics = Http::get(server.admin_addr(), "/metrics").text();
    let mut count = 0;
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, _) = line.split_once(' ').expect("a name and a type");
        let sample = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        let labels = sample.map_or_else(String::new, |sample| {
            let names: Vec<_> = sample
                .split("\",")
                .map(|part| part.split('=').next().unwrap())
                .collect();
            format!("{{{}}}", names.join(","))
        });
        row(&page, &format!("`{name}{labels}`"));
        count += 1;
    }
    let listed = prose(&page)
        .iter()
        .filter(|(_, line)| line.starts_with("| `livechat_") || line.starts_with("| `process_"))
        .count();
    assert_eq!(listed, count, "a metric is listed that does not exist");
}
