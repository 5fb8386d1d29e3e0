//! A blocking WebSocket over a bare socket: sends whatever the test wants, byte by byte if need be.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::Server;
use super::http::{Http, Response, head, is_reset};
use super::spec::frames;
use super::wire::{Frame, Opcode};

/// The handshake's key, RFC 6455's own example, and the answer to it.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The headers of a good handshake, to be changed one at a time.
pub const HANDSHAKE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", KEY),
];

pub struct RawWs {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl RawWs {
    /// Connects and reads `connection_established`.
    #[track_caller]
    pub fn connect(server: &Server, session: &str, user: &str, user_type: &str) -> Self {
        let path = format!("/ws/{session}/{user}/{user_type}");
        let mut ws = Self::connect_path(server.http_addr(), &path);
        let first = ws.read_json();
        assert_eq!(
            first["type"], "connection_established",
            "the first frame: {first}"
        );
        ws
    }

    /// As [`Self::connect`], with so small a receive buffer that the kernel hides no backlog from the server.
    #[track_caller]
    pub fn connect_narrow(server: &Server, session: &str, user: &str, user_type: &str) -> Self {
        let mut http = Http::over(narrow(server.http_addr(), 4096)).expect("a connected socket");
        http.write(handshake(&format!("/ws/{session}/{user}/{user_type}"), &[]).as_bytes());
        let mut ws = Self::upgraded(http).expect("an upgrade");
        assert_eq!(ws.read_json()["type"], "connection_established");
        ws
    }

    /// Connects and reads nothing beyond the 101.
    #[track_caller]
    pub fn connect_path(addr: SocketAddr, path: &str) -> Self {
        Self::try_connect(addr, path, &[])
            .unwrap_or_else(|refusal| panic!("refused: {refusal:?} {}", refusal.text()))
    }

    /// Connects with extra headers: the socket, or the refusal.
    #[track_caller]
    pub fn try_connect(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Response> {
        let mut http = Http::connect(addr);
        http.write(handshake(path, headers).as_bytes());
        Self::upgraded(http)
    }

    /// Takes the connection over when the next response is a 101.
    #[track_caller]
    pub fn upgraded(mut http: Http) -> Result<Self, Response> {
        let response = http.read().expect("an answer to the handshake");
        if response.status != 101 {
            return Err(response);
        }
        Ok(Self::over(http))
    }

    /// Takes over a connection whose 101 was read.
    pub fn over(http: Http) -> Self {
        let (stream, buffer) = http.into_parts();
        Self { stream, buffer }
    }

    /// Writes exact bytes; it is no error if the peer has already closed, since the test reads its close next.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.try_write(bytes);
    }

    /// As [`Self::write`]: false when the server has closed.
    #[track_caller]
    pub fn try_write(&mut self, bytes: &[u8]) -> bool {
        match self.stream.write_all(bytes) {
            Ok(()) => true,
            Err(error) if is_reset(&error) => false,
            Err(error) => panic!("write: {error}"),
        }
    }

    #[track_caller]
    pub fn send(&mut self, frame: Frame) {
        self.write(&frame.encode());
    }

    #[track_caller]
    pub fn send_json(&mut self, value: &Value) {
        self.send(Frame::text(value.to_string()));
    }

    /// Writes the bytes in two segments, cut at `at`.
    #[track_caller]
    pub fn write_split(&mut self, bytes: &[u8], at: usize) {
        self.write(&bytes[..at]);
        // Not a proof of anything: it only makes it likely that the server reads the halves apart.
        std::thread::sleep(Duration::from_millis(1));
        self.write(&bytes[at..]);
    }

    /// The next frame, or None at the end of the stream. A server never masks, sets RSV or fragments.
    #[track_caller]
    pub fn read_frame(&mut self) -> Option<Frame> {
        self.try_read_frame()
            .unwrap_or_else(|error| panic!("no frame: {error}"))
    }

