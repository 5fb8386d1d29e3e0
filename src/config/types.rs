//! The values of a configuration that are more than a number or a name.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// Where the server runs, as far as browsers are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// Any origin may call, none with credentials.
    Development,
    /// Only the listed origins may call.
    Production,
}

impl Environment {
    /// The name as `/health` shows it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Environment::Development => "development",
            Environment::Production => "production",
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Request headers that pages may send in production, beside our own list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHeaders {
    /// `*`: whatever a page asks for.
    Any,
    /// These, too.
    List(Vec<String>),
}

/// How a batch's frames reach their sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FanoutIo {
    /// io_uring where the kernel allows it, else one `send` per socket.
    Auto,
    /// One `send` per socket.
    Send,
    /// io_uring, or no start.
    Uring,
}

/// What a session's id may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionIdFormat {
    /// Whatever contract.md allows in an id.
    Any,
    /// A UUID only.
    Uuid,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where presence is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// A URL that the redis crate has parsed once already. May hold a password: print [`RedisConfig::redacted`].
    pub url: String,
    /// The password, where it is not in the URL: it may change while the server runs.
    pub password: Option<Secret>,
}

impl RedisConfig {
    /// The URL without its password.
    pub fn redacted(&self) -> String {
        match redis::parse_redis_url(&self.url) {
            Some(mut url) => {
                // A socket's URL may carry its password in the query, and none of the query is needed to recognise it.
                url.set_query(None);
                if url.password().is_some() {
                    let _ = url.set_password(Some("***"));
                }
                url.into()
            }
            None => "***".to_owned(),
        }
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("url", &self.redacted())
            .field("password", &self.password)
            .finish()
    }
}

/// The log that all nodes share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `host:port`, comma-separated without blanks: librdkafka's `bootstrap.servers`.
    pub brokers: String,
    /// Messages, native and old records.
    pub topic_messages: String,
    /// Typing indicators, which other services read.
    pub topic_typing: String,
    /// Connection status, which other services read.
    pub topic_status: String,
    /// Partitions of a topic that this server creates.
    pub partitions: i32,
    /// Replicas of a topic that this server creates.
    pub replication: i32,
    /// How long a busy log's records gather for one fetch.
    pub pace: Duration,
    /// How brokers are spoken to; anything but plaintext needs the cargo feature `kafka-tls`.
    pub security: SecurityProtocol,
    /// Who this server is to the brokers; there exactly with the two SASL protocols.
    pub sasl: Option<Sasl>,
    /// Certificates to trust (PEM); None: the system's.
    pub ssl_ca: Option<PathBuf>,
}

/// librdkafka's `security.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityProtocol {
    /// Neither encrypted nor authenticated.
    Plaintext,
    /// Encrypted.
    Ssl,
    /// Authenticated.
    SaslPlaintext,
    /// Both.
    SaslSsl,
}

impl SecurityProtocol {
    /// The name that librdkafka takes.
    pub const fn as_str(self) -> &'static str {
        match self {
            SecurityProtocol::Plaintext => "plaintext",
            SecurityProtocol::Ssl => "ssl",
            SecurityProtocol::SaslPlaintext => "sasl_plaintext",
            SecurityProtocol::SaslSsl => "sasl_ssl",
        }
    }

    /// Whether brokers want a user and a password.
    pub const fn has_sasl(self) -> bool {
        matches!(self, SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl)
    }

    /// Whether the connection is encrypted.
    pub const fn has_tls(self) -> bool {
        matches!(self, SecurityProtocol::Ssl | SecurityProtocol::SaslSsl)
    }
}

/// librdkafka's `sasl.mechanism`, as far as a user and a password are enough for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// The password goes over the wire.
    Plain,
    /// A challenge, with SHA-256.
    ScramSha256,
    /// A challenge, with SHA-512.
    ScramSha512,
}

impl SaslMechanism {
    /// The name that librdkafka takes.
    pub const fn as_str(self) -> &'static str {
        match self {
            SaslMechanism::Plain => "PLAIN",
            SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
            SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// A user and a password for Kafka.
#[derive(Clone, PartialEq, Eq)]
pub struct Sasl {
    /// How they are proved.
    pub mechanism: SaslMechanism,
    /// librdkafka's `sasl.username`.
    pub username: String,
    /// librdkafka's `sasl.password`; it may change while the server runs.
    pub password: Secret,
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sasl")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What one client, and all of them together, may take. Contract 7 says what happens beyond.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a client's message, all its fragments together: bounds what one client can make us hold and parse.
    pub max_message_bytes: usize,
    /// Bytes that may wait for one connection: bounds what a client that doesn't read can make us hold.
    pub send_queue_bytes: usize,
    /// Bytes that may wait for all connections together: bounds what many such clients can make us hold.
    pub send_memory_bytes: usize,
    /// How long they may wait without any progress: frees a queue that will never drain.
    pub send_timeout: Duration,
    /// Messages a second of one connection, in the long run; 0: no limit, and then the burst is 0 too.
    pub rate_limit_messages: u32,
    /// Messages that may come at once (a bucket's size): people paste, and clients reconnect with a backlog.
    pub rate_limit_burst: u32,
    /// Connections of this process, fewer than its descriptors: the reserve keeps `/health`, Kafka and Redis alive.
    pub max_connections: usize,
    /// Connections of one address; 0: no limit, since many customers may share one.
    pub max_connections_per_ip: usize,
    /// Connections of one user in one session; 0: no limit.
    pub max_connections_per_user: usize,
    /// How often a connection is pinged: shorter than the idle timeouts of common proxies (60 s).
    pub ping_interval: Duration,
    /// How long the pong may take before the connection counts as dead; at most `ping_interval`, so that no two pings
    /// are under way.
    pub pong_timeout: Duration,
}
