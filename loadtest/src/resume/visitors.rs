//! Clients that connect, leave and come back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::crowd::{Crowd, Id, Watcher};
use crate::message::marker;

const TURN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);

const GREETING: &[u8] = b"{\"type\":\"connection_established\"";
const MESSAGE: &[u8] = b"{\"type\":\"new_message\"";
const RESUMED: &[u8] = b"{\"type\":\"resumed\"";

#[derive(Deserialize)]
struct Frame {
    data: Data,
}

/// What is needed of a greeting or of `resumed`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    cursor: Option<String>,
    recovered: bool,
    replayed: u64,
    reason: Option<String>,
}

/// How many there are, in how many sessions, and how many messages each session is sent. A message's number tells its
/// session, too: the first session has the first `messages` numbers.
#[derive(Clone, Copy)]
pub struct Shape {
    pub clients: usize,
    pub sessions: usize,
    pub messages: u64,
}

impl Shape {
    pub fn session(number: usize) -> String {
        format!("r{number}")
    }

    fn first_number(self, id: Id) -> u64 {
        (id % self.sessions) as u64 * self.messages
    }

    /// Every session has a customer, and then agents.
    fn path(self, id: Id, since: Option<&str>) -> String {
        let kind = if id < self.sessions { "customer" } else { "agent" };
        let session = Self::session(id % self.sessions);
        match since {
            None => format!("/ws/{session}/u{id}/{kind}"),
            Some(since) => format!("/ws/{session}/u{id}/{kind}?since={since}"),
        }
    }
}

pub struct Visitors {
    shape: Shape,
    opened: usize,
    pub greeted: usize,
    /// What each greeting said.
    cursors: Vec<Option<String>>,
    /// How many messages each has got.
    got: Vec<u64>,
    has_resumed: Vec<bool>,
    /// Those who have got `resumed`, whatever it said.
    pub answered: usize,
    /// Those who have got all messages, and then `resumed`.
    pub whole: usize,
    pub last_whole: Option<Instant>,
    /// Numbers that were left out.
    lost: u64,
    /// Messages that came again, out of order, or after they should have.
    pub doubled: u64,
    /// What `resumed` said that was wrong, the first time.
    pub complaint: Option<String>,
}

impl Visitors {
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            opened: 0,
            greeted: 0,
            cursors: vec![None; shape.clients],
            got: vec![0; shape.clients],
            has_resumed: vec![false; shape.clients],
            answered: 0,
            whole: 0,
            last_whole: None,
            lost: 0,
            doubled: 0,
            complaint: None,
        }
    }

    /// The messages that have not come.
    pub fn missing(&self) -> u64 {
        self.lost + self.got.iter().map(|got| self.shape.messages - got).sum::<u64>()
    }

    /// The cursors of all greetings.
    pub fn cursors(self) -> Result<Vec<String>> {
        let all: Option<Vec<_>> = self.cursors.into_iter().collect();
        all.context("a greeting without a cursor")
    }

    /// Connects all of them, and waits for their greetings. Gives the time of the last connect.
    pub fn connect(
        &mut self,
        crowd: &mut Crowd,
        addr: SocketAddr,
        since: Option<&[String]>,
        in_flight: usize,
    ) -> Result<Instant> {
        let mut last = Instant::now();
        let (started, mut opened) = (last, 0);
        while self.greeted < self.shape.clients {
            ensure!(
                started.elapsed() < PATIENCE,
                "{} of {} clients are in",
                self.greeted,
                self.shape.clients
            );
            while opened < self.shape.clients && opened - self.opened < in_flight {
                let since = since.map(|cursors| cursors[opened].as_str());
                last = Instant::now();
                crowd.open(addr, &self.shape.path(opened, since))?;
                opened += 1;
            }
            crowd.turn(TURN, self)?;
        }
        Ok(last)
    }

    fn message(&mut self, id: Id, number: u64) {
        let Some(number) = number.checked_sub(self.shape.first_number(id)) else {
            self.complain(id, "a message of another session");
            return;
        };
        if number >= self.shape.messages {
            self.complain(id, "a message of another session");
        } else if number < self.got[id] || self.has_resumed[id] {
            self.doubled += 1;
        } else {
            self.lost += number - self.got[id];
            self.got[id] = number + 1;
        }
    }

    fn resumed(&mut self, id: Id, payload: &[u8], now: Instant) {
        let is_first = !std::mem::replace(&mut self.has_resumed[id], true);
        self.answered += usize::from(is_first);
        let data = data(payload).unwrap_or_default();
        let all = self.shape.messages;
        if is_first && data.recovered && data.replayed == all && self.got[id] == all {
            self.whole += 1;
            self.last_whole = Some(now);
        } else {
            let reason = data.reason.unwrap_or_default();
            self.complain(
                id,
                &format!(
                    "{} of {all} messages, {} replayed, {reason}",
                    self.got[id], data.replayed
                ),
            );
        }
    }

    fn complain(&mut self, id: Id, what: &str) {
        self.complaint
            .get_or_insert_with(|| format!("client {id}: {what}"));
    }
}

