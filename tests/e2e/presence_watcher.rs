//! A connection that stays and checks every status frame: no event comes twice, and events add up to the list of users.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::frame_watcher::{FrameWatcher, Received};

pub type Watcher = FrameWatcher<StatusFrames>;

#[derive(Default)]
pub struct StatusFrames {
    /// Who is there, as the frames so far add up; None before the first.
    users: Option<BTreeSet<String>>,
    events: u64,
    /// How often each user has left.
    leaves: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Watcher {
    /// Who is connected according to the frames so far; None before the first.
    pub fn there(&self) -> Option<BTreeSet<String>> {
        self.received().users.clone()
    }

    /// How often it received a leave of this user.
    pub fn leaves(&self, user: &str) -> usize {
        self.received().leaves.get(user).copied().unwrap_or_default()
    }
}

impl Received for StatusFrames {
    fn take(&mut self, frame: &Value) {
        if frame["type"] == "connection_status_update" {
            self.add(&frame["data"]);
        }
    }

    fn wrong(&self) -> &[String] {
        &self.wrong
    }

    fn events(&self) -> u64 {
        self.events
    }
}

impl StatusFrames {
    /// Each event of a frame changes who is there, once for a user, and together they give what the frame lists.
    fn add(&mut self, data: &Value) {
        let status = &data["connection_status"];
        let (Some(listed), Some(events)) = (status["users"].as_object(), data["events"].as_array()) else {
            return self.wrong.push(format!("no users or events: {data}"));
        };
        for (total, of_type) in [("total_customer", "customer"), ("total_agent", "agent")] {
            let count = listed
                .values()
                .filter(|user| user["user_type"] == of_type)
                .count();
            if status[total] != count {
                self.wrong.push(format!("{total} is not {count}: {data}"));
            }
        }
        let listed: BTreeSet<String> = listed.keys().cloned().collect();
        let mut changed = BTreeSet::new();
        if let Some(mut users) = self.users.take() {
            for event in events {
                let user = event["event_user_id"].as_str().unwrap_or_default().to_owned();
                let is_news = match event["event_type"].as_str() {
                    Some("user_connected") => users.insert(user.clone()),
                    Some("user_disconnected") => users.remove(&user),
                    _ => false,
                };
                if event["event_type"] == "user_disconnected" {
                    *self.leaves.entry(user.clone()).or_default() += 1;
                }
                if !is_news || !changed.insert(user) {
                    self.wrong
                        .push(format!("an event that changes nothing: {event} in {data}"));
                }
            }
            if users != listed {
                self.wrong
                    .push(format!("with these events it is {users:?}: {data}"));
            }
        }
        self.events += events.len() as u64;
        self.users = Some(listed);
    }
}
