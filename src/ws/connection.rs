//! One connection from its upgrade to its end: frames in, and the close handshake.
//!
//! While idle, it has a socket, a small task and no buffer: it waits with a buffer that belongs to its thread, and
//! fastwebsockets' reader, with its 8 KiB, only exists from the first byte of a frame until the connection is between
//! frames with nothing buffered. All that its task keeps is [`Connection`], whose size is multiplied by the number of
//! connections: tests/memory.rs checks it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::{Frame, OpCode, Role, WebSocketError};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

use super::rate::{Bucket, RateLimit, Verdict};
use super::scanner::{Scanned, Scanner};
use crate::auth::Sessions;
use crate::chat::{Chat, ConnectionOrigin, Participant};
use crate::clock::Moment;
use crate::lifecycle::Lifecycle;
use crate::protocol::code::{CloseCode, is_sendable_close_code};
use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::protocol::resume::Resume;
use crate::session::Member;
use crate::writer::{BacklogPolicy, ConnectionWriter, WriterContext};

/// How long, and for how many bytes, a closed connection is still read so that the peer receives our close frame:
/// unread bytes would make the kernel reset the connection (RFC 6455, section 7.1.1).
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 4 << 20;

/// The size of the buffer for waiting connections: that of fastwebsockets' own buffer.
const SCRATCH_BYTES: usize = 8 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

/// What all connections share.
pub struct Shared {
    pub chat: Arc<Chat>,
    pub writer_context: Arc<WriterContext>,
    pub lifecycle: Arc<Lifecycle>,
    pub rate_limit: RateLimit,
    /// `MAX_MESSAGE_BYTES`.
    pub max_message_bytes: usize,
}

/// Who connects, according to the path.
pub struct ConnectParams {
    pub session_id: SessionId,
    pub user_id: UserId,
    pub user_type: UserType,
    /// The client's address, with `TRUSTED_PROXIES` applied.
    pub client: IpAddr,
    /// What it has missed, if it comes back.
    pub resume: Option<Box<Resume>>,
    /// When its token expires, in seconds since 1970, if it needs one.
    pub expires_at: Option<i64>,
    /// The sessions that its token covers.
    pub scope: Sessions,
}

/// Removes the connection from its session, however its task ends.
struct Membership {
    shared: Arc<Shared>,
    participant: Participant,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.shared.chat.leave(&self.participant);
    }
}

/// A connection that has joined its session.
pub struct Connection {
    membership: Membership,
    socket: OwnedReadHalf,
    bucket: Bucket,
    /// The part of a message whose other fragments have not arrived.
    unfinished: Option<Box<Inbound>>,
    /// Bytes that arrived and are not processed yet: at first those that the client sent right after its handshake.
    early: Option<Box<Bytes>>,
}

/// The state of incomplete frames and messages.
struct Inbound {
    scanner: Mutex<Scanner>,
    /// The fragments of a message so far.
    partial: Vec<u8>,
}

/// How a burst of frames ended.
#[derive(PartialEq)]
enum Burst {
    /// Between frames, with nothing buffered.
    Idle,
    /// The connection has ended, or is closing.
    Over,
}

impl Connection {
    /// Joins with an upgraded socket. `answer` is sent before the greeting; `early` is what the client sent right after
    /// its handshake.
    pub fn join(
        socket: TcpStream,
        answer: Bytes,
        early: Bytes,
        params: ConnectParams,
        shared: Arc<Shared>,
    ) -> Self {
        let (socket, write_half) = socket.into_split();
        let writer = ConnectionWriter::new(write_half, answer, Arc::clone(&shared.writer_context));
        let member = Member {
            writer,
            user_id: params.user_id,
        };
        let origin = ConnectionOrigin::now(params.client);
        let (chat, user_type, expires_at) = (&shared.chat, params.user_type, params.expires_at);
        let participant = match params.session_id.is_lobby() {
            true => chat.join_lobby(member, user_type, origin, expires_at, params.scope),
            false => chat.join(
                &params.session_id,
                member,
                user_type,
                params.resume,
                origin,
                expires_at,
            ),
        };
        // The drain closes the connections that it finds in sessions; one that joins later is closed here.
        if shared.lifecycle.is_draining() {
            participant.member.writer.close_for_drain();
        }
        Self {
            membership: Membership { shared, participant },
            socket,
            bucket: Bucket::default(),
            unfinished: None,
            // An empty buffer still pins hyper's 8 KiB.
            early: (!early.is_empty()).then(|| Box::new(early)),
        }
    }

    pub fn writer(&self) -> &Arc<ConnectionWriter> {
        &self.membership.participant.member.writer
    }

