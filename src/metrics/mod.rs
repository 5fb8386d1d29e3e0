//! Metrics. Counters are resolved once, at the start, and the message path updates them once per batch. No metric has a
//! label by session or user.

mod disconnects;
pub mod figures;
pub mod history;
mod kafka;
pub mod page;
mod process;
pub mod refusals;

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::config::Config;
use crate::protocol::code::{CloseCode, ErrorCode};
use crate::protocol::record::Poison;

use disconnects::DisconnectMetrics;
use figures::Delay;
use history::HistoryMetrics;
use page::Format;
use refusals::{AccessRefusal, Asked, RequestRefusal, UpgradeRefusal};

pub use self::kafka::{KafkaMetrics, Latency, latency};

type Count = Counter<u64, AtomicU64>;
type Level = Gauge<i64, AtomicI64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: Name,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name(&'static str);

impl EncodeLabelValue for Name {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder,
    ) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0, encoder)
    }
}

/// State held elsewhere, read when the page is requested.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    pub connections: usize,
    pub sessions: usize,
    pub is_draining: bool,
    pub is_ring_in_use: bool,
}

pub struct Metrics {
    registry: Registry,
    connections: Level,
    sessions: Level,
    pub connections_opened: Count,
    connections_closed: Family<Reason, Count>,
    requests_refused: Family<Reason, Count>,
    upgrades_refused: Family<Reason, Count>,
    frame_errors: Family<Reason, Count>,
    pub frames_received: Count,
    records: Count,
    deliveries_written: Count,
    deliveries_queued: Count,
    poison_records: Family<Reason, Count>,
    pub records_published: Count,
    pub publish_failures: Count,
    pub outcomes_unknown: Count,
    pub status_frames: Count,
    pub accept_errors: Count,
    pub sockets_evicted: Count,
    pub client_addresses_unread: Count,
    proxy_headers_refused: Family<Reason, Count>,
    pub key_set_failures: Count,
    pub kafka_reconnects: Count,
    pub kafka_gaps: Count,
    pub kafka_up: Level,
    pub redis_up: Level,
    pub redis_pipelines: Count,
    pub redis_refusals: Count,
    pub presence_repairs: Count,
    pub nodes_reaped: Count,
    /// Live nodes, as Redis last said.
    pub nodes: Level,
    /// From the log to the sockets.
    pub delay: Delay,
    fanout_io_uring: Level,
    draining: Level,
    pub send_memory_bytes: Level,
    pub kafka: KafkaMetrics,
    pub history: HistoryMetrics,
    pub disconnects: DisconnectMetrics,
}

/// Which dependencies are configured: only those have metrics.
struct Dependencies {
    kafka: bool,
    redis: bool,
}

impl Default for Metrics {
    /// With all metrics except the limits.
    fn default() -> Self {
        Self::with(&Dependencies {
            kafka: true,
            redis: true,
        })
    }
}

impl Metrics {
    pub fn new(config: &Config) -> Self {
        let mut metrics = Self::with(&Dependencies {
            kafka: config.kafka.is_some(),
            redis: config.redis.is_some(),
        });
        register_limits(&mut metrics.registry, config);
        metrics
    }

