//! Sessions with real sockets behind them, as a server has them but for the handshake, and readers that drain them.
//! Shared by the benchmarks and by `tests/allocations.rs`.

#![allow(dead_code, reason = "no user of this module needs all of it")]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use livechat_ws::bus::Delivery;
use livechat_ws::metrics::Metrics;
use livechat_ws::protocol::frame;
use livechat_ws::protocol::ids::{SessionId, UserId, UserType};
use livechat_ws::protocol::record::{Converter, Form, Incoming, Topic};
use livechat_ws::protocol::server::{self, Identity, NewMessage};
use livechat_ws::session::fanout::{self, Delivered, Patience, WaitBudget};
use livechat_ws::session::typists::Typists;
use livechat_ws::session::{Member, Registry, Session};
use livechat_ws::ws::{Outbox, OutboxLimits, QueueLimits};
use parking_lot::{Condvar, Mutex};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// The defaults of `SEND_QUEUE_BYTES` and `MAX_RECORD_BYTES`.
const SEND_QUEUE_BYTES: usize = 1 << 20;
const MAX_RECORD_BYTES: usize = 1 << 20;

/// What the listener allows the kernel to hold unsent for a socket.
const UNSENT_BYTES: u32 = 128 * 1024;

/// What a reader asks for at once.
const READ_BYTES: usize = 16 * 1024;

/// Longer than any batch of ours takes on a slow machine: then something is lost, and waiting on would hide it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A timestamp of the wire's length.
pub const TIMESTAMP: &str = "2026-01-31T09:30:00.000Z";

pub fn session_id(n: usize) -> SessionId {
    SessionId::parse(&format!("session_{n:05}")).expect("a valid id")
}

pub fn user_id(n: usize) -> UserId {
    UserId::parse(&format!("user_{n:05}")).expect("a valid id")
}

/// A record of the log, and how long its frame is.
pub struct Record {
    pub session_id: SessionId,
    pub form: Form,
    pub value: Vec<u8>,
    pub frame_len: usize,
}

impl Record {
    /// As this server writes it, with a text of `text_len` bytes: 100 make a payload of some 300.
    pub fn native(session_id: &SessionId, text_len: usize) -> Self {
        let value = server::new_message(&NewMessage {
            message_id: "018f4e3a-7c1e-7000-8000-000000000000",
            session_id,
            sender_id: &user_id(0),
            sender_type: UserType::Agent,
            message: &"x".repeat(text_len),
            message_type: "text",
            attachments: (),
            timestamp: TIMESTAMP,
            client_message_id: None,
        });
        Self {
            session_id: session_id.clone(),
            form: Form::Native,
            frame_len: frame::text_frame_len(value.len()),
            value,
        }
    }

    /// As the old backend writes it.
    pub fn old(session_id: &SessionId, text_len: usize) -> Self {
        let text = "x".repeat(text_len);
        let value = format!(
            r#"{{"id":"018f4e3a-7c1e-7000-8000-000000000000","session_id":"{session_id}","sender_id":"user_00000",
            "sender_type":"agent","message":"{text}","message_type":"text","attachments":null,"read_at":null,
            "created_at":"2026-01-31 09:30:00.123456+07:00","updated_at":"2026-01-31 09:30:00.123456+07:00",
            "show_escalation_offer":false}}"#
        );
        let converted = Converter::default().message(value.as_bytes(), |_| true);
        let (_, payload) = converted.expect("a good record").expect("a wanted record");
        Self {
            session_id: session_id.clone(),
            form: Form::Old,
            frame_len: frame::text_frame_len(payload.len()),
            value: value.into_bytes(),
        }
    }

    pub fn incoming(&self) -> Incoming<'_> {
        Incoming {
            topic: Topic::Messages,
            partition: 0,
            offset: 0,
            form: self.form,
            key: Some(self.session_id.as_str().as_bytes()),
            value: Some(&self.value),
            node: None,
        }
    }
}

/// One batch, as a bus delivers it.
pub fn deliver(delivery: &mut Delivery, batch: &[Record]) {
    for record in batch {
        delivery.push(&record.incoming());
    }
    delivery.flush();
}

