//! Clients for crowds: many of them can send and receive at once, through outages, and be asked afterwards what they
//! heard.

use std::ops::Deref;
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
use crate::support::spec::frames;

use super::OUTAGE;

/// What a [`Reader`] makes of the frames it reads.
pub trait Notes: Default + Send + 'static {
    fn take(&mut self, frame: Value, text: &str);

    /// The stream has ended, with this close code if there was a close frame.
    fn end(&mut self, code: Option<u16>);

    fn has_ended(&self) -> bool;

    /// For the message of a timeout.
    fn summary(&self) -> String;
}

/// A connection that is read in the background, so that many can send and receive at once.
pub struct Reader<N> {
    name: String,
    sink: tokio::sync::Mutex<SplitSink<WebSocketStream<TcpStream>, Message>>,
    notes: Arc<Mutex<N>>,
}

/// A check that failed while it looked has said so already.
fn locked<N>(notes: &Mutex<N>) -> MutexGuard<'_, N> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<N: Notes> Reader<N> {
    /// Connects, and returns when the greeting is there: the first frame, which the notes do not get.
    pub async fn connect(server: &Server, session: &str, user: &str, user_type: &str) -> Self {
        let url = format!("ws://{}/ws/{session}/{user}/{user_type}", server.http_addr());
        let stream = TcpStream::connect(server.http_addr()).await.expect("connect");
        let (ws, _) = tokio_tungstenite::client_async(&url, stream)
            .await
            .unwrap_or_else(|error| panic!("{url}: {error}"));
        let (sink, mut frames) = ws.split();
        let greeting = tokio::time::timeout(OUTAGE, frames.next()).await;
        let greeting = greeting.unwrap_or_else(|_| panic!("{url}: no greeting"));
        let Some(Ok(Message::Text(greeting))) = greeting else {
            panic!("{url}: the first frame: {greeting:?}")
        };
        assert_eq!(
            parsed(&greeting)["type"],
            "connection_established",
            "{url}: the first frame"
        );
        let notes = Arc::new(Mutex::new(N::default()));
        let shared = Arc::clone(&notes);
        tokio::spawn(async move {
            let mut code = None;
            // tungstenite answers pings and echoes the close frame as long as the connection is read.
            while let Some(Ok(message)) = frames.next().await {
                match message {
                    Message::Text(text) => locked(&shared).take(parsed(&text), &text),
                    Message::Close(close) => code = Some(close.map_or(1005, |close| close.code.into())),
                    _ => {}
                }
            }
            locked(&shared).end(code);
        });
        Self {
            name: format!("{session}/{user}"),
            sink: sink.into(),
            notes,
        }
    }

    /// Sends a frame; false when the server has closed.
    pub async fn send(&self, frame: Value) -> bool {
        let objections = frames::objections_to_sent(&frame);
        assert!(
            objections.is_empty(),
            "{}: sent: {objections:?}: {frame}",
            self.name
        );
        let message = Message::text(frame.to_string());
        self.sink.lock().await.send(message).await.is_ok()
    }

    /// Closes properly, and waits for the end of the stream.
    pub async fn close(&self) {
        let _ = self.sink.lock().await.close().await;
        self.until("the end of the stream", N::has_ended).await;
    }

    pub fn look<T>(&self, look: impl FnOnce(&N) -> T) -> T {
        look(&locked(&self.notes))
    }

    /// Waits until the condition holds for what was read; panics after [`OUTAGE`].
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&N) -> bool) {
        let deadline = tokio::time::Instant::now() + OUTAGE;
        while !self.look(&mut holds) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{}: never happened: {what}; {}",
                self.name,
                self.look(N::summary)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Every frame has a schema in docs/spec.
fn parsed(text: &str) -> Value {
    frames::received(text).unwrap_or_else(|| panic!("no JSON: {text}"))
}

/// A client of the chat. Keeps every frame.
pub struct Tap {
    reader: Reader<Heard>,
    sent: AtomicU64,
}

impl Deref for Tap {
    type Target = Reader<Heard>;

    fn deref(&self) -> &Self::Target {
        &self.reader
    }
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
}

impl Notes for Heard {
    fn take(&mut self, mut frame: Value, text: &str) {
        match frame["type"].as_str() {
            Some("new_message") => self.messages.push((text.to_owned(), frame["data"].take())),
            Some("message_sent") => self.acks.push(frame["data"].take()),
            Some("error") => self.errors.push(frame),
            _ => self.others.push(frame),
        }
    }

    fn end(&mut self, code: Option<u16>) {
        self.ended = Some(code);
    }

    fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    fn summary(&self) -> String {
        let (messages, acks, errors) = (self.messages.len(), self.acks.len(), self.errors.len());
        let (last, ended) = (self.errors.last(), self.ended);
        format!(
            "{messages} messages, {acks} acknowledgements, {errors} errors (the last: {last:?}), ended: {ended:?}"
        )
    }
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
        Self {
            reader: Reader::connect(server, session, user, user_type).await,
            sent: AtomicU64::new(0),
        }
    }

    /// `send_message`, with the text as its `client_message_id`, too; false when the server has closed. Waits while
    /// `window` messages of this connection are without an answer, as a patient client would.
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
}
