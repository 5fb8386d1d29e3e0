//! The steps of tests/interop/README.md with tungstenite.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

const TIMEOUT: Duration = Duration::from_secs(20);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut request = std::env::var("INTEROP_URL")?.into_client_request()?;
    let offered = "livechat.v1".parse()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", offered);
    let (mut socket, response) = connect_async(request).await?;
    let answered = response.headers().get("Sec-WebSocket-Protocol");
    ensure!(
        answered.is_some_and(|name| name == "livechat.v1"),
        "the subprotocol is {answered:?}"
    );

    let mut is_first = true;
    until(&mut socket, "a first frame", |message| {
        let frame = parse(message)?;
        ensure!(
            is_first && frame["type"] == "connection_established",
            "another first frame: {frame}"
        );
        is_first = false;
        Ok(true)
    })
    .await?;
    println!("connect");

    say(&mut socket, "small", "Grüße, José 😀").await?;
    println!("send\nreceive");
    say(&mut socket, "large", &"x".repeat(60_000)).await?;
    println!("large");

    let payload = Bytes::from_static(b"are you there");
    socket.send(Message::Ping(payload.clone())).await?;
    until(&mut socket, "a pong", |message| {
        Ok(*message == Message::Pong(payload.clone()))
    })
    .await?;
    println!("ping");

    // Three pings of the server's; they are answered while reading.
    let mut pings = 0;
    until(&mut socket, "three pings", |message| {
        pings += u32::from(message.is_ping());
        Ok(pings == 3)
    })
    .await?;
    socket
        .send(Message::text(
            json!({"type": "ping", "request_id": "after"}).to_string(),
        ))
        .await?;
    until(&mut socket, "an answer", |message| {
        Ok(message.is_text() && parse(message)?["request_id"] == "after")
    })
    .await?;
    println!("alive");

    let done = CloseFrame {
        code: CloseCode::Normal,
        reason: "done".into(),
    };
    socket.close(Some(done)).await?;
    until(&mut socket, "a close", |message| match message {
        Message::Close(Some(frame)) if frame.code == CloseCode::Normal => Ok(true),
        Message::Close(other) => bail!("closed with {other:?}"),
        _ => Ok(false),
    })
    .await?;
    println!("close");
    Ok(())
}

fn parse(message: &Message) -> Result<Value> {
    Ok(serde_json::from_str(message.to_text()?)?)
}

async fn say(socket: &mut Socket, id: &str, text: &str) -> Result<()> {
    let data = json!({"message": text, "client_message_id": id});
    let frame = json!({"type": "send_message", "data": data});
    socket.send(Message::text(frame.to_string())).await?;
    let mut missing = HashSet::from(["message_sent", "new_message"]);
    until(socket, "message_sent and new_message", |message| {
        if !message.is_text() {
            return Ok(false);
        }
        let frame = parse(message)?;
        if frame["data"]["client_message_id"] == id {
            missing.remove(frame["type"].as_str().unwrap_or_default());
            let is_same = frame["type"] != "new_message" || frame["data"]["message"] == text;
            ensure!(is_same, "the text came back changed");
        }
        Ok(missing.is_empty())
    })
    .await
}

/// Reads until `wanted` is true.
async fn until(
    socket: &mut Socket,
    what: &str,
    mut wanted: impl FnMut(&Message) -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let next = timeout_at(deadline, socket.next()).await;
        let message = next.with_context(|| format!("no {what}"))?;
        let message = message.with_context(|| format!("the end of the connection, not {what}"))??;
        if wanted(&message)? {
            return Ok(());
        }
    }
}
