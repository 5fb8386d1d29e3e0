//! HTTP responses: path, method and status are in the OpenAPI document, and headers and body are what it says.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{DOCUMENTS, frames, objections, referred, shown};
use crate::support::Response;

/// Headers of every response: of HTTP itself, of CORS, and what keeps credentials out of caches.
const GENERAL: [&str; 8] = [
    "connection",
    "content-length",
    "content-type",
    "date",
    "keep-alive",
    "vary",
    "cache-control",
    "allow",
];

/// What refuses a request before its path is looked at, and may have no body.
const BEFORE_ROUTES: [u16; 3] = [400, 414, 431];

/// A request as far as it is known.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub target: String,
}

impl Asked {
    /// The request of a head, if its first line is one.
    pub fn of_head(head: &str) -> Option<Self> {
        let mut parts = head.split("\r\n").next()?.split(' ');
        let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
        let is_request = !method.is_empty()
            && method.bytes().all(|byte| byte.is_ascii_uppercase())
            && target.starts_with('/')
            && version.starts_with("HTTP/1.")
            && parts.next().is_none();
        is_request.then(|| Self {
            method: method.to_owned(),
            target: target.to_owned(),
        })
    }

    /// Path and item in the document. One slash at the end is accepted unless it ends an empty id.
    fn path(&self) -> Option<(&'static str, &'static Map<String, Value>)> {
        let path = self.target.split('?').next().unwrap_or_default();
        let short = path.strip_suffix('/').unwrap_or(path);
        let paths = DOCUMENTS.openapi["paths"].as_object().expect("paths");
        let path = if paths.contains_key(short) { short } else { path };
        find(path).or_else(|| find(short))
    }
}

fn find(path: &str) -> Option<(&'static str, &'static Map<String, Value>)> {
    let paths = DOCUMENTS.openapi["paths"].as_object().expect("paths");
    let matches = |template: &str| {
        let (template, path) = (template.split('/'), path.split('/'));
        template.clone().count() == path.clone().count()
            && template
                .zip(path)
                .all(|(wanted, segment)| wanted.starts_with('{') || wanted == segment)
    };
    let found = paths.iter().find(|(template, _)| matches(template))?;
    Some((found.0, found.1.as_object().expect("a path item")))
}

fn component(name: &str) -> &'static Value {
    &DOCUMENTS.openapi["components"]["responses"][name]
}

