//! Thousands of WebSocket clients on one thread and one epoll. Frames are cut, not parsed: what is in them is the
//! business of the [`Watcher`], which looks at no more than it measures.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::ws::{self, Answer};

/// Large enough that a read usually takes everything that waits on one connection.
const READ_BUFFER: usize = 256 * 1024;
const EVENTS: usize = 1024;

/// A client's number, in the order in which they were opened.
pub type Id = usize;

/// A workload's handler for events of its clients.
pub trait Watcher {
    /// The upgrade has succeeded.
    fn opened(&mut self, _id: Id, _now: Instant) {}
    /// A text or binary frame; `now` is when it was read.
    fn frame(&mut self, id: Id, payload: &[u8], now: Instant);
    /// The server has ended the connection.
    fn closed(&mut self, id: Id) -> Result<()> {
        bail!("client {id} was closed by the server")
    }
}

pub struct Crowd {
    poll: Poll,
    events: Events,
    clients: Vec<Option<Client>>,
    buffer: Box<[u8]>,
    open: usize,
    /// All bytes read, to detect when nothing more arrives.
    pub bytes: u64,
}

struct Client {
    stream: TcpStream,
    state: State,
    /// The start of an incomplete frame; without one, it holds no memory.
    partial: Vec<u8>,
    /// What the socket did not take.
    unsent: Vec<u8>,
}

enum State {
    /// The request is sent once the connection is established.
    Connecting(Vec<u8>),
    Upgrading,
    Open,
}

impl Crowd {
    pub fn new() -> Result<Self> {
        Ok(Self {
            poll: Poll::new().context("epoll")?,
            events: Events::with_capacity(EVENTS),
            clients: Vec::new(),
            buffer: vec![0; READ_BUFFER].into(),
            open: 0,
            bytes: 0,
        })
    }

    /// Starts a connection.
    pub fn open(&mut self, addr: SocketAddr, path: &str) -> Result<Id> {
        self.open_with(addr, path, None)
    }

    /// The same with a token.
    pub fn open_with(&mut self, addr: SocketAddr, path: &str, token: Option<&str>) -> Result<Id> {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let bearer = bearer.as_deref().map(|bearer| ("Authorization", bearer));
        let request = ws::handshake_with(&addr.to_string(), path, bearer.as_slice());
        let mut stream = TcpStream::connect(addr).with_context(|| format!("connect to {addr}"))?;
        let id = self.clients.len();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(id), interest)?;
        self.clients.push(Some(Client {
            stream,
            state: State::Connecting(request),
            partial: Vec::new(),
            unsent: Vec::new(),
        }));
        self.open += 1;
        Ok(id)
    }

    /// The number of clients, upgraded or connecting.
    pub fn len(&self) -> usize {
        self.open
    }

    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Whether this client has been upgraded and is still connected.
    pub fn is_open(&self, id: Id) -> bool {
        matches!(
            &self.clients[id],
            Some(Client {
                state: State::Open,
                ..
            })
        )
    }

    /// Ends a connection like a vanished browser, without a close frame.
    pub fn drop_client(&mut self, id: Id) {
        if self.clients[id].take().is_some() {
            self.open -= 1;
        }
    }

    pub fn drop_all(&mut self) {
        self.clients.clear();
        self.open = 0;
    }

    /// Sends a text frame.
    pub fn send(&mut self, id: Id, payload: &[u8]) -> Result<()> {
        let client = self.clients[id].as_mut().context("the client is gone")?;
        client.send(ws::TEXT, payload)?;
        Ok(())
    }

    /// Waits for events at most this long, and handles them.
    pub fn turn(&mut self, timeout: Duration, watcher: &mut impl Watcher) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &self.events {
            let Token(id) = event.token();
            let Some(client) = self.clients.get_mut(id).and_then(Option::as_mut) else {
                continue;
            };
            if event.is_writable() {
                client.writable().with_context(|| format!("client {id}"))?;
            }
            let is_open = client
                .readable(id, &mut self.buffer, &mut self.bytes, watcher)
                .with_context(|| format!("client {id}"))?;
            if !is_open {
                self.clients[id] = None;
                self.open -= 1;
                watcher.closed(id)?;
            }
        }
        Ok(())
    }

    /// Handles events until nothing has arrived for `quiet`; false if that takes longer than `patience`.
    pub fn settle(
        &mut self,
        quiet: Duration,
        patience: Duration,
        watcher: &mut impl Watcher,
    ) -> Result<bool> {
        let started = Instant::now();
        let (mut bytes, mut since) = (self.bytes, started);
        while since.elapsed() < quiet {
            if started.elapsed() > patience {
                return Ok(false);
            }
            self.turn(quiet / 4, watcher)?;
            if self.bytes != bytes {
                (bytes, since) = (self.bytes, Instant::now());
            }
        }
        Ok(true)
    }
}

