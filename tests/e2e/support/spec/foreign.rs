//! What tests write to Kafka in the place of other producers. The server delivers it as it is, whatever it is: only this
//! may reach a client without a schema of ours.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, RwLock};

use serde_json::Value;

#[derive(Default)]
struct Foreign {
    /// Hashes of native payloads.
    payloads: HashSet<u64>,
    /// Sessions that have records in the old form.
    sessions: HashSet<String>,
}

static FOREIGN: LazyLock<RwLock<Foreign>> = LazyLock::new(RwLock::default);

fn hash(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    // A page of messages does not have the white space around them.
    payload.trim_ascii().hash(&mut hasher);
    hasher.finish()
}

/// Notes a record that a test writes.
pub fn note(value: &[u8], is_native: bool) {
    if is_native {
        FOREIGN.write().unwrap().payloads.insert(hash(value));
    } else if let Some(session) = session_of(value) {
        let session = session.to_ascii_lowercase();
        FOREIGN.write().unwrap().sessions.insert(session);
    }
}

/// The session of an old record; the server reads unpaired surrogates, serde_json does not.
fn session_of(value: &[u8]) -> Option<String> {
    if let Ok(record) = serde_json::from_slice::<Value>(value) {
        return Some(record["session_id"].as_str()?.to_owned());
    }
    let text = String::from_utf8_lossy(value);
    let rest = text.split("\"session_id\"").nth(1)?;
    Some(rest.split('"').nth(1)?.to_owned())
}

pub fn is_payload(payload: &[u8]) -> bool {
    let foreign = FOREIGN.read().unwrap();
    !foreign.payloads.is_empty() && foreign.payloads.contains(&hash(payload))
}

/// Whether the session may get what was converted from another service's record.
pub fn has_records(session: &str) -> bool {
    FOREIGN
        .read()
        .unwrap()
        .sessions
        .contains(&session.to_ascii_lowercase())
}