    /// Serves the connection to its end, and drops `holds` last.
    #[allow(
        clippy::manual_async_fn,
        reason = "an async fn stores its arguments twice: as passed and as used"
    )]
    pub fn run(mut self, holds: impl Send) -> impl Future<Output = ()> + Send {
        async move {
            // The parts are boxed, and no bytes are held across an await, so that the idle task reserves no space for
            // them.
            loop {
                let reading = match poll_fn(|cx| self.poll_first(cx)).await {
                    Some(first) => Box::pin(self.read_burst(first)),
                    None => break,
                };
                if reading.await == Burst::Over {
                    break;
                }
            }
            Box::pin(self.end()).await;
            drop(holds);
        }
    }

    /// Waits for bytes; `None` when either side ends the connection.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self
            .membership
            .participant
            .member
            .writer
            .poll_closing(cx)
            .is_ready()
        {
            return Poll::Ready(None);
        }
        if let Some(early) = self.early.take() {
            return Poll::Ready(Some(*early));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            let read = ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer));
            let bytes = buffer.filled();
            if !bytes.is_empty() {
                self.membership.participant.member.writer.note_received();
            }
            Poll::Ready((read.is_ok() && !bytes.is_empty()).then(|| Bytes::copy_from_slice(bytes)))
        })
    }

    /// Leaves the session and closes the socket.
    async fn end(self) {
        let Self {
            membership,
            mut socket,
            ..
        } = self;
        let writer = Arc::clone(&membership.participant.member.writer);
        drop(membership);
        // The socket is closed here in any case: a flusher may still hold it for a peer that doesn't read, and the
        // sweep and MAX_CONNECTIONS no longer cover it.
        if writer.is_open() || linger(&mut socket).await {
            writer.peer_gone();
        } else {
            writer.abort();
        }
    }

    /// Reads from `first` on, until the connection is between frames with nothing buffered.
    async fn read_burst(&mut self, mut first: Bytes) -> Burst {
        let Self {
            membership: Membership { shared, participant },
            socket,
            bucket,
            unfinished,
            early,
        } = self;
        let mut inbound = unfinished.take().unwrap_or_else(|| {
            Box::new(Inbound {
                scanner: Mutex::new(Scanner::new(shared.max_message_bytes)),
                partial: Vec::new(),
            })
        });
        let burst = inbound
            .read(&mut first, socket, bucket, participant, shared)
            .await;
        // The reader takes only as much as fits its buffer: if a frame ended there, the rest is still here.
        if !first.is_empty() {
            *early = Some(Box::new(first));
        }
        if burst == Burst::Idle && !inbound.scanner.lock().is_between_messages() {
            *unfinished = Some(inbound);
        }
        burst
    }
}

impl Inbound {
    async fn read(
        &mut self,
        first: &mut Bytes,
        socket: &mut OwnedReadHalf,
        bucket: &mut Bucket,
        participant: &Participant,
        shared: &Shared,
    ) -> Burst {
        let Self { scanner, partial } = self;
        let writer = &participant.member.writer;
        let scanned = Scanned {
            scanner,
            prefix: first,
            socket: &mut ReportingSocket { socket, writer },
        };
        let take = |frame: Frame<'_>| {
            if !writer.is_open() {
                return ControlFlow::Break(());
            }
            handle_frame(frame, bucket, partial, participant, shared)
        };
        match read_frames(scanned, shared.max_message_bytes, take).await {
            Ok(burst) => burst,
            Err(error) => {
                end_for(&error, scanner, writer);
                Burst::Over
            }
        }
    }
}

/// Reads frames until the connection is between them with nothing buffered; the prefix of `scanned` may not be used up
/// by then.
async fn read_frames<R: AsyncRead + Unpin>(
    scanned: Scanned<'_, R>,
    max_message_bytes: usize,
    mut take: impl FnMut(Frame<'_>) -> ControlFlow<()>,
) -> Result<Burst, WebSocketError> {
    let scanner = scanned.scanner;
    // Only the writer writes: the reader's own write half is a sink.
    let (mut reader, _) = fastwebsockets::after_handshake_split(scanned, tokio::io::sink(), Role::Server);
    reader.set_auto_close(false);
    reader.set_auto_pong(false);
    // This limit is exclusive and per frame: the scanner limits whole messages.
    reader.set_max_message_size(max_message_bytes.max(125) + 1);
    loop {
        let frame = reader
            .read_frame(&mut |_| std::future::ready(Ok::<_, Infallible>(())))
            .await?;
        if take(frame).is_break() {
            return Ok(Burst::Over);
        }
        let mut scanner = scanner.lock();
        scanner.frame_read();
        if scanner.is_idle() {
            return Ok(Burst::Idle);
        }
    }
}

/// A socket that reports incoming bytes as signs of life: during a long frame a client can send nothing else.
struct ReportingSocket<'a> {
    socket: &'a mut OwnedReadHalf,
    writer: &'a ConnectionWriter,
}

