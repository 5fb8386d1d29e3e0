//! The configuration: read once, checked as a whole, and never changed afterwards.
//!
//! ```text
//! flags ─────┐
//! environment ┼─► lookup(name) ─► read.rs: parse, check, collect every problem ─► Config
//! .env ──────┘        ▲
//!               variables.rs: names, defaults, help
//! ```
//!
//! A flag overrides the environment, which overrides `.env`. An empty value means "unset", and also hides the value
//! from a weaker source; for `WS_PORT` and `ADMIN_ADDR`, whose defaults are not empty, it means "none".
//!
//! Nothing here opens a port or a connection, logs, or keeps state; `main` turns an error into [`EXIT_CODE`].

mod descriptors;
mod dotenv;
mod error;
mod memory;
mod network;
mod origins;
mod parse;
mod read;
mod read_auth;
mod read_kafka;
mod read_redis;
mod reader;
mod sources;
mod surprises;
mod surroundings;
mod types;
mod variables;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::auth::Settings;
use crate::secret::Secret;
pub use descriptors::{descriptor_limit, raise_descriptor_limit};
pub use error::{ConfigError, Problem};
pub use network::Network;
pub use origins::{Origin, Origins};
pub use parse::duration;
pub use sources::load;
pub use types::{
    AllowedHeaders, DedupConfig, Environment, FanoutIo, KafkaConfig, Limits, LogFormat, RedisConfig,
    ResumeConfig, Sasl, SaslMechanism, SecurityProtocol, SessionIdFormat,
};
pub use variables::{Section, VARIABLES, Variable};

/// The exit status of a process whose configuration is wrong (`EX_USAGE` of sysexits.h).
pub const EXIT_CODE: u8 = 64;

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Serve until a signal arrives.
    Serve(Box<Config>),
    /// `--check-config`: the configuration is valid, say so and exit.
    CheckConfig(Box<Config>),
    /// `--healthcheck`: ask the server of this configuration for `/health` and exit with 0 if it answers 200, else 1.
    Healthcheck(Box<Config>),
    /// `--help`: print this and exit.
    Help(String),
    /// `--version`: print this and exit.
    Version(String),
}

/// The whole configuration. Every value has been checked, by itself and against the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// HTTP and WebSocket; 0: the system picks a port.
    pub port: u16,
    /// A second listener with the same routes, for frontends that use this port; never equal to `port`.
    pub ws_port: Option<u16>,
    /// The address that both bind to.
    pub host: IpAddr,
    /// `/metrics`, `/live` and `/ready`; separate, because metrics are not public.
    pub admin_addr: Option<SocketAddr>,
    /// Decides whether browsers' origins are checked.
    pub environment: Environment,
    /// Whether the console at `/demo` is served.
    pub demo: bool,
    /// The origins that may call.
    pub allowed_origins: Origins,
    /// The same as configured, for `/health`.
    pub cors_origins: String,
    /// Whether listed origins may send cookies; never together with [`Origins::Any`] in production.
    pub allow_credentials: bool,
    /// Request headers that pages may send in production, in addition to our own list.
    pub allowed_headers: AllowedHeaders,
    /// The presence store; None: in this process.
    pub redis: Option<RedisConfig>,
    /// The log that all nodes share; None: the bus is in this process.
    pub kafka: Option<KafkaConfig>,
    /// This node's name, safe in a Redis key, a Kafka header and a log line.
    pub node_id: String,
    /// How long a node's lease lasts: until it expires, a dead node still counts as holding its users.
    pub presence_ttl: Duration,
    /// How long joins and leaves are collected for one pipeline: longer saves work in Redis, and delays events.
    pub presence_flush: Duration,
    /// A user who returns within this time after their last connection ended never left; zero: off. At most
    /// `presence_ttl`.
    pub presence_grace: Duration,
    /// How long closing all connections may take at shutdown: spread out, they do not all reconnect at once.
    pub drain_timeout: Duration,
    /// Peers whose `X-Forwarded-For`, `Forwarded` and PROXY headers are trusted; empty: none.
    pub trusted_proxies: Vec<Network>,
    /// Whether every connection begins with a PROXY header; then `trusted_proxies` is not empty.
    pub proxy_protocol: bool,
    /// How long a connection waits for its next request; zero: it closes after each response.
    pub http_keep_alive: Duration,
    /// Which session ids are accepted.
    pub session_id_format: SessionIdFormat,
    /// How a batch's frames reach their sockets.
    pub fanout_io: FanoutIo,
    /// What clients that come back can get.
    pub resume: ResumeConfig,
    /// How repeated messages are recognized.
    pub dedup: DedupConfig,
    /// Tokens and API keys.
    pub auth: Settings,
    /// The longest record value in bytes; longer ones are skipped. At most `limits.send_queue_bytes`, or it could never
    /// be queued.
    pub max_record_bytes: usize,
    /// A directive list for `tracing_subscriber::EnvFilter`.
    pub log_level: String,
    /// The form of log lines.
    pub log_format: LogFormat,
    /// The limits of clients.
    pub limits: Limits,
    /// Accepted settings that deserve a warning, one sentence each.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads and checks a configuration. The error has every variable that is wrong, not just the first.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`], with each variable, its value (unless secret) and what is accepted.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        read::config(lookup, &read::Machine::this())
    }

    /// The secrets that may change while the server runs.
    pub fn secrets(&self) -> Vec<Secret> {
        let redis = self.redis.as_ref().and_then(|redis| redis.password.clone());
        let kafka = self.kafka.as_ref().and_then(|kafka| kafka.sasl.as_ref());
        redis
            .into_iter()
            .chain(kafka.map(|sasl| sasl.password.clone()))
            .chain(self.auth.secrets())
            .collect()
    }
}
