//! The epoll loop: upgrades, the feed of messages, and disconnects.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use livechat_loadtest::{feed, ws};
use mio::net::TcpListener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::rooms::{Batch, Rooms};

const LISTENER: Token = Token(usize::MAX);
const BUFFER: usize = 64 * 1024;

/// The minimum that a client needs; the key is not checked, and neither is the answer to it.
const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const GREETING: &[u8] = br#"{"type":"connection_established","success":true,"data":{}}"#;

struct Client {
    socket: Arc<TcpStream>,
    state: State,
}

enum State {
    /// The request so far.
    Asking(Vec<u8>),
    In(String),
    /// The feed, and a message whose end has not come.
    Feeding(Vec<u8>),
}

pub fn run(addr: SocketAddr, rooms: &Rooms, batched: bool) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(addr).with_context(|| format!("listen on {addr}"))?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; BUFFER];
    let mut batch = Batch::default();
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((socket, _)) = listener.accept() {
                    let socket = TcpStream::from(socket);
                    socket.set_nonblocking(false)?;
                    socket.set_nodelay(true)?;
                    let at = free.pop().unwrap_or_else(|| {
                        clients.push(None);
                        clients.len() - 1
                    });
                    poll.registry().register(
                        &mut SourceFd(&socket.as_raw_fd()),
                        Token(at),
                        Interest::READABLE,
                    )?;
                    clients[at] = Some(Client {
                        socket: Arc::new(socket),
                        state: State::Asking(Vec::new()),
                    });
                }
                continue;
            }
            let Token(at) = event.token();
            let Some(client) = &mut clients[at] else { continue };
            if !client.readable(&mut buffer, rooms, batched.then_some(&mut batch)) {
                if let Some(Client {
                    socket,
                    state: State::In(session),
                }) = clients[at].take()
                {
                    rooms.leave(&session, &socket);
                }
                free.push(at);
            }
        }
    }
}

impl Client {
    /// False if it has disconnected.
    fn readable(&mut self, buffer: &mut [u8], rooms: &Rooms, mut batch: Option<&mut Batch>) -> bool {
        loop {
            // After an event one read does not block; the feed, which may have more than a buffer, never does.
            let read = match self.socket.as_ref().read(buffer) {
                Ok(read) if read > 0 => read,
                // All that the feed has is there.
                end if is_end(&end) => {
                    if let Some(batch) = batch {
                        batch.send(rooms);
                    }
                    return end.is_err();
                }
                _ => return false,
            };
            match &mut self.state {
                State::Asking(request) => {
                    request.extend_from_slice(&buffer[..read]);
                    if request.ends_with(b"\r\n\r\n") {
                        let Some(state) = self.asked(rooms) else {
                            return false;
                        };
                        self.state = state;
                    }
                }
                // Pongs, at most.
                State::In(_) => {}
                State::Feeding(partial) => {
                    partial.extend_from_slice(&buffer[..read]);
                    let used = feed::read(partial, |session, payload| match &mut batch {
                        Some(batch) => batch.push(session, payload),
                        None => rooms.send_one(session, payload),
                    });
                    partial.drain(..used);
                    if let Some(batch) = &mut batch
                        && batch.is_full()
                    {
                        batch.send(rooms);
                    }
                    continue;
                }
            }
            return true;
        }
    }

    /// What the request is for; `None` for unknown requests.
    fn asked(&mut self, rooms: &Rooms) -> Option<State> {
        let State::Asking(request) = &self.state else {
            return None;
        };
        let request = std::str::from_utf8(request).ok()?;
        if request.starts_with(feed::REQUEST) {
            self.socket.set_nonblocking(true).ok()?;
            return Some(State::Feeding(Vec::new()));
        }
        let mut socket = self.socket.as_ref();
        let path = request.strip_prefix("GET ")?.split(' ').next()?;
        let Some(rest) = path.strip_prefix("/ws/") else {
            // Health checks.
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
            return None;
        };
        let session = rest.split('/').next()?.to_owned();
        let mut answer = UPGRADED.to_vec();
        ws::write_head(&mut answer, ws::TEXT, GREETING.len());
        answer.extend_from_slice(GREETING);
        socket.write_all(&answer).ok()?;
        rooms.enter(&session, &self.socket);
        Some(State::In(session))
    }
}

/// Nothing more for now, or for good.
fn is_end(read: &std::io::Result<usize>) -> bool {
    match read {
        Ok(read) => *read == 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}
