//! A conversation in a terminal, and the shortest complete client of the protocol.
//!
//! ```text
//! cargo run --release --example chat -- --session demo --user alice --as customer
//! cargo run --release --example chat -- --session demo --user bob --as agent      # in another terminal
//! ```
//!
//! What a good client does, and where it is done here:
//!
//! 1. [`connect`] to `/ws/{session}/{user}/{type}`: nothing else says who you are.
//! 2. [`Chat::send`]: give each request an id, and expect its answer.
//! 3. [`Chat::show`] what arrives, whatever its type (in `show.rs`).
//! 4. After a loss come back, with back-off and jitter ([`Backoff`]), unless told to stay away ([`may_return`]).
//! 5. Say what you have ([`Have`]), so that you get what you have missed; then send again what had no answer
//!    ([`Chat::unanswered`]).
//! 6. [`leave`] with close code 1000, once every request has its answer.

mod have;
mod retry;
mod show;

use std::collections::{BTreeMap, HashSet};
use std::io::BufRead;
use std::time::Duration;

use clap::{Command, arg};
use futures_util::{SinkExt, StreamExt};
use have::Have;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use retry::{Backoff, may_return};
use serde_json::{Value, json};
use show::{notice, text};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The server pings every 25 s by default. After that much silence we ask whether it is there, after twice as much we
/// take the connection for dead: a phone that changed networks is told by nobody.
const SILENCE: Duration = Duration::from_secs(30);
/// How long answers may take once there is nothing more to say; the server itself gives up after 5 s.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// How a connection ended.
enum End {
    /// As we wished.
    Done,
    /// Come back; not before this long, if the server said so.
    Lost(String, Option<Duration>),
    /// Coming back would end the same way.
    Refused(String),
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let args = arguments().get_matches();
    let get = |name: &str| args.get_one::<String>(name).cloned().unwrap_or_default();
    let id = |name: &str| utf8_percent_encode(&get(name), NON_ALPHANUMERIC).to_string();
    let server = get("url").trim_end_matches('/').to_owned();
    let url = format!("{server}/ws/{}/{}/{}", id("session"), id("user"), id("as"));
    let mut chat = Chat {
        user: get("user"),
        json: args.get_flag("json"),
        ..Chat::default()
    };
    let mut lines = read_stdin();
    let mut backoff = Backoff::default();
    let status = loop {
        let wanted = format!("{url}{}", chat.have.query());
        (chat.is_resuming, chat.is_ready) = (chat.have.is_something(), false);
        let connected = tokio::select! {
            connected = connect(&wanted) => connected,
            _ = tokio::signal::ctrl_c() => break 1,
        };
        let end = match connected {
            Ok(socket) => {
                let since = Instant::now();
                let end = converse(socket, &mut chat, &mut lines).await;
                // Only a connection that lasted counts as success: else a server that accepts and drops is stormed.
                if since.elapsed() > Duration::from_secs(10) {
                    backoff = Backoff::default();
                }
                end
            }
            Err(end) => end,
        };
        match end {
            End::Done => break i32::from(!chat.open.is_empty()),
            End::Refused(why) => {
                notice(&why);
                break 1;
            }
            // All that was typed was sent, and its answers can't come any more.
            End::Lost(why, _) if chat.leaving => {
                notice(&why);
                break 1;
            }
            End::Lost(why, at_least) => {
                let pause = backoff.next(at_least.unwrap_or_default());
                notice(&format!("{why}; again in {:.1} s", pause.as_secs_f32()));
                tokio::select! {
                    () = sleep(pause) => {}
                    _ = tokio::signal::ctrl_c() => break 1,
                }
            }
        }
    };
    for request in chat.open.values() {
        notice(&format!(
            "no answer, may or may not have arrived: {}",
            request.line
        ));
    }
    // Not a return: the thread that reads stdin may be waiting for a line.
    std::process::exit(status);
}

