//! The configuration: read once, checked as a whole, and never changed afterwards.
//!
//! ```text
//! flags ─────┐
//! environment ┼─► lookup(name) ─► read.rs: parse, check, collect every problem ─► Config
//! .env ──────┘        ▲
//!               variables.rs: names, defaults, help
//! ```
//!
//! A flag wins over the environment, and that over `.env`. An empty value means "unset" and also hides the value of
//! a weaker source; for `WS_PORT` and `ADMIN_ADDR`, whose default is not empty, it means "none".
//!
//! Nothing here opens a port or a connection, logs, or keeps state; `main` turns an error into exit status 64.

mod descriptors;
mod dotenv;
mod error;
mod memory;
mod network;
mod origins;
mod parse;
mod read;
mod read_kafka;
mod read_redis;
mod reader;
mod sources;
mod surroundings;
mod types;
mod variables;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::secret::Secret;
pub use descriptors::{descriptor_limit, raise_descriptor_limit};
pub use error::{ConfigError, Problem};
pub use network::Network;
pub use origins::{Origin, Origins};
pub use sources::load;
pub use types::{
    AllowedHeaders, Environment, FanoutIo, KafkaConfig, Limits, LogFormat, RedisConfig, Sasl, SaslMechanism,
    SecurityProtocol, SessionIdFormat,
};
pub use variables::{Section, VARIABLES, Variable};

/// The exit status of a process whose configuration is wrong (`EX_USAGE` of sysexits.h).
pub const EXIT_CODE: u8 = 64;

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Serve until a signal comes.
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

/// Everything that can be set. Every value has been checked, alone and against the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// HTTP and WebSocket; 0: the system picks a port.
    pub port: u16,
    /// A second listener with the same routes, for frontends that were given that port; never equal to `port`.
    pub ws_port: Option<u16>,
    /// The address that both bind.
    pub host: IpAddr,
    /// `/metrics`, `/live` and `/ready`; apart, because metrics are not for the public.
    pub admin_addr: Option<SocketAddr>,
    /// Whether browsers' origins are checked.
    pub environment: Environment,
    /// The origins that may call.
    pub allowed_origins: Origins,
    /// The same as it is configured, for `/health`.
    pub cors_origins: String,
    /// Whether listed origins may send cookies; never together with [`Origins::Any`] in production.
    pub allow_credentials: bool,
    /// Request headers that pages may send in production, beside our own list.
    pub allowed_headers: AllowedHeaders,
    /// Where presence is kept; None: in this process.
    pub redis: Option<RedisConfig>,
    /// The log that all nodes share; None: the bus is in this process.
    pub kafka: Option<KafkaConfig>,
    /// This node's name, safe in a Redis key, a Kafka header and a log line.
    pub node_id: String,
    /// A lease's life: how long a node that died is still believed to hold its users.
    pub presence_ttl: Duration,
    /// How long joins and leaves are collected for one pipeline: longer saves Redis work, and delays the news.
    pub presence_flush: Duration,
    /// Who is back within it of their last connection's end was never gone; zero: there is no such time. At most
    /// `presence_ttl`.
    pub presence_grace: Duration,
    /// How long sending connections away may take at shutdown: they don't reconnect all at once.
    pub drain_timeout: Duration,
    /// Peers whose `X-Forwarded-For`, `Forwarded` and PROXY header are believed; empty: nobody's.
    pub trusted_proxies: Vec<Network>,
    /// Whether every connection begins with a PROXY header; then `trusted_proxies` is not empty.
    pub proxy_protocol: bool,
    /// How long a connection waits for its next request; zero: it ends with each answer.
    pub http_keep_alive: Duration,
    /// What a session's id may look like.
    pub session_id_format: SessionIdFormat,
    /// How a batch's frames reach their sockets.
    pub fanout_io: FanoutIo,
    /// Bytes of a record's value; a longer one is skipped. At most `limits.send_queue_bytes`, else it could never be
    /// queued.
    pub max_record_bytes: usize,
    /// A directive list for `tracing_subscriber::EnvFilter`.
    pub log_level: String,
    /// The form of log lines.
    pub log_format: LogFormat,
    /// What clients may take.
    pub limits: Limits,
    /// What is accepted and should be told all the same, each in a sentence.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads and checks a configuration. Every variable that is wrong is in the error, not just the first.
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
            .collect()
    }
}
