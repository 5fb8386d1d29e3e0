//! What this client has of the conversation: it says so when it comes back.

use std::collections::VecDeque;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::show::text;

/// How many message ids are remembered. Only those of the last seconds can come twice.
const REMEMBERED: usize = 1000;

#[derive(Default)]
pub struct Have {
    /// The newest message's id, or a cursor that came after it.
    since: Option<String>,
    /// That message's timestamp: older backends' ids carry no time.
    since_time: Option<String>,
    ids: VecDeque<String>,
}

impl Have {
    pub fn is_something(&self) -> bool {
        self.since.is_some()
    }

    /// What to add to the URL.
    pub fn query(&self) -> String {
        let escaped = |value: &str| utf8_percent_encode(value, NON_ALPHANUMERIC).to_string();
        let Some(since) = &self.since else {
            return String::new();
        };
        let time = self.since_time.as_deref();
        let time = time.map_or(String::new(), |time| format!("&since_time={}", escaped(time)));
        format!("?since={}{time}", escaped(since))
    }

    /// A message has arrived; false if it was here before.
    pub fn message(&mut self, data: &Value) -> bool {
        if data["message_id"].is_null() {
            return true;
        }
        let id = text(&data["message_id"]);
        if self.ids.contains(&id) {
            return false;
        }
        if self.ids.len() == REMEMBERED {
            self.ids.pop_front();
        }
        self.ids.push_back(id.clone());
        self.since = Some(id);
        self.since_time = data["timestamp"].as_str().map(str::to_owned);
        true
    }

    /// A cursor covers everything that came before it.
    pub fn cursor(&mut self, data: &Value) {
        if let Some(cursor) = data["cursor"].as_str() {
            (self.since, self.since_time) = (Some(cursor.to_owned()), None);
        }
    }
}