impl Client {
    fn send(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        ws::write_masked(&mut self.unsent, opcode, payload);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        let outcome = loop {
            if sent == self.unsent.len() {
                break Ok(());
            }
            match self.stream.write(&self.unsent[sent..]) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            self.unsent = Vec::new();
        }
        outcome
    }

    fn writable(&mut self) -> Result<()> {
        if let State::Connecting(request) = &mut self.state {
            if let Some(error) = self.stream.take_error()? {
                return Err(error).context("connect");
            }
            // A spurious event: the connection is not established yet.
            if self.stream.peer_addr().is_err() {
                return Ok(());
            }
            self.unsent = std::mem::take(request);
            self.state = State::Upgrading;
            self.stream.set_nodelay(true)?;
        }
        if !self.unsent.is_empty() {
            self.flush()?;
        }
        Ok(())
    }

    /// Reads what is available; false at the end of the stream.
    fn readable(
        &mut self,
        id: Id,
        buffer: &mut [u8],
        bytes: &mut u64,
        watcher: &mut impl Watcher,
    ) -> Result<bool> {
        if matches!(self.state, State::Connecting(_)) {
            return Ok(true);
        }
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(error).context("read"),
            };
            *bytes += read as u64;
            self.take(id, &buffer[..read], watcher)?;
            // A short read has emptied the socket (epoll(7)): the next bytes are a new event.
            if read < buffer.len() {
                return Ok(true);
            }
        }
    }

    fn take(&mut self, id: Id, bytes: &[u8], watcher: &mut impl Watcher) -> Result<()> {
        let now = Instant::now();
        if self.partial.is_empty() {
            let used = self.cut(id, bytes, now, watcher)?;
            self.partial.extend_from_slice(&bytes[used..]);
        } else {
            let mut joined = std::mem::take(&mut self.partial);
            joined.extend_from_slice(bytes);
            let used = self.cut(id, &joined, now, watcher)?;
            if used < joined.len() {
                joined.drain(..used);
                self.partial = joined;
            }
        }
        Ok(())
    }

    /// Passes on whole frames; returns the number of bytes used.
    fn cut(&mut self, id: Id, bytes: &[u8], now: Instant, watcher: &mut impl Watcher) -> Result<usize> {
        let mut used = 0;
        if matches!(self.state, State::Upgrading) {
            match ws::read_answer(bytes) {
                Answer::Partial => return Ok(0),
                Answer::Upgraded(end) => used = end,
                Answer::Refused(line) => bail!("the upgrade was refused: {line}"),
            }
            self.state = State::Open;
            watcher.opened(id, now);
        }
        while let Some(head) = ws::read_head(&bytes[used..]) {
            let Some(frame) = bytes.get(used..used + head.frame()) else {
                break;
            };
            let payload = &frame[head.head..];
            used += head.frame();
            match head.opcode {
                ws::PING => self.send(ws::PONG, payload)?,
                ws::PONG => {}
                ws::CLOSE => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                    bail!("the server closes: {code:?} {reason}")
                }
                _ => watcher.frame(id, payload, now),
            }
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[derive(Default)]
    struct Seen {
        opened: usize,
        frames: Vec<Vec<u8>>,
        closed: usize,
    }

    impl Watcher for Seen {
        fn opened(&mut self, _id: Id, _now: Instant) {
            self.opened += 1;
        }
        fn frame(&mut self, _id: Id, payload: &[u8], _now: Instant) {
            self.frames.push(payload.to_vec());
        }
        fn closed(&mut self, _id: Id) -> Result<()> {
            self.closed += 1;
            Ok(())
        }
    }

    /// Frames that arrive byte by byte, and the pong that a ping gets.
    #[test]
    fn frames_are_cut_wherever_they_are_split() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.set_nodelay(true).unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
            for payload in ["one", &"x".repeat(300)] {
                ws::write_head(&mut bytes, ws::TEXT, payload.len());
                bytes.extend_from_slice(payload.as_bytes());
            }
            ws::write_head(&mut bytes, ws::PING, 2);
            bytes.extend_from_slice(b"hi");
            for byte in bytes {
                socket.write_all(&[byte]).unwrap();
            }
            let mut pong = [0; 8];
            socket.read_exact(&mut pong).unwrap();
            (String::from_utf8(request).unwrap(), pong)
        });
        let (mut crowd, mut seen) = (Crowd::new().unwrap(), Seen::default());
        crowd.open(addr, "/ws/s/u/customer").unwrap();
        while seen.closed == 0 {
            crowd.turn(Duration::from_secs(1), &mut seen).unwrap();
        }
        let (request, pong) = server.join().unwrap();
        assert!(request.starts_with("GET /ws/s/u/customer HTTP/1.1\r\n"));
        assert_eq!(pong, [0x8a, 0x82, 0, 0, 0, 0, b'h', b'i']);
        assert_eq!((seen.opened, seen.frames.len(), crowd.len()), (1, 2, 0));
        assert_eq!(seen.frames[1].len(), 300);
    }
}