impl AsyncRead for ReportingSocket<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut *self.socket).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.writer.note_received();
        }
        polled
    }
}

/// Handles one frame; returns whether the connection continues.
fn handle_frame(
    mut frame: Frame<'_>,
    bucket: &mut Bucket,
    partial: &mut Vec<u8>,
    participant: &Participant,
    shared: &Shared,
) -> ControlFlow<()> {
    let writer = &participant.member.writer;
    match frame.opcode {
        OpCode::Close => {
            handle_close(&frame.payload, writer);
            return ControlFlow::Break(());
        }
        OpCode::Text | OpCode::Continuation if !frame.fin => {
            partial.extend_from_slice(&frame.payload);
            return ControlFlow::Continue(());
        }
        _ => {}
    }
    let verdict = bucket.spend(&shared.rate_limit, Moment::now());
    if verdict == Verdict::Flood {
        writer.close(CloseCode::Policy, "rate limit ignored", BacklogPolicy::Discard);
        return ControlFlow::Break(());
    }
    let is_allowed = verdict == Verdict::Allowed;
    let handle = |text: &mut [u8]| {
        if is_allowed {
            shared.chat.handle(participant, text)
        } else {
            shared.chat.refuse_for_rate(participant, text)
        }
    };
    match frame.opcode {
        // A ping over the rate limit gets no pong; a later one will.
        OpCode::Ping if is_allowed => writer.pong(&frame.payload),
        // Our own pings cause few pongs; more of them count as a flood like anything else.
        OpCode::Ping | OpCode::Pong => {}
        OpCode::Continuation => {
            let mut message = std::mem::take(partial);
            message.extend_from_slice(&frame.payload);
            if simdutf8::basic::from_utf8(&message).is_err() {
                writer.close(
                    CloseCode::InvalidUtf8,
                    "text is not UTF-8",
                    BacklogPolicy::Discard,
                );
                return ControlFlow::Break(());
            }
            handle(&mut message);
        }
        // fastwebsockets has checked that it is UTF-8.
        _ => handle(frame.payload.to_mut()),
    }
    ControlFlow::Continue(())
}

/// The client's close (RFC 6455, sections 5.5.1 and 7.4).
fn handle_close(payload: &[u8], writer: &Arc<ConnectionWriter>) {
    let (code, reason) = match payload {
        [] => return writer.echo_close(None),
        [_] => {
            writer.close(
                CloseCode::Protocol,
                "close payload of one byte",
                BacklogPolicy::Discard,
            );
            return;
        }
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !is_sendable_close_code(code) {
        writer.close(
            CloseCode::Protocol,
            "close code is not allowed",
            BacklogPolicy::Discard,
        );
    } else if std::str::from_utf8(reason).is_err() {
        writer.close(
            CloseCode::InvalidUtf8,
            "close reason is not UTF-8",
            BacklogPolicy::Discard,
        );
    } else {
        writer.echo_close(Some(code));
    }
}

/// The reader has failed: closes with the reason, if the peer broke a rule.
fn end_for(error: &WebSocketError, scanner: &Mutex<Scanner>, writer: &Arc<ConnectionWriter>) {
    if let Some(violation) = scanner.lock().violation() {
        writer.close(violation.code, violation.reason, BacklogPolicy::Discard);
        return;
    }
    match error {
        WebSocketError::InvalidUTF8 => {
            writer.close(
                CloseCode::InvalidUtf8,
                "text is not UTF-8",
                BacklogPolicy::Discard,
            );
        }
        WebSocketError::UnexpectedEOF | WebSocketError::IoError(_) => {}
        error => {
            // The scanner should stop everything that the reader refuses.
            tracing::error!(%error, "the reader refused what the scanner let pass");
            writer.close(CloseCode::Internal, "internal error", BacklogPolicy::Discard);
        }
    }
}

/// Discards what the peer of a closed connection still sends; returns whether the peer ended the connection in time.
async fn linger(socket: &mut OwnedReadHalf) -> bool {
    let discard = async {
        let (mut scrap, mut total) = ([0; 2048], 0);
        while total < LINGER_BYTES {
            match socket.read(&mut scrap).await {
                Ok(0) | Err(_) => return true,
                Ok(read) => total += read,
            }
        }
        false
    };
    tokio::time::timeout(LINGER, discard).await.unwrap_or(false)
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
