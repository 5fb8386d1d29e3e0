//! A client like a browser's: JSON in text frames, pings answered, frames kept until a test takes them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{self, Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::spec::{frames, responses};
use super::{PATIENCE, Response, Server};

/// A connection. Frames arrive in [`Client::log`] in their order; [`Client::next`] takes the oldest of a type not yet
/// taken and leaves the others for later. All frames, and the handshake, are checked against docs/spec.
pub struct Client {
    ws: WebSocketStream<TcpStream>,
    pending: VecDeque<Value>,
    /// Every frame ever read, in order.
    pub log: Vec<Value>,
    /// The greeting's `data`.
    pub greeting: Value,
    /// Code and reason of the server's close frame, once read.
    pub closed: Option<(u16, String)>,
    fences: u64,
    /// The texts of frames without an answer, by their `request_id`; None where several have the same one.
    asked: HashMap<String, Option<String>>,
    name: String,
}

impl Client {
    /// Connects on the main port and takes the greeting, which must be the first frame.
    pub async fn connect(server: &Server, session: &str, user: &str, user_type: &str) -> Client {
        Self::connect_to(server.http_addr(), session, user, user_type).await
    }

    pub async fn connect_to(addr: SocketAddr, session: &str, user: &str, user_type: &str) -> Client {
        let path = format!("/ws/{session}/{user}/{user_type}");
        let mut client = Self::open(addr, &path, &[])
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        client.greet().await;
        client
    }

    /// The handshake only; a refusal is `Err(Error::Http(response))`. Does not read the greeting.
    pub async fn open(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Client, Error> {
        let mut request = format!("ws://{addr}{path}").into_client_request()?;
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header's name");
            request
                .headers_mut()
                .insert(name, HeaderValue::from_str(value).expect("a header's value"));
        }
        let stream = TcpStream::connect(addr).await.map_err(Error::Io)?;
        stream.set_nodelay(true).map_err(Error::Io)?;
        let shaken = tokio::time::timeout(PATIENCE, client_async(request, stream)).await;
        let (ws, _) = check_handshake(path, shaken.expect("a handshake in time"))?;
        Ok(Client {
            ws,
            pending: VecDeque::new(),
            log: Vec::new(),
            greeting: Value::Null,
            closed: None,
            fences: 0,
            asked: HashMap::new(),
            name: path.to_owned(),
        })
    }

    /// Reads the first frame, which must be `connection_established`.
    pub async fn greet(&mut self) {
        let first = self.read().await;
        assert_eq!(
            first["type"], "connection_established",
            "{}: the first frame: {first}",
            self.name
        );
        self.pending.pop_back();
        self.greeting = first["data"].clone();
    }

    /// Sends a frame. It has a schema, or a `request_id`, so that its answer shows what the server thinks of it; other
    /// wrong frames are for [`Client::send_text`].
    pub async fn send(&mut self, frame: Value) {
        assert!(self.try_send(frame).await, "{}: send: closed", self.name);
    }

    /// Sends any text.
    pub async fn send_text(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.note(&text);
        let sent = self.ws.send(Message::text(text)).await;
        sent.unwrap_or_else(|error| panic!("{}: send: {error}", self.name));
    }

    /// As [`Client::send`]: false when the connection has ended.
    pub async fn try_send(&mut self, frame: Value) -> bool {
        if frame["request_id"].is_null() {
            let objections = frames::objections_to_sent(&frame);
            assert!(
                objections.is_empty(),
                "{}: sent: {objections:?}: {frame}",
                self.name
            );
        }
        let text = frame.to_string();
        self.note(&text);
        self.ws.send(Message::text(text)).await.is_ok()
    }

    /// Remembers what is asked, to compare it with its answer.
    fn note(&mut self, text: &str) {
        let id = serde_json::from_str::<Value>(text).map(|frame| frame["request_id"].clone());
        if let Ok(id) = id
            && !id.is_null()
        {
            let asked = self.asked.entry(id.to_string());
            asked
                .and_modify(|earlier| *earlier = None)
                .or_insert_with(|| Some(text.to_owned()));
        }
    }

    /// Compares a frame with what it answers.
    fn check_answer(&mut self, frame: &Value) {
        let id = frame["request_id"].to_string();
        if let Some(Some(asked)) = self.asked.get(&id) {
            frames::check_answer(asked, frame);
            self.asked.remove(&id);
        }
    }