    fn with(dependencies: &Dependencies) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        // The prefix applies to the metrics registered here: the collector's names are complete.
        let r = registry.sub_registry_with_prefix("livechat");
        let count = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Count::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let level = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Level::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let family = |registry: &mut Registry, name: &str, help: &str, reasons: &[&'static str]| {
            let family = Family::<Reason, Count>::default();
            for reason in reasons {
                // Create each series at the start, so that its first increase is visible.
                drop(family.get_or_create(&Reason { reason: Name(reason) }));
            }
            registry.register(name, help, family.clone());
            family
        };
        let history = HistoryMetrics::default();
        history.register(r);
        let disconnects = DisconnectMetrics::default();
        disconnects.register(r);
        let kafka = KafkaMetrics::default();
        if dependencies.kafka {
            kafka.register(r);
        }
        let level_if = |registry: &mut Registry, is_configured: bool, name: &str, help: &str| {
            if is_configured {
                level(registry, name, help)
            } else {
                Level::default()
            }
        };
        let closes = CloseCode::ALL.map(CloseCode::name);
        let errors = ErrorCode::ALL.map(ErrorCode::as_str);
        let poisons = Poison::ALL.map(Poison::name);
        let access = AccessRefusal::ALL.map(AccessRefusal::name);
        let requests = [
            &[refusals::MALFORMED, refusals::HEAD_TOO_BIG][..],
            &RequestRefusal::ALL.map(RequestRefusal::name),
            &access,
        ]
        .concat();
        let nodes = level(
            r,
            "nodes",
            "Live nodes that Redis last knew of, this one included; 1 without Redis",
        );
        nodes.set(1);
        let upgrades = [&UpgradeRefusal::ALL.map(UpgradeRefusal::name)[..], &access].concat();
        Self {
            connections: level(r, "connections", "Open WebSocket connections"),
            sessions: level(
                r,
                "sessions",
                "Sessions with a connection or a user in the grace period on this node",
            ),
            connections_opened: count(r, "connections_opened", "WebSocket connections opened"),
            connections_closed: family(
                r,
                "connections_closed",
                "Connections closed by the server or by the client's close frame",
                &closes,
            ),
            requests_refused: family(
                r,
                "requests_refused",
                "HTTP requests refused, except WebSocket upgrades",
                &requests,
            ),
            upgrades_refused: family(r, "upgrades_refused", "WebSocket upgrades refused", &upgrades),
            frame_errors: family(r, "frame_errors", "Client frames answered with an error", &errors),
            frames_received: count(r, "frames_received", "Text frames received from clients"),
            records: count(
                r,
                "records_delivered",
                "Log records delivered to a session with connections here",
            ),
            deliveries_written: count(
                r,
                "deliveries_written",
                "Chunks of frames written straight to a socket",
            ),
            deliveries_queued: count(
                r,
                "deliveries_queued",
                "Chunks of frames queued behind a socket's backlog",
            ),
            poison_records: family(r, "poison_records", "Log records skipped", &poisons),
            records_published: count(
                r,
                "records_published",
                "Messages of clients and backends that the log has acknowledged",
            ),
            publish_failures: count(
                r,
                "publish_failures",
                "Messages of clients and backends that the log has refused",
            ),
            outcomes_unknown: count(
                r,
                "outcomes_unknown",
                "Messages of clients and backends that the log did not acknowledge in time",
            ),
            status_frames: count(r, "status_frames", "connection_status_update frames encoded"),
            accept_errors: count(r, "accept_errors", "Failures to accept a connection"),
            sockets_evicted: count(
                r,
                "sockets_evicted",
                "Sockets without a WebSocket that were closed because their descriptor was needed",
            ),
            client_addresses_unread: count(
                r,
                "client_addresses_unread",
                "Handshakes in which a trusted proxy gave no readable client address",
            ),
            proxy_headers_refused: family(
                r,
                "proxy_headers_refused",
                "Connections closed because of their PROXY header",
                &["untrusted", "malformed", "incomplete"],
            ),
            key_set_failures: count(
                r,
                "key_set_failures",
                "Failed attempts to fetch the key set from JWKS_URL",
            ),
            kafka_reconnects: count(
                r,
                "kafka_consumer_restarts",
                "Times a Kafka consumer was recreated",
            ),
            kafka_gaps: count(
                r,
                "kafka_gaps",
                "Times records were missing from a partition or could not be read: this node has lost them",
            ),
            kafka_up: level_if(
                r,
                dependencies.kafka,
                "kafka_up",
                "Whether the broker answered the last probe",
            ),
            redis_up: level_if(
                r,
                dependencies.redis,
                "redis_up",
                "Whether the last request to Redis was answered",
            ),
            redis_pipelines: count(r, "redis_pipelines", "Pipelines with a heartbeat sent to Redis"),
            redis_refusals: count(
                r,
                "redis_refusals",
                "Sessions whose presence Redis refused to store",
            ),
            presence_repairs: count(
                r,
                "presence_repairs",
                "Times a session's keys in Redis were rewritten because others had deleted or changed them",
            ),
            nodes_reaped: count(
                r,
                "nodes_reaped",
                "Dead nodes whose users this node has removed from Redis",
            ),
            nodes,
            delay: Delay::default(),
            fanout_io_uring: level(
                r,
                "fanout_io_uring",
                "Whether a batch's sends are passed to the kernel together",
            ),
            send_memory_bytes: level(
                r,
                "send_memory_bytes",
                "Memory of the frames that wait for clients",
            ),
            kafka,
            history,
            disconnects,
            draining: level(r, "draining", "Whether this node is draining"),
            registry,
        }
    }

    pub fn closed(&self, code: CloseCode) {
        bump(&self.connections_closed, code.name());
    }

    pub fn request_refused(&self, reason: &'static str) {
        bump(&self.requests_refused, reason);
    }

    pub fn upgrade_refused(&self, reason: &'static str) {
        bump(&self.upgrades_refused, reason);
    }

    pub fn access_refused(&self, refusal: AccessRefusal, asked: Asked) {
        match asked {
            Asked::Request => self.request_refused(refusal.name()),
            Asked::Upgrade => self.upgrade_refused(refusal.name()),
        }
    }

    pub fn proxy_header_refused(&self, reason: &'static str) {
        bump(&self.proxy_headers_refused, reason);
    }

    pub fn frame_error(&self, code: ErrorCode) {
        bump(&self.frame_errors, code.as_str());
    }

    pub fn poison(&self, poison: Poison) {
        bump(&self.poison_records, poison.name());
    }

    /// Records that were abandoned because of a bug.
    pub fn records_abandoned(&self, records: u64) {
        add(&self.poison_records, Poison::Internal.name(), records);
    }

    /// Counts a delivered batch: its records, and the chunks that were written at once or queued.
    pub fn batch_delivered(&self, records: u64, written: usize, queued: usize) {
        self.records.inc_by(records);
        self.deliveries_written.inc_by(written as u64);
        self.deliveries_queued.inc_by(queued as u64);
    }

    /// The page in the classic format, without the state held elsewhere.
    pub fn page(&self) -> String {
        self.page_of(&Now::default(), Format::Classic)
    }

    /// The page that Prometheus reads.
    pub fn page_of(&self, now: &Now, format: Format) -> String {
        self.connections.set(now.connections as i64);
        self.sessions.set(now.sessions as i64);
        self.draining.set(now.is_draining.into());
        self.fanout_io_uring.set(now.is_ring_in_use.into());
        let mut page = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut page, &self.registry);
        match format {
            Format::Classic => page::classic(&page),
            Format::OpenMetrics => page,
        }
    }
}

