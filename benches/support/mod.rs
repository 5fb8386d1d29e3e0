//! Sessions with real sockets, as in a server but without a handshake, and readers that drain them.
//! Shared by the benchmarks and by `tests/allocations.rs`.

#![allow(dead_code, reason = "no user of this module needs all of it")]

mod readers;
mod records;

use std::cell::OnceCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use livechat_ws::bus::Router;
use livechat_ws::fanout::backend::{ChunkSender, Delivered, FanoutBackend, RingInUse};
use livechat_ws::fanout::slow_readers::WaitBudget;
use livechat_ws::metrics::Metrics;
use livechat_ws::protocol::ids::{SessionId, UserId, UserType};
use livechat_ws::protocol::server::{self, Identity};
use livechat_ws::session::{Member, Registry, Session};
use livechat_ws::writer::{BorrowedChunk, Start};
use livechat_ws::writer::{ClosingWriters, ConnectionWriter, QueueLimits, SendMemory, WriterContext};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use readers::Readers;
pub use records::Record;

/// The defaults of `SEND_QUEUE_BYTES` and `MAX_RECORD_BYTES`.
const SEND_QUEUE_BYTES: usize = 1 << 20;
const MAX_RECORD_BYTES: usize = 1 << 20;

/// More than any benchmark queues.
const SEND_MEMORY_BYTES: usize = 1 << 30;

/// What the listener allows the kernel to hold unsent for a socket.
const UNSENT_BYTES: u32 = 128 * 1024;

/// Longer than any batch takes on a slow machine: beyond it something was lost, and waiting on would hide that.
const PATIENCE: Duration = Duration::from_secs(30);

/// A timestamp of the wire's length.
pub const TIMESTAMP: &str = "2026-01-31T09:30:00.000Z";

pub fn session_id(n: usize) -> SessionId {
    SessionId::parse(&format!("session_{n:05}")).expect("a valid id")
}

pub fn user_id(n: usize) -> UserId {
    UserId::parse(&format!("user_{n:05}")).expect("a valid id")
}

/// One batch, as a bus delivers it.
pub fn deliver(router: &mut Router, batch: &[Record]) {
    for record in batch {
        router.route(&record.incoming());
    }
    router.deliver_batch();
}

/// One chunk to every member, as delivery sends it.
pub fn fan_out(
    session: &Session,
    chunk: &Bytes,
    backend: &mut FanoutBackend,
    budget: &mut WaitBudget,
) -> Delivered {
    let members = session.members();
    let mut delivered = [Delivered::default()];
    let copy = OnceCell::new();
    let mut chunk_sender = ChunkSender::new(backend, budget, &mut delivered);
    chunk_sender.send_to_members(0, &members, BorrowedChunk::new(chunk, 0, &copy));
    chunk_sender.send_reserved();
    drop(chunk_sender);
    delivered[0]
}

/// Creates a backend.
type Way = fn() -> FanoutBackend;

/// Both backends, by their names in `FANOUT_IO`.
pub const BACKENDS: [(&str, Way); 2] = [
    ("send", || FanoutBackend::Send),
    ("uring", || FanoutBackend::RingRequested(RingInUse::default())),
];

/// Sessions, each with as many sockets.
pub struct Sessions {
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub sessions: Vec<Arc<Session>>,
    sockets_each: usize,
    readers: Arc<Readers>,
    /// Readers and flushers run here: one worker, so that delivery has a core of two to itself.
    pub runtime: Runtime,
}

impl Sessions {
    pub fn open(sessions: usize, sockets_each: usize) -> Self {
        // Two descriptors for each socket: more than the usual soft limit.
        let _ = rlimit::increase_nofile_limit(u64::MAX);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let metrics = Arc::new(Metrics::default());
        let context = Arc::new(WriterContext {
            queue: QueueLimits::new(SEND_QUEUE_BYTES, PATIENCE, SendMemory::new(SEND_MEMORY_BYTES)),
            ping_interval: PATIENCE,
            pong_timeout: PATIENCE,
            token_leeway: 0,
            runtime: runtime.handle().clone(),
            metrics: Arc::clone(&metrics),
            closing: ClosingWriters::default(),
        });
        let mut opened = Self {
            registry: Arc::default(),
            metrics,
            sessions: Vec::new(),
            sockets_each,
            readers: Arc::default(),
            runtime,
        };
        let listener = opened.runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a listener");
        for n in 0..sessions {
            let session_id = session_id(n);
            let (mut session, mut greetings) = (None, 0);
            for user in 0..sockets_each {
                let connection = connect(&listener, &opened.readers, &context);
                let writer = opened.runtime.block_on(connection);
                let member = Member {
                    writer: writer.expect("a connection over loopback"),
                    user_id: user_id(user),
                };
                let greeting = greeting(&session_id, &member.user_id);
                greetings += greeting.len();
                let greet = |_| greeting.clone();
                let joined =
                    opened
                        .registry
                        .join(&session_id, &member, UserType::Customer, Start::Live, greet);
                session = Some(joined.0);
            }
            opened.sessions.extend(session);
            opened.expect(greetings);
        }
        opened.wait();
        opened
    }

    pub fn router(&self, backend: FanoutBackend) -> Router {
        Router::new(
            Arc::clone(&self.registry),
            Arc::default(),
            Box::new(|_, _| {}),
            Arc::clone(&self.metrics),
            "node".into(),
            MAX_RECORD_BYTES,
            backend,
        )
    }

    /// Expects the readers to get this many more bytes.
    pub fn expect(&self, bytes: usize) {
        self.readers.expect(bytes);
    }

    /// Waits until the readers have everything expected: then all queues are empty.
    pub fn wait(&self) {
        self.readers.wait();
    }

    /// Delivers a batch and waits until the readers have it.
    pub fn deliver(&self, router: &mut Router, batch: &[Record]) {
        self.expect_batch(batch);
        deliver(router, batch);
        self.wait();
    }

    /// A counter as the metrics page shows it.
    pub fn metric(&self, name: &str) -> u64 {
        let page = self.metrics.page();
        let prefix = format!("livechat_{name}_total ");
        let value = page.lines().find_map(|line| line.strip_prefix(&prefix));
        value.expect("a metric of that name").parse().expect("a count")
    }

    /// Expects the readers to get a batch's frames.
    pub fn expect_batch(&self, batch: &[Record]) {
        let bytes: usize = batch.iter().map(|record| record.frame_len).sum();
        self.expect(bytes * self.sockets_each);
    }
}

/// A member whose socket is closed: it can join and leave, but nothing is written.
pub fn mute_member() -> Member {
    let member = Sessions::open(1, 1).sessions[0].members()[0].clone();
    member.writer.peer_gone();
    member
}

pub fn greeting(session_id: &SessionId, user_id: &UserId) -> Bytes {
    let who = Identity {
        session_id,
        user_id,
        user_type: UserType::Customer,
    };
    server::connection_established(who, TIMESTAMP, None)
}

/// One connection: its writer here, its reader on the runtime.
async fn connect(
    listener: &TcpListener,
    readers: &Arc<Readers>,
    context: &Arc<WriterContext>,
) -> io::Result<Arc<ConnectionWriter>> {
    let address = listener.local_addr()?;
    let (client, (socket, _)) = tokio::try_join!(TcpStream::connect(address), listener.accept())?;
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    let (_, writer) = socket.into_split();
    // A socket counts as not writable until the driver has reported it once.
    writer.writable().await?;
    tokio::spawn(Arc::clone(readers).drain(client));
    Ok(ConnectionWriter::new(writer, Bytes::new(), Arc::clone(context)))
}
