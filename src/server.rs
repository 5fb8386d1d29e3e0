//! The server: bind, run, shut down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::auth::Auth;
use crate::bus::kafka::{HistoryFeed, Kafka};
use crate::bus::{Bus, ReadMessage, Repeats, Router, embedded};
use crate::chat::{self, Attempts, Chat, ResumeLimits};
use crate::clock;
use crate::config::{Config, Environment, FanoutIo};
use crate::error::StartError;
use crate::fanout::backend::{FanoutBackend, RingInUse};
use crate::fanout::uring::Ring;
use crate::history::{RecentLog, SentMessages};
use crate::http::addresses::Addresses;
use crate::http::cors::Cors;
use crate::http::keep_alive::Pool;
use crate::http::limits::Limits;
use crate::http::listener::SpareSockets;
use crate::http::router::ListenerKind;
use crate::http::{Http, key_set, listener};
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::presence::dirty_sessions::DirtySessions;
use crate::presence::lobby::Lobby;
use crate::presence::{Parts, Presence};
use crate::protocol::cursor::CursorKey;
use crate::session::disconnects::Disconnects;
use crate::session::{Activity, Registry, memory_pressure};
use crate::writer::{ClosingWriters, QueueLimits, SendMemory, WriterContext};
use crate::ws::connection;
use crate::ws::rate::RateLimit;
use crate::{shutdown, supervise};

/// How many members are swept before the task yields.
const SWEEP_SLICE: usize = 512;

/// A server whose listeners are bound.
pub struct Server {
    http: Arc<Http>,
    listeners: Vec<(listener::Listener, ListenerKind)>,
    addresses: Vec<(&'static str, SocketAddr)>,
}

impl Server {
    /// Binds every listener and starts the bus and presence; nothing is accepted yet. Call it in a runtime.
    ///
    /// # Errors
    ///
    /// A listener that can't bind, with the name of its variable; a thread that can't be started; `FANOUT_IO=uring` if
    /// io_uring is not available.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let ring_in_use = RingInUse::default();
        let backend = backend(config.fanout_io, &ring_in_use)?;
        let mut to_bind = vec![(
            "PORT",
            SocketAddr::new(config.host, config.port),
            ListenerKind::Public,
        )];
        to_bind.extend(config.ws_port.map(|port| {
            (
                "WS_PORT",
                SocketAddr::new(config.host, port),
                ListenerKind::Public,
            )
        }));
        to_bind.extend(
            config
                .admin_addr
                .map(|address| ("ADMIN_ADDR", address, ListenerKind::Admin)),
        );
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        for (variable, address, kind) in to_bind {
            let failed = |source| StartError::Bind {
                variable,
                address,
                source,
            };
            let listener = listener::bind(address).map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            tracing::info!(%address, %variable, "listening");
            addresses.push((variable, address));
            listeners.push((listener, kind));
        }
        let port = addresses[0].1.port();
        let http = Arc::new(assemble(config, port, backend, ring_in_use)?);
        Ok(Self {
            http,
            listeners,
            addresses,
        })
    }

    /// The bound addresses by variable: `PORT`, `WS_PORT`, `ADMIN_ADDR`.
    pub fn addresses(&self) -> &[(&'static str, SocketAddr)] {
        &self.addresses
    }

    /// Serves until `stop` resolves, then drains: see [`shutdown`].
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let closing = CancellationToken::new();
        let acceptors = TaskTracker::new();
        for (listener, kind) in self.listeners {
            acceptors.spawn(listener::serve(
                listener,
                kind,
                Arc::clone(&self.http),
                closing.clone(),
            ));
        }
        acceptors.close();
        let http = Arc::clone(&self.http);
        let upkeep = supervise::spawn("upkeep", move || upkeep(Arc::clone(&http)));
        let (registry, context) = (
            Arc::clone(&self.http.chat.registry),
            Arc::clone(&self.http.connections.writer_context),
        );
        let memory_pressure = supervise::spawn("memory_pressure", move || {
            memory_pressure::keep_within_limit(Arc::clone(&registry), Arc::clone(&context))
        });
        let (auth, metrics) = (Arc::clone(&self.http.auth), Arc::clone(&self.http.metrics));
        let key_set = supervise::spawn("key_set", move || {
            key_set::keep(Arc::clone(&auth), Arc::clone(&metrics))
        });
        stop.await;
        shutdown::drain(&self.http).await;
        closing.cancel();
        acceptors.wait().await;
        upkeep.abort();
        memory_pressure.abort();
        key_set.abort();
    }
}