/// The limits in force, to be plotted with the values they limit. 0: no limit.
fn register_limits(registry: &mut Registry, config: &Config) {
    let limits = &config.limits;
    let build = [
        ("version", env!("CARGO_PKG_VERSION")),
        (
            "kafka_tls",
            if cfg!(feature = "kafka-tls") {
                "true"
            } else {
                "false"
            },
        ),
    ];
    let registry = registry.sub_registry_with_prefix("livechat");
    registry.register("build", "What this binary was built from", Info::new(build));
    for (name, help, value) in [
        (
            "limit_connections",
            "Maximum number of connections of this process",
            limits.max_connections as f64,
        ),
        (
            "limit_connections_per_ip",
            "Maximum number of connections per address",
            limits.max_connections_per_ip as f64,
        ),
        (
            "limit_connections_per_user",
            "Maximum number of connections per user and session",
            limits.max_connections_per_user as f64,
        ),
        (
            "limit_message_bytes",
            "Maximum size of a client's message",
            limits.max_message_bytes as f64,
        ),
        (
            "limit_record_bytes",
            "Maximum size of a log record",
            config.max_record_bytes as f64,
        ),
        (
            "limit_send_queue_bytes",
            "Maximum number of bytes that may wait for one client",
            limits.send_queue_bytes as f64,
        ),
        (
            "limit_send_memory_bytes",
            "Maximum number of bytes that may wait for all clients together",
            limits.send_memory_bytes as f64,
        ),
        (
            "limit_send_timeout_seconds",
            "How long a client's queue may make no progress",
            limits.send_timeout.as_secs_f64(),
        ),
        (
            "limit_messages_per_second",
            "Sustained message rate allowed per connection",
            limits.rate_limit_messages.into(),
        ),
        (
            "limit_burst_messages",
            "Burst of messages allowed per connection",
            limits.rate_limit_burst.into(),
        ),
        (
            "limit_ping_interval_seconds",
            "Interval between pings to a connection",
            limits.ping_interval.as_secs_f64(),
        ),
        (
            "limit_pong_timeout_seconds",
            "How long the pong may take",
            limits.pong_timeout.as_secs_f64(),
        ),
    ] {
        registry.register(name, help, ConstGauge::new(value));
    }
}

fn bump(family: &Family<Reason, Count>, reason: &'static str) {
    add(family, reason, 1);
}

fn add(family: &Family<Reason, Count>, reason: &'static str, count: u64) {
    let reason = Reason { reason: Name(reason) };
    family.get_or_create(&reason).inc_by(count);
}
