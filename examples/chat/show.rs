//! Frames as lines of text for people.

use std::io::Write;

use serde_json::Value;

use super::Chat;

impl Chat {
    /// Prints a frame. Unknown types are shown as they are: backends may publish their own.
    pub fn show(&mut self, frame: &str) {
        let Ok(value) = serde_json::from_str::<Value>(frame) else {
            return notice(&format!("not JSON: {frame}"));
        };
        let data = &value["data"];
        let number = value["request_id"]
            .as_str()
            .and_then(|id| id.strip_prefix('r')?.parse().ok());
        let asked = number.and_then(|number: u32| self.open.remove(&number));
        match (value["type"].as_str(), &asked) {
            (Some("new_message"), _) => {
                let own = data["client_message_id"].as_str().unwrap_or_default();
                self.own.remove(own);
                if self.is_resuming {
                    // It got through, but its answer was lost.
                    self.open
                        .retain(|_, request| own.is_empty() || request.client_message_id != own);
                }
                if !self.have.message(data) {
                    return;
                }
            }
            (Some("error"), Some(request)) => drop(self.own.remove(&request.client_message_id)),
            (Some("connection_established"), _) if !self.is_resuming => {
                self.have.cursor(data);
                self.send_again = true;
            }
            (Some("resumed"), _) => {
                if data["recovered"] == false {
                    let reason = text(&data["reason"]);
                    notice(&format!("messages may be missing here: {reason}"));
                    // They may not come any more.
                    let open = &self.open;
                    self.own
                        .retain(|own| open.values().any(|request| request.client_message_id == *own));
                }
                self.have.cursor(data);
                (self.is_resuming, self.send_again) = (false, true);
            }
            (Some("pong"), _) => self.have.cursor(data),
            _ => {}
        }
        if self.json {
            return print(frame);
        }
        // The one clock that all see is the server's.
        let at = time(data["timestamp"].as_str().unwrap_or_default());
        let who = |id: &str, kind: &str| format!("{} ({})", text(&data[id]), text(&data[kind]));
        match value["type"].as_str().unwrap_or_default() {
            "connection_established" => {
                let session = text(&data["session_id"]);
                print(&format!("{at} * in {session} as {}", who("user_id", "user_type")));
            }
            "new_message" => {
                // Lines after the first are indented, so that nobody can write a line that looks like another's.
                let message = text(&data["message"]).replace('\n', "\n           ");
                print(&format!("{at} {}: {message}", who("sender_id", "sender_type")));
            }
            "typing_indicator" => {
                let does = if data["is_typing"] == true {
                    "types ..."
                } else {
                    "stopped typing"
                };
                print(&format!("{at} ~ {} {does}", who("user_id", "sender_type")));
            }
            "connection_status_update" => self.show_status(&at, data),
            "session_joined" => print(&format!("{at} * joined {}", text(&data["session_id"]))),
            // The message itself comes as `new_message`, in its place among the others.
            "message_sent" | "pong" | "resumed" => {}
            "error" => {
                let again = if data["retryable"] == true {
                    " (try again)"
                } else {
                    ""
                };
                let about = asked
                    .map(|request| format!(" (for: {})", request.line))
                    .unwrap_or_default();
                let code = text(&data["code"]);
                print(&format!(
                    "         ! {code}: {}{again}{about}",
                    text(&value["error"])
                ));
            }
            _ => print(&format!("{at} ? {}", clean(frame))),
        }
    }

    /// Who came and went, or, when nothing changed (a second tab), who is there.
    fn show_status(&self, at: &str, data: &Value) {
        let status = &data["connection_status"];
        let count = |name: &str| status[name].as_u64().unwrap_or_default();
        let (customers, agents) = (count("total_customer"), count("total_agent"));
        let here = format!("customers: {customers}, agents: {agents}");
        let events = data["events"].as_array().map(Vec::as_slice).unwrap_or_default();
        if events.is_empty() {
            let users = status["users"].as_object().into_iter().flatten();
            let names: Vec<String> = users.map(|(id, _)| clean(id)).collect();
            return print(&format!("{at} * here: {} ({here})", names.join(", ")));
        }
        for event in events {
            let user = text(&event["event_user_id"]);
            let you = if user == self.user { " (you)" } else { "" };
            let did = if event["event_type"] == "user_connected" {
                "came"
            } else {
                "left"
            };
            print(&format!("{at} * {user}{you} {did} ({here})"));
        }
    }
}

/// A string without what could command a terminal: texts come from strangers. Numbers (older ids) as they are.
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), clean)
}

fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
}

/// The time of day of an RFC 3339 time, which is UTC.
fn time(timestamp: &str) -> String {
    let of_day = timestamp.split_once('T').and_then(|(_, time)| time.get(..8));
    of_day.map_or_else(|| " ".repeat(8), clean)
}

/// A line on stdout. When nobody reads it any more (`| head`), there is no point in going on.
fn print(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// What this client has to say itself goes to stderr, and so never between the frames of `--json`.
pub fn notice(line: &str) {
    let _ = writeln!(std::io::stderr(), "-- {}", clean(line));
}