/// One chunk to every member, as delivery sends it.
pub fn fan_out(session: &Session, chunk: &Bytes, budget: &mut WaitBudget) -> Delivered {
    fanout::deliver(&session.members(), chunk, None, Patience::Wait(budget))
}

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
        let limits = Arc::new(OutboxLimits {
            queue: QueueLimits::new(SEND_QUEUE_BYTES, PATIENCE),
            ping_interval: PATIENCE,
            pong_timeout: PATIENCE,
            runtime: runtime.handle().clone(),
            metrics: Arc::clone(&metrics),
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
            let mut greetings = 0;
            for user in 0..sockets_each {
                let connected = opened
                    .runtime
                    .block_on(connect(&listener, &opened.readers, &limits));
                let member = Member {
                    outbox: connected.expect("a connection over loopback"),
                    user_id: user_id(user),
                };
                let greeting = greeting(&session_id, &member.user_id);
                greetings += greeting.len();
                let (session, _) = opened
                    .registry
                    .join(&session_id, &member, UserType::Customer, |_| greeting.clone());
                opened.sessions.truncate(n);
                opened.sessions.push(session);
            }
            opened.expect(greetings);
        }
        opened.wait();
        opened
    }

    pub fn delivery(&self) -> Delivery {
        Delivery::new(
            Arc::clone(&self.registry),
            Arc::new(Typists::default()),
            Box::new(|_| {}),
            Arc::clone(&self.metrics),
            "node".into(),
            MAX_RECORD_BYTES,
        )
    }

    /// Readers are to get so many bytes more.
    pub fn expect(&self, bytes: usize) {
        self.readers.tally.lock().wanted += bytes as u64;
    }

    /// Waits until the readers have all that was expected: no queue holds anything then.
    pub fn wait(&self) {
        let mut tally = self.readers.tally.lock();
        while tally.read < tally.wanted {
            let outcome = self.readers.complete.wait_for(&mut tally, PATIENCE);
            assert!(
                !outcome.timed_out(),
                "readers got {} of {} bytes",
                tally.read,
                tally.wanted
            );
        }
        assert_eq!(tally.read, tally.wanted, "readers got more than was sent");
    }

    /// Delivers a batch and waits until the readers have it.
    pub fn deliver(&self, delivery: &mut Delivery, batch: &[Record]) {
        self.expect_batch(batch);
        deliver(delivery, batch);
        self.wait();
    }

    /// A counter as the metrics page shows it.
    pub fn metric(&self, name: &str) -> u64 {
        let page = self.metrics.page();
        let prefix = format!("livechat_{name}_total ");
        let value = page.lines().find_map(|line| line.strip_prefix(&prefix));
        value.expect("a metric of that name").parse().expect("a count")
    }

    /// Readers are to get a batch's frames.
    pub fn expect_batch(&self, batch: &[Record]) {
        let bytes: usize = batch.iter().map(|record| record.frame_len).sum();
        self.expect(bytes * self.sockets_each);
    }
}

pub fn greeting(session_id: &SessionId, user_id: &UserId) -> Bytes {
    let who = Identity {
        session_id,
        user_id,
        user_type: UserType::Customer,
    };
    server::connection_established(who, TIMESTAMP)
}

/// One connection: its outbox here, its reader on the runtime.
async fn connect(
    listener: &TcpListener,
    readers: &Arc<Readers>,
    limits: &Arc<OutboxLimits>,
) -> io::Result<Arc<Outbox>> {
    let address = listener.local_addr()?;
    let (client, (socket, _)) = tokio::try_join!(TcpStream::connect(address), listener.accept())?;
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    let (_, writer) = socket.into_split();
    // Until the driver has said so once, a socket counts as not writable.
    writer.writable().await?;
    tokio::spawn(Arc::clone(readers).drain(client));
    Ok(Outbox::new(writer, Arc::clone(limits)))
}

/// The clients: they read and count.
#[derive(Default)]
struct Readers {
    tally: Mutex<Tally>,
    complete: Condvar,
}

#[derive(Default)]
struct Tally {
    read: u64,
    wanted: u64,
}

impl Readers {
    async fn drain(self: Arc<Self>, socket: TcpStream) -> io::Result<()> {
        loop {
            socket.readable().await?;
            match socket.try_read_buf(&mut Vec::with_capacity(READ_BYTES)) {
                Ok(0) => return Ok(()),
                Ok(bytes) => self.count(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn count(&self, bytes: usize) {
        let mut tally = self.tally.lock();
        tally.read += bytes as u64;
        if tally.read >= tally.wanted {
            self.complete.notify_one();
        }
    }
}
