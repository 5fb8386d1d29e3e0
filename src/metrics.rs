//! Counters, resolved once at start and bumped once per batch where the message path is concerned; no label by
//! session or user.

mod kafka;

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::http::refusal::{self, RequestRefusal, UpgradeRefusal};
use crate::protocol::code::{CloseCode, ErrorCode};
use crate::protocol::record::Poison;
use crate::session::fanout::Delivered;

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

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    pub connections: Level,
    pub sessions: Level,
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
    pub client_addresses_unread: Count,
    proxy_headers_refused: Family<Reason, Count>,
    pub kafka_reconnects: Count,
    pub kafka_gaps: Count,
    pub kafka_up: Level,
    pub redis_up: Level,
    pub redis_pipelines: Count,
    pub redis_refusals: Count,
    pub presence_repairs: Count,
    pub nodes_reaped: Count,
    pub fanout_io_uring: Level,
    pub send_memory_bytes: Level,
    pub kafka: KafkaMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("livechat");
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
                // A series that exists from the start can be watched for its first increase.
                drop(family.get_or_create(&Reason { reason: Name(reason) }));
            }
            registry.register(name, help, family.clone());
            family
        };
        let kafka = KafkaMetrics::default();
        let r = &mut registry;
        kafka.register(r);
        let closes = CloseCode::ALL.map(CloseCode::name);
        let errors = ErrorCode::ALL.map(ErrorCode::as_str);
        let poisons = Poison::ALL.map(Poison::name);
        let requests = [
            &[refusal::MALFORMED, refusal::HEAD_TOO_BIG][..],
            &RequestRefusal::ALL.map(RequestRefusal::name),
        ]
        .concat();
        Self {
            connections: level(r, "connections", "Open WebSocket connections"),
            sessions: level(r, "sessions", "Sessions with a connection on this node"),
            connections_opened: count(r, "connections_opened", "WebSocket connections opened"),
            connections_closed: family(
                r,
                "connections_closed",
                "Connections closed by us or by the client's close frame",
                &closes,
            ),
            requests_refused: family(
                r,
                "requests_refused",
                "HTTP requests refused, but for those of a WebSocket's path",
                &requests,
            ),
            upgrades_refused: family(
                r,
                "upgrades_refused",
                "Requests for a WebSocket refused",
                &UpgradeRefusal::ALL.map(UpgradeRefusal::name),
            ),
            frame_errors: family(r, "frame_errors", "Client frames answered with an error", &errors),
            frames_received: count(r, "frames_received", "Text frames received from clients"),
            records: count(r, "records_delivered", "Log records that had a connection here"),
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
                "Clients' messages the log has acknowledged",
            ),
            publish_failures: count(r, "publish_failures", "Clients' messages the log has refused"),
            outcomes_unknown: count(
                r,
                "outcomes_unknown",
                "Clients' messages the log did not answer for in time",
            ),
            status_frames: count(r, "status_frames", "connection_status_update frames encoded"),
            accept_errors: count(r, "accept_errors", "Failures to accept a connection"),
            client_addresses_unread: count(
                r,
                "client_addresses_unread",
                "Handshakes whose client address a trusted proxy gave in no readable form",
            ),
            proxy_headers_refused: family(
                r,
                "proxy_headers_refused",
                "Connections closed because of their PROXY header",
                &["untrusted", "malformed", "incomplete"],
            ),
            kafka_reconnects: count(
                r,
                "kafka_consumer_restarts",
                "Times a Kafka consumer was made anew",
            ),
            kafka_gaps: count(
                r,
                "kafka_gaps",
                "Times offsets were missing from a partition: its records are lost to this node",
            ),
            kafka_up: level(r, "kafka_up", "Whether the broker answered the last probe"),
            redis_up: level(r, "redis_up", "Whether Redis answered the last time"),
            redis_pipelines: count(
                r,
                "redis_pipelines",
                "Pipelines of presence changes sent to Redis",
            ),
            redis_refusals: count(
                r,
                "redis_refusals",
                "Changes of a session's presence that Redis refused",
            ),
            presence_repairs: count(
                r,
                "presence_repairs",
                "Times a session's keys in Redis were found deleted or changed by others, and written again",
            ),
            nodes_reaped: count(
                r,
                "nodes_reaped",
                "Dead nodes whose users this node has taken out of Redis",
            ),
            fanout_io_uring: level(
                r,
                "fanout_io_uring",
                "Whether the sends of a batch of messages go to the kernel together",
            ),
            send_memory_bytes: level(
                r,
                "send_memory_bytes",
                "Memory of the frames that wait for clients",
            ),
            kafka,
            registry,
        }
    }
}

impl Metrics {
    pub fn closed(&self, code: CloseCode) {
        bump(&self.connections_closed, code.name());
    }

    pub fn request_refused(&self, reason: &'static str) {
        bump(&self.requests_refused, reason);
    }

    pub fn upgrade_refused(&self, reason: &'static str) {
        bump(&self.upgrades_refused, reason);
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

    /// Records that were given up because of a bug.
    pub fn lost(&self, records: u64) {
        add(&self.poison_records, Poison::Internal.name(), records);
    }

    /// One delivered batch.
    pub fn batch(&self, records: u64, delivered: &Delivered) {
        self.records.inc_by(records);
        self.deliveries_written.inc_by(delivered.written as u64);
        self.deliveries_queued.inc_by(delivered.queued as u64);
    }

    /// The page that Prometheus reads (OpenMetrics text).
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut page, &self.registry);
        page
    }
}

fn bump(family: &Family<Reason, Count>, reason: &'static str) {
    add(family, reason, 1);
}

fn add(family: &Family<Reason, Count>, reason: &'static str, count: u64) {
    let reason = Reason { reason: Name(reason) };
    family.get_or_create(&reason).inc_by(count);
}