/// The handshake. A refusal is an HTTP answer with a JSON body.
async fn connect(url: &str) -> Result<Socket, End> {
    // The third argument sets TCP_NODELAY: a chat's frames are small and must not wait for each other.
    let handshake = connect_async_with_config(url, None, true);
    match timeout(Duration::from_secs(10), handshake).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(Error::Http(response))) => {
            let body: Value =
                serde_json::from_slice(response.body().as_deref().unwrap_or_default()).unwrap_or_default();
            let why = format!("refused: {} {}", response.status(), text(&body["message"]));
            // 429: too many connections; 5xx: full or shutting down. Any other says that the request itself is wrong.
            if response.status() != 429 && !response.status().is_server_error() {
                return Err(End::Refused(why));
            }
            let after = response.headers().get("retry-after");
            let seconds = after.and_then(|value| value.to_str().ok()?.parse().ok());
            Err(End::Lost(why, seconds.map(Duration::from_secs)))
        }
        Ok(Err(error @ (Error::Url(_) | Error::HttpFormat(_)))) => Err(End::Refused(error.to_string())),
        Ok(Err(error)) => Err(End::Lost(format!("can't connect: {error}"), None)),
        Err(_) => Err(End::Lost("can't connect: no answer".to_owned(), None)),
    }
}

/// Both directions, until either side has enough.
async fn converse(mut socket: Socket, chat: &mut Chat, lines: &mut mpsc::Receiver<String>) -> End {
    let mut heard = Instant::now();
    let mut asked = false;
    // Set when there is nothing more to say: then only answers are waited for.
    let mut deadline = None;
    loop {
        let silence = heard + if asked { 2 * SILENCE } else { SILENCE };
        if deadline.is_some() && chat.open.is_empty() && chat.own.is_empty() {
            return leave(socket, chat).await;
        }
        tokio::select! {
            received = socket.next() => {
                (heard, asked) = (Instant::now(), false);
                match received {
                    Some(Ok(Message::Text(frame))) => {
                        chat.show(frame.as_str());
                        for again in chat.unanswered() {
                            if let Err(error) = socket.send(Message::text(again)).await {
                                return End::Lost(format!("connection lost: {error}"), None);
                            }
                        }
                    }
                    Some(Ok(Message::Close(frame))) => {
                        let (code, reason) = frame.map_or((1005, String::new()), |f| (f.code.into(), f.reason.to_string()));
                        let why = format!("the server closed: {code} {reason}");
                        // Reading on lets the library send its half of the closing handshake.
                        let _ = timeout(Duration::from_secs(1), socket.next()).await;
                        return if may_return(code) { End::Lost(why, None) } else { End::Refused(why) };
                    }
                    Some(Ok(_)) => {} // Pings are answered by the library.
                    Some(Err(error)) => return End::Lost(format!("connection lost: {error}"), None),
                    None => return End::Lost("connection lost".to_owned(), None),
                }
            }
            line = lines.recv(), if chat.is_ready && deadline.is_none() => {
                let sent = match line.as_deref().map(str::trim) {
                    None | Some("/quit") => {
                        chat.leaving = true;
                        deadline = Some(Instant::now() + LAST_ANSWERS);
                        continue;
                    }
                    Some("") => continue,
                    Some(line) => chat.send(&mut socket, line).await,
                };
                if let Err(error) = sent {
                    return End::Lost(format!("connection lost: {error}"), None);
                }
            }
            () = tokio::time::sleep_until(silence) => {
                if asked {
                    return End::Lost("connection lost: silence".to_owned(), None);
                }
                asked = true;
                let _ = socket.send(Message::text(json!({"type": "ping"}).to_string())).await;
            }
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                return leave(socket, chat).await;
            }
            _ = tokio::signal::ctrl_c() => return leave(socket, chat).await,
        }
    }
}

