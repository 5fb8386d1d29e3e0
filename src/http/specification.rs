//! `GET /openapi.json` and `GET /asyncapi.json`: the documents of docs/spec, each with the schemas that it refers to, so
//! that it needs no other file.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderValue};
use serde_json::{Map, Value};
use sha1::{Digest, Sha1};

use super::headers::items;
use super::response::{Answer, empty, error, with_body};

const SCHEMAS: &str = include_str!("../../docs/spec/schemas.json");
/// How the documents refer to [`SCHEMAS`], how these refer to each other, and how both do in what is served.
const IN_FILE: &str = "schemas.json#/$defs/";
const AMONG_SCHEMAS: &str = "#/$defs/";
const SERVED: &str = "#/components/schemas/";

pub static OPENAPI: LazyLock<Option<Document>> =
    LazyLock::new(|| Document::new(include_str!("../../docs/spec/openapi.json")));
pub static ASYNCAPI: LazyLock<Option<Document>> =
    LazyLock::new(|| Document::new(include_str!("../../docs/spec/asyncapi.json")));

/// What is served.
pub struct Document {
    text: Bytes,
    etag: HeaderValue,
}

impl Document {
    fn new(source: &str) -> Option<Self> {
        let text = bundle(source)?.to_string();
        let hash = Sha1::digest(&text);
        let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Some(Self {
            etag: HeaderValue::from_str(&format!("\"{hash}\"")).ok()?,
            text: text.into(),
        })
    }
}

/// The document with the schemas that it needs; `None` if it, or one of them, is not there.
fn bundle(source: &str) -> Option<Value> {
    let mut document: Value = serde_json::from_str(&source.replace(IN_FILE, SERVED)).ok()?;
    let mut all: Value = serde_json::from_str(&SCHEMAS.replace(AMONG_SCHEMAS, SERVED)).ok()?;
    let all = all.get_mut("$defs")?.as_object_mut()?;
    let mut wanted = BTreeSet::new();
    references(&document, &mut wanted);
    let mut schemas = Map::new();
    while let Some(name) = wanted.pop_first() {
        if !schemas.contains_key(&name) {
            let schema = all.remove(&name)?;
            references(&schema, &mut wanted);
            schemas.insert(name, schema);
        }
    }
    let components = document.get_mut("components")?.as_object_mut()?;
    components.insert("schemas".to_owned(), schemas.into());
    Some(document)
}

/// Collects the names of the schemas that a value refers to.
fn references(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            let target = fields.get("$ref").and_then(Value::as_str);
            names.extend(
                target
                    .and_then(|target| target.strip_prefix(SERVED))
                    .map(str::to_owned),
            );
            fields.values().for_each(|value| references(value, names));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, names)),
        _ => {}
    }
}

/// Serves a document, unless the client has it.
pub fn specification(document: &Option<Document>, request: &HeaderMap) -> Answer {
    let Some(document) = document else {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return error(status, "Internal error", "the document could not be made");
    };
    let mut answer = match has(request, &document.etag) {
        true => empty(StatusCode::NOT_MODIFIED),
        false => with_body(StatusCode::OK, "application/json", document.text.clone()),
    };
    let headers = answer.headers_mut();
    headers.insert(header::ETAG, document.etag.clone());
    // It changes with the server's version: a copy is asked for again.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

/// Whether `If-None-Match` names it (RFC 9110, section 13.1.2).
fn has(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let mut named = items(request, &header::IF_NONE_MATCH);
    named.any(|item| item == b"*" || item.strip_prefix(b"W/").unwrap_or(item) == etag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> [(&'static str, &'static Option<Document>); 2] {
        [("openapi", &OPENAPI), ("asyncapi", &ASYNCAPI)]
    }

    #[test]
    fn documents_need_no_other_file() {
        for (name, document) in all() {
            let text = std::str::from_utf8(&document.as_ref().unwrap().text).unwrap();
            assert!(
                !text.contains("schemas.json") && !text.contains(AMONG_SCHEMAS),
                "{name}"
            );
            let value: Value = serde_json::from_str(text).unwrap();
            let mut names = BTreeSet::new();
            references(&value, &mut names);
            let schemas = value["components"]["schemas"].as_object().unwrap();
            assert!(names.len() > 10, "{name}: {names:?}");
            assert_eq!(
                names.into_iter().collect::<Vec<_>>(),
                schemas.keys().cloned().collect::<Vec<_>>(),
                "{name}: what is there is referred to"
            );
        }
        assert!(bundle("{}").is_none());
        let missing = format!(r#"{{"components":{{"a":{{"$ref":"{IN_FILE}Nothing"}}}}}}"#);
        assert!(bundle(&missing).is_none());
    }

    #[test]
    fn who_has_a_document_gets_it_no_more() {
        let status = |named: Option<&str>| {
            let mut request = HeaderMap::new();
            if let Some(named) = named {
                request.insert(header::IF_NONE_MATCH, named.parse().unwrap());
            }
            specification(&OPENAPI, &request).status().as_u16()
        };
        let etag = OPENAPI.as_ref().unwrap().etag.to_str().unwrap();
        assert_eq!(status(None), 200);
        assert_eq!(status(Some("\"other\"")), 200);
        assert_eq!(status(Some(etag)), 304);
        assert_eq!(status(Some(&format!("\"other\", W/{etag}"))), 304);
        assert_eq!(status(Some("*")), 304);
        assert_eq!(specification(&None, &HeaderMap::new()).status(), 500);
    }
}