fn data(payload: &[u8]) -> Option<Data> {
    Some(serde_json::from_slice::<Frame>(payload).ok()?.data)
}

impl Watcher for Visitors {
    fn opened(&mut self, _id: Id, _now: Instant) {
        self.opened += 1;
    }

    fn frame(&mut self, id: Id, payload: &[u8], now: Instant) {
        if payload.starts_with(MESSAGE) {
            marker::find_all(payload, |marker| self.message(id, marker.number));
        } else if payload.starts_with(GREETING) {
            self.greeted += 1;
            self.cursors[id] = data(payload).and_then(|data| data.cursor);
        } else if payload.starts_with(RESUMED) {
            self.resumed(id, payload, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::message::marker::Marker;
    use super::*;

    const SHAPE: Shape = Shape {
        clients: 3,
        sessions: 2,
        messages: 2,
    };

    fn message(number: u64) -> Vec<u8> {
        let mut frame = MESSAGE.to_vec();
        frame.extend_from_slice(&Marker { number, intended: 0 }.bytes());
        frame
    }

    fn resumed(is_recovered: bool, replayed: u64) -> Vec<u8> {
        format!(
            r#"{{"type":"resumed","success":true,"data":{{"recovered":{is_recovered},"replayed":{replayed},"reason":"busy"}}}}"#
        )
        .into_bytes()
    }

    fn after(frames: &[(Id, Vec<u8>)]) -> Visitors {
        let mut visitors = Visitors::new(SHAPE);
        for (id, frame) in frames {
            visitors.frame(*id, frame, Instant::now());
        }
        visitors
    }

    #[test]
    fn whole_is_who_got_all_of_its_session_once_and_in_order() {
        // Clients 0 and 2 are of the first session, 1 is of the second.
        let visitors = after(&[
            (0, message(0)),
            (1, message(2)),
            (0, message(1)),
            (1, message(3)),
            (0, resumed(true, 2)),
            (1, resumed(true, 2)),
        ]);
        assert_eq!((visitors.whole, visitors.missing(), visitors.doubled), (2, 2, 0));
        assert_eq!(visitors.complaint, None);
    }

    #[test]
    fn gaps_repeats_and_other_sessions_are_seen() {
        let gap = after(&[(0, message(1)), (0, resumed(true, 2))]);
        // The gap, and all of the two others.
        assert_eq!((gap.whole, gap.missing()), (1, 1 + 4));
        let repeat = after(&[(0, message(0)), (0, message(0))]);
        assert_eq!(repeat.doubled, 1);
        let late = after(&[(0, message(0)), (0, resumed(true, 1)), (0, message(1))]);
        assert_eq!((late.whole, late.doubled), (0, 1));
        for (id, number) in [(0, 2), (1, 1)] {
            assert!(after(&[(id, message(number))]).complaint.is_some());
        }
    }

    #[test]
    fn who_was_refused_is_not_whole() {
        let refused = after(&[(0, resumed(false, 0))]);
        assert_eq!((refused.whole, refused.missing()), (0, 6));
        assert!(refused.complaint.unwrap().contains("busy"));
        let early = after(&[(0, message(0)), (0, resumed(true, 2))]);
        assert_eq!(early.whole, 0);
        let twice = [message(0), message(1), resumed(true, 2), resumed(true, 2)].map(|frame| (0, frame));
        let twice = after(&twice);
        assert_eq!(twice.whole, 1);
        assert!(twice.complaint.is_some());
    }

    #[test]
    fn a_greeting_has_a_cursor_and_a_return_uses_it() {
        let greeting = br#"{"type":"connection_established","success":true,"data":{"cursor":"~2.x"}}"#;
        let visitors = after(&[0, 1, 2].map(|id| (id, greeting.to_vec())));
        assert_eq!(visitors.greeted, 3);
        let cursors = visitors.cursors().unwrap();
        assert_eq!(SHAPE.path(2, Some(&cursors[2])), "/ws/r0/u2/agent?since=~2.x");
        assert!(after(&[]).cursors().is_err());
    }
}