/// A reference's target in the OpenAPI document, or the value itself.
fn resolved(value: &'static Value) -> &'static Value {
    match value["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
        Some(pointer) if !pointer.starts_with("/$defs/") => {
            let target = DOCUMENTS.openapi.pointer(pointer);
            target.unwrap_or_else(|| panic!("openapi.json has no {pointer}"))
        }
        _ => value,
    }
}

/// The response that the document has for this, and where.
#[track_caller]
fn documented(asked: &Asked, status: u16) -> (String, &'static Value) {
    let of = |name: &str| (format!("components/responses/{name}"), component(name));
    let Some((path, item)) = asked.path() else {
        return match status {
            204 if asked.method == "OPTIONS" => of("Preflight"),
            404 => of("NotFound"),
            400 => of("BadRequest"),
            414 => of("UriTooLong"),
            431 => of("HeadTooLarge"),
            _ => panic!(
                "{} {}: the path is not in docs/spec/openapi.json, and is answered with {status}",
                asked.method, asked.target
            ),
        };
    };
    let method = match asked.method.as_str() {
        "HEAD" => "get".to_owned(),
        other => other.to_ascii_lowercase(),
    };
    match (item.get(&method), status) {
        // On a port that does not have this path.
        (_, 404) => of("NotFound"),
        (_, 405) if !item.contains_key(&method) => of("MethodNotAllowed"),
        (None, 204) if asked.method == "OPTIONS" => of("Preflight"),
        (None, 400) => of("BadRequest"),
        (None, 414) => of("UriTooLong"),
        (None, _) => {
            panic!("docs/spec/openapi.json#/paths{path} has no {method}, which is answered with {status}")
        }
        (Some(operation), _) => {
            let response = operation["responses"].get(status.to_string());
            let at = format!("paths{path}/{method}/responses/{status}");
            let response = response.unwrap_or_else(|| {
                panic!(
                    "docs/spec/openapi.json has no {at}: {} {}",
                    asked.method, asked.target
                )
            });
            (at, resolved(response))
        }
    }
}

/// Checks a response; `asked` is unknown where a test has written bytes that are no whole request.
#[track_caller]
pub fn check(asked: Option<&Asked>, response: &Response) {
    let Some(asked) = asked else {
        return check_unasked(response);
    };
    let (at, documented) = documented(asked, response.status);
    if BEFORE_ROUTES.contains(&response.status) && response.body.is_empty() {
        // The HTTP library's own.
        return;
    }
    check_headers(&at, documented, response);
    if asked.method != "HEAD" {
        check_body(&at, documented, response);
    }
}

/// Whatever was asked: some response of the document has this status, and a refusal is one.
#[track_caller]
fn check_unasked(response: &Response) {
    let status = response.status;
    assert!(
        matches!(status, 100..=101 | 200..=204 | 304 | 400..=431 | 500..=504),
        "no response has the status {status}"
    );
    if status >= 400 && !response.body.is_empty() {
        check_body("any refusal", component("BadRequest"), response);
    }
}

#[track_caller]
fn check_headers(at: &str, documented: &'static Value, response: &Response) {
    let none = Map::new();
    let headers = documented["headers"].as_object().unwrap_or(&none);
    for (name, header) in headers {
        let header = match header["$ref"].as_str() {
            Some(_) => resolved(&documented["headers"][name]),
            None => header,
        };
        let lower = name.to_ascii_lowercase();
        let Some(text) = response.header(&lower) else {
            assert!(
                header["required"] != true,
                "docs/spec/openapi.json {at}: the response has no {name}: {response:?}"
            );
            continue;
        };
        let value = match header["schema"]["type"] == "integer" {
            true => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
            false => text.into(),
        };
        let objections = objections(&header["schema"], &value);
        assert!(
            objections.is_empty(),
            "docs/spec/openapi.json {at}: {name}: {text}: {}",
            objections.join("; ")
        );
    }
    for (name, value) in &response.headers {
        let is_known = GENERAL.contains(&name.as_str())
            || name.starts_with("access-control-")
            || headers.keys().any(|known| known.eq_ignore_ascii_case(name));
        assert!(
            is_known,
            "docs/spec/openapi.json {at} has no header {name}: {value}"
        );
    }
}

#[track_caller]
fn check_body(at: &str, documented: &'static Value, response: &Response) {
    let text = String::from_utf8_lossy(&response.body);
    let Some(content) = documented["content"].as_object() else {
        assert!(
            response.body.is_empty(),
            "docs/spec/openapi.json {at} has no body: {}",
            shown(&text)
        );
        return;
    };
    let kind = response.header("content-type").unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let Some(media) = content.get(kind) else {
        panic!(
            "docs/spec/openapi.json {at} has no body of the type {kind:?}: {}",
            shown(&text)
        );
    };
    if kind != "application/json" {
        return;
    }
    let body: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("docs/spec/openapi.json {at}: no JSON: {error}: {}", shown(&text)));
    let objections = objections(&media["schema"], &body);
    assert!(
        objections.is_empty(),
        "docs/spec/openapi.json {at}: {}: {}",
        objections.join("; "),
        shown(&text)
    );
    if referred(&media["schema"]) == Some("MessagesAnswer") {
        check_messages(&text);
    }
}

/// The payloads of a page of messages are frames.
#[track_caller]
fn check_messages(body: &str) {
    #[derive(Deserialize)]
    struct Page<'a> {
        #[serde(borrow)]
        data: Data<'a>,
    }
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        messages: Vec<&'a RawValue>,
    }
    let page: Page<'_> = serde_json::from_str(body).expect("a page of messages");
    for payload in page.data.messages {
        frames::received(payload.get());
    }
}