    pub fn try_read_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some((frame, size)) = Frame::decode(&self.buffer) {
                self.buffer.drain(..size);
                assert!(frame.mask.is_none(), "a masked frame from the server: {frame:?}");
                assert!(
                    frame.rsv == 0 && frame.fin,
                    "RSV or a fragment from the server: {frame:?}"
                );
                check(&frame);
                return Ok(Some(frame));
            }
            if self.fill()? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads once from the socket into the buffer; 0 at the end of the stream, a reset included.
    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(read)
            }
            Err(error) if is_reset(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Reads what the kernel has, at most this many bytes, without waiting. False if the stream has ended.
    pub fn gulp(&mut self, most: usize) -> io::Result<bool> {
        self.stream.set_nonblocking(true)?;
        let end = self.buffer.len() + most;
        let mut chunk = [0; 64 * 1024];
        let is_open = loop {
            let room = chunk.len().min(end - self.buffer.len());
            if room == 0 {
                break Ok(true);
            }
            match self.stream.read(&mut chunk[..room]) {
                Ok(0) => break Ok(false),
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(true),
                Err(error) if is_reset(&error) => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        self.stream.set_nonblocking(false)?;
        is_open
    }

    /// How many bytes were read and belong to no frame that was taken.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The whole frames among what was read so far.
    pub fn buffered_frames(&mut self) -> Vec<Frame> {
        let (mut frames, mut at) = (Vec::new(), 0);
        while let Some((frame, size)) = Frame::decode(&self.buffer[at..]) {
            check(&frame);
            frames.push(frame);
            at += size;
        }
        self.buffer.drain(..at);
        frames
    }

    /// The next text frame as JSON; other frames are an error, except for pings, which are answered: a busy machine may take
    /// as long as the server waits before it sends one.
    #[track_caller]
    pub fn read_json(&mut self) -> Value {
        let frame = loop {
            let frame = self
                .read_frame()
                .expect("a text frame, not the end of the stream");
            if !frame.is(Opcode::Ping) {
                break frame;
            }
            self.send(Frame::pong(frame.payload));
        };
        assert!(
            frame.is(Opcode::Text),
            "not text: {frame:?}, close code {:?}",
            frame.payload.first_chunk::<2>()
        );
        serde_json::from_slice(&frame.payload).expect("JSON in a text frame")
    }

    /// Skips to the next text frame of this type.
    #[track_caller]
    pub fn next(&mut self, kind: &str) -> Value {
        loop {
            let value = self.read_json();
            if value["type"] == kind {
                return value;
            }
        }
    }

    /// Skips to the next pong frame: its payload.
    #[track_caller]
    pub fn next_pong_payload(&mut self) -> Vec<u8> {
        loop {
            let frame = self.read_frame().expect("a pong, not the end of the stream");
            assert!(!frame.is(Opcode::Close), "closed: {frame:?}");
            if frame.is(Opcode::Pong) {
                return frame.payload;
            }
        }
    }

    /// Skips to the close frame and then expects the end of the stream: its payload. None when the stream ended
    /// without a close frame.
    #[track_caller]
    pub fn read_close(&mut self) -> Option<Frame> {
        loop {
            let frame = self.read_frame()?;
            if frame.is(Opcode::Close) {
                return Some(frame);
            }
        }
    }

    /// Skips to the close frame: its code; 1005 when it is empty. Then the stream must end.
    #[track_caller]
    pub fn expect_close(&mut self) -> u16 {
        let frame = self
            .read_close()
            .expect("a close frame before the end of the stream");
        let code = frame.close_code().unwrap_or(1005);
        // The answer a client owes; the server may have closed already.
        self.try_write(&Frame::new(Opcode::Close, &frame.payload).encode());
        self.expect_end();
        code
    }

    /// Asserts that the stream ends here.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let frame = self.read_frame();
        assert!(frame.is_none(), "a frame after the close: {frame:?}");
    }

    /// Proves that the connection lives: a ping with this payload is answered, text frames before it are returned.
    #[track_caller]
    pub fn expect_alive(&mut self) -> Vec<Value> {
        self.send(Frame::ping("alive?"));
        let mut texts = Vec::new();
        loop {
            let frame = self.read_frame().expect("a pong, not the end of the stream");
            if frame.is(Opcode::Pong) && frame.payload == b"alive?" {
                return texts;
            }
            assert!(
                frame.is(Opcode::Text) || frame.is(Opcode::Pong) || frame.is(Opcode::Ping),
                "{frame:?}"
            );
            if frame.is(Opcode::Text) {
                texts.push(serde_json::from_slice(&frame.payload).expect("JSON"));
            }
        }
    }

    pub fn shutdown_write(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    pub fn set_read_timeout(&self, timeout: Duration) {
        self.stream
            .set_read_timeout(Some(timeout))
            .expect("set a timeout");
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Resets the connection instead of closing it.
    pub fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("set linger");
    }
}

/// Every text of the server has a schema.
#[track_caller]
fn check(frame: &Frame) {
    if frame.is(Opcode::Text) {
        let text = std::str::from_utf8(&frame.payload).expect("UTF-8 from the server");
        frames::received(text);
    }
}

/// A connected socket with a receive buffer of this size, which the kernel doubles and no longer grows by itself.
#[track_caller]
pub fn narrow(addr: SocketAddr, receive_buffer: usize) -> TcpStream {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("a socket");
    socket
        .set_recv_buffer_size(receive_buffer)
        .expect("set the receive buffer");
    socket.connect(&addr.into()).expect("connect");
    socket.into()
}

/// The bytes of a good handshake with extra headers.
pub fn handshake(path: &str, headers: &[(&str, &str)]) -> String {
    head("GET", path, &[&HANDSHAKE[..], headers].concat())
}

/// The good handshake's headers with one replaced, or left out when `value` is None.
pub fn handshake_with<'a>(name: &'a str, value: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    let mut headers: Vec<_> = HANDSHAKE
        .into_iter()
        .filter(|(n, _)| !n.eq_ignore_ascii_case(name))
        .collect();
    headers.extend(value.map(|value| (name, value)));
    headers
}