/// Creates the parts and connects them.
fn assemble(
    config: Config,
    port: u16,
    backend: FanoutBackend,
    ring_in_use: RingInUse,
) -> Result<Http, StartError> {
    let config = Arc::new(config);
    let metrics = Arc::new(Metrics::new(&config));
    let history = Arc::new(RecentLog::new(config.resume.recent_log_bytes));
    let registry = Arc::new(Registry::new(!config.presence_grace.is_zero(), history.end()));
    let activity = Arc::new(Activity::default());
    // A restart under the same name is another node.
    let boot = Uuid::now_v7().simple().to_string();
    let node = format!("{}+{}", config.node_id, &boot[boot.len() - 12..]);
    let dirty = Arc::new(DirtySessions::default());
    let lobby = Arc::new(Lobby::new(Arc::clone(&dirty)));
    let router = |backend| {
        let (sessions, lobby) = (Arc::clone(&dirty), Arc::clone(&lobby));
        Router::new(
            Arc::clone(&registry),
            Arc::clone(&activity),
            Box::new(move |session_id, is_here| match is_here {
                true => sessions.mark(session_id),
                false => lobby.changed_elsewhere(),
            }),
            Arc::clone(&metrics),
            node.clone(),
            config.max_record_bytes,
            backend,
        )
    };
    let disconnects = Arc::new(Disconnects::new(Arc::clone(&registry), Arc::clone(&metrics)));
    let sent = Arc::new(SentMessages::new(config.dedup.bytes, config.dedup.window));
    let attempts = Arc::new(Attempts::new(Arc::clone(&sent), Arc::clone(&metrics)));
    let repeats = {
        let attempts = Arc::clone(&attempts);
        let on_read = move |messages: &mut Vec<ReadMessage>| attempts.read(messages);
        Repeats::new(Arc::clone(&sent), Box::new(on_read), Arc::clone(&metrics))
    };
    let bus = match &config.kafka {
        None => {
            // Another log with each start, and all of it is here.
            let key = CursorKey::of_this_process().map_err(|_| StartError::Randomness)?;
            history.set_whole_log(&Arc::new(key));
            let router = router(backend).keeping(Arc::clone(&history), repeats);
            Bus::Embedded(embedded::Embedded::start(router)?)
        }
        Some(kafka) => Bus::Kafka(Kafka::start(
            kafka.clone(),
            node.clone(),
            config.max_record_bytes,
            // There are few typing and status frames.
            [
                router(backend).keeping(Arc::clone(&history), repeats),
                router(FanoutBackend::Send),
                router(FanoutBackend::Send).disconnecting(Arc::clone(&disconnects)),
            ],
            Arc::clone(&metrics),
            HistoryFeed::new(
                Arc::clone(&history),
                sent,
                config.resume.window,
                config.dedup.window,
            ),
        )?),
    };
    let bus = Arc::new(bus);
    let parts = Parts {
        dirty,
        registry: Arc::clone(&registry),
        activity: Arc::clone(&activity),
        bus: Arc::clone(&bus),
        metrics: Arc::clone(&metrics),
        lobby,
        node: node.clone(),
    };
    let presence = Presence::start(parts, &config, &disconnects)?;
    warn_of_partial_sharing(&config);
    tracing::info!(
        kafka = bus.health().mode,
        redis = presence.health().mode,
        node,
        "modes"
    );
    log_limits(&config);
    let is_production = config.environment == Environment::Production;
    let auth = Arc::new(Auth::new(config.auth.clone(), is_production));
    let chat = Arc::new(Chat {
        auth: Arc::clone(&auth),
        registry,
        activity,
        bus,
        presence,
        metrics: Arc::clone(&metrics),
        max_record_bytes: config.max_record_bytes,
        pending: chat::PendingAnswers::default(),
        attempts,
        history,
        resume_limits: ResumeLimits::new(&config.resume),
        searches: chat::Searches::default(),
        renewals: Arc::default(),
        disconnects,
    });
    let lifecycle = Arc::new(Lifecycle::default());
    let connections = Arc::new(connection::Shared {
        chat: Arc::clone(&chat),
        writer_context: Arc::new(WriterContext {
            queue: QueueLimits::new(
                config.limits.send_queue_bytes,
                config.limits.send_timeout,
                SendMemory::new(config.limits.send_memory_bytes),
            ),
            ping_interval: config.limits.ping_interval,
            pong_timeout: config.limits.pong_timeout,
            token_leeway: auth.leeway(),
            runtime: Handle::current(),
            metrics: Arc::clone(&metrics),
            closing: ClosingWriters::default(),
        }),
        lifecycle: Arc::clone(&lifecycle),
        rate_limit: RateLimit::new(config.limits.rate_limit_messages, config.limits.rate_limit_burst),
        max_message_bytes: config.limits.max_message_bytes,
    });
    let spare_sockets = SpareSockets::new(config.limits.max_connections);
    Ok(Http {
        auth,
        limits: Arc::new(Limits::new(&config.limits)),
        addresses: Addresses::new(&config, Arc::clone(&metrics)),
        cors: Cors::new(&config),
        pool: Arc::new(Pool::new(config.http_keep_alive)),
        admin_pool: Arc::new(Pool::new(config.http_keep_alive)),
        config,
        chat,
        metrics,
        connections,
        tracker: TaskTracker::new(),
        lifecycle,
        plain: AtomicUsize::default(),
        spare_sockets,
        ring_in_use,
        port,
    })
}

