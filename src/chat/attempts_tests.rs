use tokio::io::{AsyncRead, AsyncReadExt};

use super::*;
use crate::history::sent::SentRecord;
use crate::protocol::correlation::{Correlation, RequestId};
use crate::session::testing::members;

struct Sender {
    attempts: Attempts,
    metrics: Arc<Metrics>,
    writer: Arc<crate::writer::ConnectionWriter>,
    client: Box<dyn AsyncRead + Unpin>,
}

impl Sender {
    async fn new() -> Self {
        let metrics = Arc::new(Metrics::default());
        let (members, mut clients) = members(1, &metrics).await;
        let sent = Arc::new(SentMessages::new(65_536, Duration::from_secs(60)));
        Self {
            attempts: Attempts::new(sent, Arc::clone(&metrics)),
            metrics,
            writer: Arc::clone(&members[0].writer),
            client: Box::new(clients.remove(0)),
        }
    }

    fn key(&self) -> Key {
        self.attempts.sent.key("s", b"u", b"c")
    }

    fn begin(&self, request: i64) -> (Attempt, Arc<PendingAnswer>) {
        let correlation = Correlation {
            request_id: Some(RequestId::Number(request)),
            client_message_id: Some("c"),
        };
        let pending = PendingAnswer::new(&self.writer, correlation, Arc::clone(&self.metrics));
        (self.attempts.begin(self.key(), &pending), pending)
    }

    /// As the bus does with a record.
    fn read(&self, message: &Sent) {
        let record = SentRecord {
            key: self.key(),
            partition: 0,
            time: clock::unix_ms(),
        };
        let first = self.attempts.sent.read(record, || message.clone()).first;
        self.attempts.read(&mut vec![(self.key(), first)]);
    }

    /// What the client has got, up to the answer with this request id.
    async fn got_until(&mut self, request: i64) -> String {
        let mut text = String::new();
        while !text.ends_with(&format!("\"request_id\":{request}}}")) {
            let mut bytes = [0; 4096];
            let count = self.client.read(&mut bytes).await.unwrap();
            text += &String::from_utf8_lossy(&bytes[..count]);
        }
        text
    }
}

#[tokio::test]
async fn all_attempts_are_answered_once_with_the_first_record() {
    let mut sender = Sender::new().await;
    assert_eq!(sender.begin(1).0, Attempt::First(1));
    assert_eq!(sender.begin(2).0, Attempt::Waits);
    let message = Sent::now();
    sender.read(&message);
    assert_eq!(sender.begin(3).0, Attempt::Known(message.clone()));
    // Its own record comes after another node's, or the failure after the record.
    sender.read(&Sent::now());
    sender.attempts.failed(sender.key(), 1, PublishError::Unavailable);
    let got = sender.got_until(2).await;
    assert_eq!(got.matches("message_sent").count(), 2, "{got}");
    assert_eq!(got.matches(&message.message_id()).count(), 2, "{got}");
}

#[tokio::test]
async fn a_failure_is_that_of_all_who_wait_and_ends_the_attempt() {
    let mut sender = Sender::new().await;
    assert_eq!(sender.begin(1).0, Attempt::First(1));
    assert_eq!(sender.begin(2).0, Attempt::Waits);
    sender.attempts.failed(sender.key(), 1, PublishError::Full);
    let got = sender.got_until(2).await;
    assert_eq!(got.matches("bus_unavailable").count(), 2, "{got}");
    assert_eq!(sender.begin(3).0, Attempt::First(2));
    // The outcome of the earlier record says nothing of this one.
    sender.attempts.failed(sender.key(), 1, PublishError::Full);
    assert_eq!(sender.begin(4).0, Attempt::Waits);
}

#[tokio::test]
async fn what_waits_is_bounded() {
    let sender = Sender::new().await;
    let mut waiting = Vec::new();
    for request in 0..MAX_WAITING as i64 {
        let (attempt, pending) = sender.begin(request);
        assert_ne!(attempt, Attempt::Refused);
        waiting.push(pending);
    }
    assert_eq!(sender.begin(100).0, Attempt::Refused);
    waiting[3].answer(Err(PublishError::Unknown));
    assert_eq!(
        sender.begin(101).0,
        Attempt::Waits,
        "those who were answered don't count"
    );
    // A record that never comes does not keep the message from being sent.
    sender.attempts.purge(Instant::now());
    assert_eq!(sender.begin(102).0, Attempt::Refused);
    sender.attempts.purge(Instant::now() + 2 * UNDER_WAY);
    assert_eq!(sender.begin(103).0, Attempt::First(2));
}
