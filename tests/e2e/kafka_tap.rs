//! A client for crowds: many of them can send and receive at once, through outages, and be asked afterwards what they heard.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::Server;

use super::OUTAGE;

/// A client whose reading goes on by itself, so that many can send and receive at once. Keeps every frame.
pub struct Tap {
    name: String,
    sink: tokio::sync::Mutex<SplitSink<WebSocketStream<TcpStream>, Message>>,
    heard: Arc<Mutex<Heard>>,
    sent: AtomicU64,
}

/// What a [`Tap`] has read, each kind in its order.
#[derive(Default)]
pub struct Heard {
    /// `new_message`: the exact payload, and its data.
    pub messages: Vec<(String, Value)>,
    /// The data of `message_sent`.
    pub acks: Vec<Value>,
    /// `error` frames, whole.
    pub errors: Vec<Value>,
    /// All other frames, whole.
    pub others: Vec<Value>,
    /// Set at the end of the stream: the close code, if there was a close frame.
    pub ended: Option<Option<u16>>,
}

impl Heard {
    /// The message ids in the order of their arrival.
    pub fn ids(&self) -> Vec<String> {
        self.messages.iter().map(|(_, data)| id_of(data)).collect()
    }

    pub fn acked_ids(&self) -> Vec<String> {
        self.acks.iter().map(id_of).collect()
    }

    /// Whether the message whose `message` is this text arrived.
    pub fn has_text(&self, text: &str) -> bool {
        self.messages.iter().any(|(_, data)| data["message"] == text)
    }

    fn answers(&self) -> u64 {
        (self.acks.len() + self.errors.len()) as u64
    }

    fn take(&mut self, text: &str) {
        let mut frame: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        match frame["type"].as_str() {
            Some("new_message") => self.messages.push((text.to_owned(), frame["data"].take())),
            Some("message_sent") => self.acks.push(frame["data"].take()),
            Some("error") => self.errors.push(frame),
            _ => self.others.push(frame),
        }
    }
}

/// A check that failed while it looked has said so already.
fn locked(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn id_of(data: &Value) -> String {
    data["message_id"]
        .as_str()
        .unwrap_or_else(|| panic!("no message_id: {data}"))
        .to_owned()
}

impl Tap {
    /// Connects, and returns when the greeting is there.
    pub async fn connect(server: &Server, session: &str, user: &str, user_type: &str) -> Self {
        let url = format!("ws://{}/ws/{session}/{user}/{user_type}", server.http_addr());
        let stream = TcpStream::connect(server.http_addr()).await.expect("connect");
        let (ws, _) = tokio_tungstenite::client_async(&url, stream)
            .await
            .unwrap_or_else(|error| panic!("{url}: {error}"));
        let (sink, mut frames) = ws.split();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let shared = Arc::clone(&heard);
        tokio::spawn(async move {
            let mut code = None;
            // tungstenite answers pings and echoes the close by itself, as long as somebody reads.
            while let Some(Ok(message)) = frames.next().await {
                match message {
                    Message::Text(text) => locked(&shared).take(&text),
                    Message::Close(close) => code = Some(close.map_or(1005, |close| close.code.into())),
                    _ => {}
                }
            }
            locked(&shared).ended = Some(code);
        });
        let tap = Self {
            name: format!("{session}/{user}"),
            sink: sink.into(),
            heard,
            sent: AtomicU64::new(0),
        };
        tap.until("the greeting", |heard| !heard.others.is_empty()).await;
        tap.look(|heard| {
            assert_eq!(
                heard.others[0]["type"], "connection_established",
                "the first frame"
            )
        });
        tap
    }

    /// Sends a frame; false when the server has closed.
    pub async fn send(&self, frame: Value) -> bool {
        self.sink
            .lock()
            .await
            .send(Message::text(frame.to_string()))
            .await
            .is_ok()
    }

    /// `send_message`, with the text as its `client_message_id`, too; false when the server has closed. Waits while `window`
    /// messages of this connection are without an answer, as a patient client would.
    pub async fn say(&self, text: &str, window: u64) -> bool {
        while self.sent.load(Ordering::Relaxed) >= self.look(Heard::answers) + window {
            if self.look(|heard| heard.ended.is_some()) {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.send(json!({"type": "send_message", "data": {"message": text, "client_message_id": text}}))
            .await
    }

    /// Says it until it is acknowledged, under a new text each time, and returns the acknowledged text.
    pub async fn say_until_acked(&self, text: &str) -> String {
        let deadline = tokio::time::Instant::now() + OUTAGE;
        for attempt in 0.. {
            let answers = self.look(Heard::answers);
            let said = format!("{text} {attempt}");
            assert!(self.say(&said, 1).await, "{}: closed", self.name);
            self.until("an answer", |heard| heard.answers() > answers).await;
            if self.look(|heard| {
                heard
                    .acks
                    .iter()
                    .any(|ack| ack["client_message_id"] == said.as_str())
            }) {
                return said;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{}: never acknowledged: {text}",
                self.name
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        unreachable!()
    }

    pub fn look<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&locked(&self.heard))
    }

    /// Waits until it holds for what was read; panics after [`OUTAGE`].
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Heard) -> bool) {
        let deadline = tokio::time::Instant::now() + OUTAGE;
        while !self.look(&mut holds) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{}: never happened: {what}; {}",
                self.name,
                self.look(summary)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn summary(heard: &Heard) -> String {
    let Heard {
        messages,
        acks,
        errors,
        ended,
        ..
    } = heard;
    let (messages, acks, number, last) = (messages.len(), acks.len(), errors.len(), errors.last());
    format!(
        "{messages} messages, {acks} acknowledgements, {number} errors (the last: {last:?}), ended: {ended:?}"
    )
}
