//! The types of configuration values that are more than a number or a name.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// Which browser origins are allowed.
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

/// Request headers that pages may send in production, in addition to our own list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHeaders {
    /// `*`: any header that a page asks for.
    Any,
    /// These as well.
    List(Vec<String>),
}

/// What clients that come back can get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumeConfig {
    /// Memory for what has been read lately; 0: none.
    pub recent_log_bytes: usize,
    /// How far back the log is read.
    pub window: Duration,
    /// How long a client waits for what it has missed.
    pub timeout: Duration,
    /// The most messages of one replay.
    pub max_messages: usize,
    /// The most bytes of one replay.
    pub max_bytes: usize,
}

/// How repeated messages are recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DedupConfig {
    /// How long a repeated `client_message_id` is the same message.
    pub window: Duration,
    /// Memory for what was sent lately.
    pub bytes: usize,
}

/// How a batch's frames are sent to their sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FanoutIo {
    /// io_uring if the kernel allows it, else one `send` per socket.
    Auto,
    /// One `send` per socket.
    Send,
    /// io_uring, or the server does not start.
    Uring,
}

/// Which session ids are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionIdFormat {
    /// Any valid id (docs/PROTOCOL.md).
    Any,
    /// UUIDs only.
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

/// The presence store.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// A URL that the redis crate accepts. It may contain a password: print [`RedisConfig::redacted`].
    pub url: String,
    /// The password, if it is not in the URL: it may change while the server runs.
    pub password: Option<Secret>,
}

impl RedisConfig {
    /// The URL without its password.
    pub fn redacted(&self) -> String {
        match redis::parse_redis_url(&self.url) {
            Some(mut url) => {
                // A Unix socket's URL may have its password in the query, which is not needed to recognise it.
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

/// The shared log.
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
    /// Who is disconnected and refused.
    pub topic_control: String,
    /// The partitions of a topic that this server creates.
    pub partitions: i32,
    /// The replicas of a topic that this server creates.
    pub replication: i32,
    /// How long a busy log's records gather for one fetch.
    pub pace: Duration,
    /// How to connect to brokers; anything but plaintext needs the cargo feature `kafka-tls`.
    pub security: SecurityProtocol,
    /// The credentials; present exactly with the two SASL protocols.
    pub sasl: Option<Sasl>,
    /// The certificates to trust (PEM); None: the system's.
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

    /// Whether brokers require a user and a password.
    pub const fn has_sasl(self) -> bool {
        matches!(self, SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl)
    }

    /// Whether the connection is encrypted.
    pub const fn has_tls(self) -> bool {
        matches!(self, SecurityProtocol::Ssl | SecurityProtocol::SaslSsl)
    }
}

/// librdkafka's `sasl.mechanism`, limited to those that need only a user and a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// The password is sent as it is.
    Plain,
    /// Challenge and response, with SHA-256.
    ScramSha256,
    /// Challenge and response, with SHA-512.
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
    /// How they are presented.
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

/// The limits for one client and for all of them together. docs/PROTOCOL.md says what happens beyond them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a client's message with all its fragments: bounds what one client can make the server hold and parse.
    pub max_message_bytes: usize,
    /// Bytes that may be queued for one connection: bounds what a client that does not read can make the server hold.
    pub send_queue_bytes: usize,
    /// Bytes that may be queued for all connections together: bounds what many such clients can make the server hold.
    pub send_memory_bytes: usize,
    /// How long they may wait without progress: frees a queue that will never drain.
    pub send_timeout: Duration,
    /// Messages per second of one connection, in the long run; 0: no limit, and then the burst is 0, too.
    pub rate_limit_messages: u32,
    /// Messages that may arrive at once (the bucket's size): people paste, and clients reconnect with a backlog.
    pub rate_limit_burst: u32,
    /// Connections of this process, fewer than its descriptors: the reserve keeps `/health`, Kafka and Redis working.
    pub max_connections: usize,
    /// Connections of one address; 0: no limit, since many customers may share an address.
    pub max_connections_per_ip: usize,
    /// Connections of one user in one session; 0: no limit.
    pub max_connections_per_user: usize,
    /// How often a connection is pinged: shorter than the idle timeouts of common proxies (60 s).
    pub ping_interval: Duration,
    /// How long the pong may take before the connection counts as dead; at most `ping_interval`, so that only one ping
    /// is outstanding.
    pub pong_timeout: Duration,
}