/// Logs the limits in force, including computed ones.
fn log_limits(config: &Config) {
    let limits = &config.limits;
    tracing::info!(
        MAX_CONNECTIONS = limits.max_connections,
        MAX_CONNECTIONS_PER_IP = limits.max_connections_per_ip,
        MAX_CONNECTIONS_PER_USER = limits.max_connections_per_user,
        MAX_MESSAGE_BYTES = limits.max_message_bytes,
        MAX_RECORD_BYTES = config.max_record_bytes,
        SEND_QUEUE_BYTES = limits.send_queue_bytes,
        SEND_MEMORY_BYTES = limits.send_memory_bytes,
        SEND_TIMEOUT = ?limits.send_timeout,
        RATE_LIMIT_MESSAGES = limits.rate_limit_messages,
        RATE_LIMIT_BURST = limits.rate_limit_burst,
        PING_INTERVAL = ?limits.ping_interval,
        PONG_TIMEOUT = ?limits.pong_timeout,
        "limits"
    );
}

/// How batches are sent; logs it if io_uring is not available.
fn backend(requested: FanoutIo, in_use: &RingInUse) -> Result<FanoutBackend, StartError> {
    if requested == FanoutIo::Send {
        return Ok(FanoutBackend::Send);
    }
    match (requested, Ring::probe()) {
        (_, Ok(())) => Ok(FanoutBackend::RingRequested(in_use.clone())),
        (FanoutIo::Uring, Err(error)) => Err(StartError::Uring(error)),
        (_, Err(error)) => {
            tracing::info!(%error, "io_uring is not available: falling back to send");
            Ok(FanoutBackend::Send)
        }
    }
}

/// Warns about what a node lacks with only one of Kafka and Redis.
fn warn_of_partial_sharing(config: &Config) {
    match (&config.kafka, &config.redis) {
        (Some(_), None) => {
            tracing::warn!(
                "Kafka without Redis: connection status covers this node only and is not published"
            );
        }
        (None, Some(_)) => tracing::warn!("Redis without Kafka: messages stay on this node"),
        _ => {}
    }
}

/// Periodic work: expires typing and unanswered messages, and sweeps connections.
async fn upkeep(http: Arc<Http>) {
    let mut tick = tokio::time::interval(chat::TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let limits = &http.config.limits;
    let shortest = limits
        .ping_interval
        .min(limits.pong_timeout)
        .min(limits.send_timeout);
    let mut sweep =
        tokio::time::interval((shortest / 4).clamp(Duration::from_millis(50), Duration::from_secs(1)));
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => http.chat.tick(),
            _ = sweep.tick() => {
                http.auth.tick();
                sweep_connections(&http.chat).await;
                let memory = &http.connections.writer_context.queue.memory;
                http.metrics.send_memory_bytes.set(i64::try_from(memory.used()).unwrap_or(i64::MAX));
                http.chat.measure_history();
            }
        }
    }
}

/// Checks every connection, instead of a timer in each.
async fn sweep_connections(chat: &Chat) {
    let now = clock::unix_seconds();
    let mut since_yield = 0;
    for session in chat.registry.everywhere() {
        for member in session.members().iter() {
            member.writer.sweep(now);
            since_yield += 1;
            if since_yield == SWEEP_SLICE {
                since_yield = 0;
                tokio::task::yield_now().await;
            }
        }
    }
}
