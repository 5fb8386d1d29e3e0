//! Holds the specifications of docs/spec against the wire: whatever a helper reads from a server, or sends to it, has a
//! schema there, or the test fails.
//!
//! * [`frames`]: WebSocket frames, by their type; [`foreign`]: what tests write to Kafka as another producer would.
//! * [`responses`]: HTTP responses, by method, path and status.
//! * [`records`]: Kafka records that nodes have written, by topic.
//!
//! Each schema is compiled once in a process, when it is first needed.

pub mod foreign;
pub mod frames;
pub mod records;
pub mod responses;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use jsonschema::{Draft, Validator};
use serde_json::{Value, json};

/// The documents as they are in the repository.
pub struct Documents {
    pub schemas: Value,
    pub openapi: Value,
    pub asyncapi: Value,
}

pub static DOCUMENTS: LazyLock<Documents> = LazyLock::new(|| Documents {
    schemas: read("schemas"),
    openapi: read("openapi"),
    asyncapi: read("asyncapi"),
});

fn read(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/spec/{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // So that an inline schema of a document refers to definitions beside it: see `compile`.
    let text = text.replace("schemas.json#/$defs/", "#/$defs/");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of the definitions.
pub fn definitions() -> impl Iterator<Item = &'static str> {
    let definitions = DOCUMENTS.schemas["$defs"].as_object().expect("definitions");
    definitions.keys().map(String::as_str)
}

/// The schema of a definition.
#[track_caller]
pub fn definition(name: &str) -> &'static Value {
    let definition = DOCUMENTS.schemas["$defs"].get(name);
    definition.unwrap_or_else(|| panic!("schemas.json has no {name}"))
}

/// The name of the definition that a schema refers to.
pub fn referred(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.strip_prefix("#/$defs/")
}

/// What a schema has against a value, each with its place in both; empty if it is valid.
pub fn objections(schema: &Value, value: &Value) -> Vec<String> {
    let validator = compiled(schema);
    let errors = validator.iter_errors(value);
    errors
        .map(|error| {
            let (place, rule) = (error.instance_path().to_string(), error.schema_path().to_string());
            let mut what = error.to_string();
            if what.len() > 400 {
                what.truncate(what.floor_char_boundary(400));
                what.push('…');
            }
            format!("at {place:?}: {what} (by {rule})")
        })
        .collect()
}

pub fn is_valid(schema: &Value, value: &Value) -> bool {
    compiled(schema).is_valid(value)
}

/// The schema that is this definition.
pub fn of(name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}")})
}

fn compiled(schema: &Value) -> Arc<Validator> {
    static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);
    let key = schema.to_string();
    // A thread that panicked while it compiled has left nothing.
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let validator = compiled.entry(key).or_insert_with(|| Arc::new(compile(schema)));
    Arc::clone(validator)
}

fn compile(schema: &Value) -> Validator {
    let mut whole = schema.clone();
    // A boolean schema refers to nothing.
    if let Some(whole) = whole.as_object_mut() {
        whole.insert("$defs".into(), DOCUMENTS.schemas["$defs"].clone());
    }
    let options = jsonschema::options().with_draft(Draft::Draft202012);
    let built = options.should_validate_formats(true).build(&whole);
    built.unwrap_or_else(|error| panic!("not a schema: {schema}: {error}"))
}

/// The beginning of a text, for the message of a failure.
pub fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(2000)]
}