/// Closes with 1000 and reads until the server's echo: messages may still be on their way.
async fn leave(mut socket: Socket, chat: &mut Chat) -> End {
    let _ = socket
        .close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "bye".into(),
        }))
        .await;
    let rest = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(frame) = message {
                chat.show(frame.as_str());
            }
        }
    };
    let _ = timeout(Duration::from_secs(5), rest).await;
    End::Done
}

/// Something that has an answer: with its `request_id`, be it the wanted one or an `error`.
struct Request {
    /// As it was typed.
    line: String,
    client_message_id: String,
    frame: String,
}

/// What this side of the conversation knows.
#[derive(Default)]
struct Chat {
    user: String,
    json: bool,
    have: Have,
    /// What was missed is not all here yet.
    is_resuming: bool,
    /// Requests without an answer are to be sent again.
    send_again: bool,
    /// They have been, and what is typed may follow.
    is_ready: bool,
    /// Requests without an answer yet, by the number in their `request_id`.
    open: BTreeMap<u32, Request>,
    /// Own messages, by `client_message_id`, that have not come back as `new_message`: before or after the answer.
    own: HashSet<String>,
    last_id: u32,
    /// Nothing more will be sent.
    leaving: bool,
}

impl Chat {
    /// Sends a typed line: a message, or one of the commands.
    async fn send(&mut self, socket: &mut Socket, line: &str) -> Result<(), Error> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let frame = match command {
            "/typing" if rest == "off" => json!({"type": "typing_stop"}),
            "/typing" => json!({"type": "typing_start"}),
            "/join" => self.request(line, "join_session", json!({})),
            // Exactly as typed, right or wrong.
            "/raw" => return socket.send(Message::text(rest)).await,
            _ if line.starts_with('/') && !line.starts_with("//") => {
                notice(
                    "/typing, /typing off, /join, /raw {json}, /quit; a message that begins with / is written //",
                );
                return Ok(());
            }
            _ => {
                let message = line.strip_prefix('/').unwrap_or(line);
                self.request(line, "send_message", json!({"message": message}))
            }
        };
        socket.send(Message::text(frame.to_string())).await
    }

    fn request(&mut self, line: &str, kind: &str, mut data: Value) -> Value {
        self.last_id += 1;
        let request_id = format!("r{}", self.last_id);
        let mut client_message_id = String::new();
        if kind == "send_message" {
            // Comes back in `new_message`, and tells after `outcome_unknown` whether the message got through.
            client_message_id = uuid::Uuid::now_v7().to_string();
            data["client_message_id"] = json!(client_message_id);
            self.own.insert(client_message_id.clone());
        }
        let frame = json!({"type": kind, "data": data, "request_id": request_id});
        self.open.insert(
            self.last_id,
            Request {
                line: line.to_owned(),
                client_message_id,
                frame: frame.to_string(),
            },
        );
        frame
    }

    /// After coming back, once what was missed is here: what still has no answer, to be sent again. A message keeps its
    /// `client_message_id`, by which everyone recognizes it.
    fn unanswered(&mut self) -> Vec<String> {
        if !std::mem::take(&mut self.send_again) {
            return Vec::new();
        }
        self.is_ready = true;
        self.open.values().map(|request| request.frame.clone()).collect()
    }
}

/// Lines of stdin, from a thread of their own since reading them blocks. Lines typed while there is no connection wait.
fn read_stdin() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn arguments() -> Command {
    let kinds = ["customer", "agent", "admin"];
    Command::new("chat")
        .about("Holds a conversation in a terminal. Lines typed are sent; the input's end closes the connection.")
        .after_help("While it runs: /typing, /typing off, /join, /raw {json}, /quit. Times are UTC.")
        .arg(arg!(--url <URL> "The server").default_value("ws://127.0.0.1:8082"))
        .arg(arg!(--session <ID> "The session to enter").required(true))
        .arg(arg!(--user <ID> "Who you are").required(true))
        .arg(arg!(--as <TYPE> "What you are").default_value(kinds[0]).value_parser(kinds))
        .arg(arg!(--json "Print frames as they arrive"))
}