    /// `send_message` with a text and a `request_id`; does not wait for the answer.
    pub async fn say(&mut self, text: &str, request_id: &str) {
        self.send(json!({"type": "send_message", "request_id": request_id, "data": {"message": text}}))
            .await;
    }

    /// Sends `send_message` and returns the data of its `message_sent`.
    pub async fn say_acked(&mut self, text: &str) -> Value {
        self.fences += 1;
        let id = format!("say-{}", self.fences);
        self.say(text, &id).await;
        let answer = self
            .next_where(&format!("the answer to {id}"), |frame| {
                frame["request_id"] == id.as_str()
            })
            .await;
        assert_eq!(answer["type"], "message_sent", "{answer}");
        answer["data"].clone()
    }

    /// The oldest frame of this type not yet taken; waits for it.
    pub async fn next(&mut self, kind: &str) -> Value {
        self.next_where(kind, |frame| frame["type"] == kind).await
    }

    /// The oldest matching frame not yet taken; waits for it.
    pub async fn next_where(&mut self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        self.next_within(what, PATIENCE, matches).await
    }

    pub async fn next_within(
        &mut self,
        what: &str,
        within: Duration,
        matches: impl Fn(&Value) -> bool,
    ) -> Value {
        if let Some(at) = self.pending.iter().position(&matches) {
            return self.pending.remove(at).expect("just found");
        }
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let Ok(frame) = tokio::time::timeout_at(deadline, self.read()).await else {
                panic!(
                    "{}: waited for {what}; not taken: {:?}",
                    self.name,
                    self.untaken()
                )
            };
            if matches(&frame) {
                self.pending.pop_back();
                return frame;
            }
        }
    }

    /// The next matching frame not yet taken, or None when the connection ends first.
    pub async fn next_or_end(&mut self, matches: impl Fn(&Value) -> bool) -> Option<Value> {
        if let Some(at) = self.pending.iter().position(&matches) {
            return self.pending.remove(at);
        }
        let reading = async {
            loop {
                let frame = self.try_read().await?;
                if matches(&frame) {
                    self.pending.pop_back();
                    return Some(frame);
                }
            }
        };
        let read = tokio::time::timeout(PATIENCE, reading).await;
        read.unwrap_or_else(|_| {
            panic!(
                "{}: neither a frame nor the end; not taken: {:?}",
                self.name,
                self.untaken()
            )
        })
    }

    /// The next frame of any type.
    pub async fn next_any(&mut self) -> Value {
        self.next_where("any frame", |_| true).await
    }

    /// Everything the server put on this connection before now is read: a `ping` is sent and its `pong` awaited.
    /// Fences this connection's own queue, not other connections' traffic: for that see [`Client::fence_session`].
    pub async fn fence(&mut self) {
        self.fences += 1;
        let id = format!("fence-{}", self.fences);
        self.send(json!({"type": "ping", "request_id": id})).await;
        self.next_where(&format!("the pong of {id}"), |frame| {
            frame["request_id"] == id.as_str()
        })
        .await;
    }

    /// Everything published into the session before now is read here: `other` of the same session says a word, and it
    /// arrives. Both connections have it then.
    pub async fn fence_session(&mut self, other: &mut Client) {
        let id = other.say_acked("fence").await["message_id"].clone();
        let is_it = |frame: &Value| frame["type"] == "new_message" && frame["data"]["message_id"] == id;
        other.next_where("the fence's message", is_it).await;
        self.next_where("the fence's message", is_it).await;
    }

    /// As [`Client::fence_session`], by this connection's own word.
    pub async fn fence_own_session(&mut self) {
        let id = self.say_acked("fence").await["message_id"].clone();
        let is_it = |frame: &Value| frame["type"] == "new_message" && frame["data"]["message_id"] == id;
        self.next_where("the fence's message", is_it).await;
    }

    /// Asserts that no frame of this type has arrived, or arrives before the answer to a ping.
    pub async fn expect_none(&mut self, kind: &str) {
        self.fence().await;
        let unwanted = self.pending.iter().find(|frame| frame["type"] == kind);
        assert!(
            unwanted.is_none(),
            "{}: unwanted {}",
            self.name,
            unwanted.unwrap()
        );
    }

    /// Asserts that no frame of this type has arrived, or arrives before a message that `other` now sends to the
    /// session.
    pub async fn expect_none_before(&mut self, kind: &str, other: &mut Client) {
        self.fence_session(other).await;
        let unwanted = self.pending.iter().find(|frame| frame["type"] == kind);
        assert!(
            unwanted.is_none(),
            "{}: unwanted {}",
            self.name,
            unwanted.unwrap()
        );
    }

    /// Takes all frames read so far and not taken that match.
    pub fn take(&mut self, matches: impl Fn(&Value) -> bool) -> Vec<Value> {
        let (taken, kept) = self.pending.drain(..).partition(|frame| matches(frame));
        self.pending = kept;
        Vec::from(taken)
    }

    /// Takes all frames of this type read so far.
    pub fn take_all(&mut self, kind: &str) -> Vec<Value> {
        self.take(|frame| frame["type"] == kind)
    }

    /// Frames read and not taken.
    pub fn untaken(&self) -> Vec<Value> {
        self.pending.iter().cloned().collect()
    }

    /// Waits for the server's close frame: its code (1005 when empty). Frames before it go to the log.
    pub async fn expect_close(&mut self) -> u16 {
        let closing = async { while self.try_read().await.is_some() {} };
        tokio::time::timeout(PATIENCE, closing)
            .await
            .unwrap_or_else(|_| panic!("{}: was not closed", self.name));
        let (code, _) = self
            .closed
            .as_ref()
            .unwrap_or_else(|| panic!("{}: the stream ended without a close", self.name));
        *code
    }

    /// Closes properly: 1000, the echo, the end of the stream.
    pub async fn close(mut self) {
        let _ = self.ws.close(None).await;
        let closing = async { while self.try_read().await.is_some() {} };
        tokio::time::timeout(PATIENCE, closing)
            .await
            .unwrap_or_else(|_| panic!("{}: no echo of the close", self.name));
    }

    /// Reads one frame within the time, or None. For loops that also do other things; not a proof of absence.
    pub async fn poll(&mut self, within: Duration) -> Option<Value> {
        if let Some(frame) = self.pending.pop_front() {
            return Some(frame);
        }
        let frame = tokio::time::timeout(within, self.read()).await.ok()?;
        self.pending.pop_back();
        Some(frame)
    }

    pub fn get_ref(&self) -> &TcpStream {
        self.ws.get_ref()
    }

    async fn read(&mut self) -> Value {
        match self.try_read().await {
            Some(frame) => frame,
            None => panic!(
                "{}: closed {:?}; not taken: {:?}",
                self.name,
                self.closed,
                self.untaken()
            ),
        }
    }

    /// The next text frame (also in `log` and `pending`), or None at the end. Cancel-safe, as tungstenite is.
    async fn try_read(&mut self) -> Option<Value> {
        loop {
            match self.ws.next().await? {
                Ok(Message::Text(text)) => {
                    let frame = frames::received(&text);
                    let frame = frame.unwrap_or_else(|| panic!("{}: no JSON: {text}", self.name));
                    self.check_answer(&frame);
                    self.log.push(frame.clone());
                    self.pending.push_back(frame.clone());
                    return Some(frame);
                }
                Ok(Message::Close(close)) => {
                    self.closed =
                        Some(close.map_or((1005, String::new()), |c| (c.code.into(), c.reason.to_string())));
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(other) => panic!("{}: not text: {other:?}", self.name),
                // The connection is lost: the end, without a close frame.
                Err(Error::Io(_) | Error::Protocol(_) | Error::ConnectionClosed | Error::AlreadyClosed) => {
                    return None;
                }
                Err(error) => panic!("{}: read: {error}", self.name),
            }
        }
    }
}

/// Checks what the handshake was answered with, a 101 or a refusal.
fn check_handshake<T>(
    path: &str,
    shaken: Result<(T, tungstenite::handshake::client::Response), Error>,
) -> Result<(T, tungstenite::handshake::client::Response), Error> {
    let answer = match &shaken {
        Ok((_, answer)) => answer,
        Err(Error::Http(answer)) => answer,
        Err(_) => return shaken,
    };
    let headers = answer.headers().iter();
    let headers = headers.map(|(name, value)| {
        (
            name.to_string(),
            String::from_utf8_lossy(value.as_bytes()).into_owned(),
        )
    });
    let response = Response {
        status: answer.status().as_u16(),
        headers: headers.collect(),
        body: answer.body().clone().unwrap_or_default(),
    };
    let length = response
        .header("content-length")
        .and_then(|length| length.parse().ok());
    // tungstenite keeps as much of a body as has arrived with the head.
    if length.is_none_or(|length: usize| length == response.body.len()) {
        let (method, target) = ("GET".to_owned(), path.to_owned());
        responses::check(Some(&responses::Asked { method, target }), &response);
    }
    shaken
}
