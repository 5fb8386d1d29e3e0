//! The table of variables: the only place that defines a name, its default and its meaning.
//!
//! `--help`, the parsing of flags and of the environment, `.env.example` and the documentation tests all read it, so
//! that none of them can miss a variable or disagree about a default.

/// A group of variables that are listed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Ports and addresses.
    Listeners,
    /// Which browser origins are allowed.
    Origins,
    /// Tokens and API keys.
    Auth,
    /// The presence store.
    Redis,
    /// The bus.
    Kafka,
    /// This node and its cluster.
    Node,
    /// Log lines.
    Logging,
    /// The limits for one client and for all of them.
    Limits,
}

impl Section {
    /// Every section, in the order of the listings.
    pub const ALL: &'static [Section] = &[
        Section::Listeners,
        Section::Origins,
        Section::Auth,
        Section::Redis,
        Section::Kafka,
        Section::Node,
        Section::Logging,
        Section::Limits,
    ];

    /// The heading in `--help` and in `.env.example`.
    pub const fn title(self) -> &'static str {
        match self {
            Section::Listeners => "Listeners",
            Section::Origins => "Environment and origins",
            Section::Auth => "Tokens and API keys (no key: anybody may join any session)",
            Section::Redis => "Redis (empty: presence is kept in this process)",
            Section::Kafka => "Kafka (empty: messages stay in this process)",
            Section::Node => "Node and cluster",
            Section::Logging => "Logging",
            Section::Limits => "Limits",
        }
    }

    /// Whether `.env.example` comments out the section's lines, because setting one changes the mode of operation.
    pub const fn is_optional(self) -> bool {
        matches!(self, Section::Auth | Section::Redis | Section::Kafka)
    }
}

/// One variable of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// The name in the environment and in `.env`.
    pub name: &'static str,
    /// The placeholder for the value in `--help`.
    pub value: &'static str,
    /// The default as a user would write it; empty if there is none or if it is computed at start.
    pub default: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// The section that lists it.
    pub section: Section,
    /// A value that must never be printed.
    pub secret: bool,
}

impl Variable {
    /// The name as a flag, without the two dashes: `MAX_MESSAGE_BYTES` is `max-message-bytes`.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// Whether its value may be any text, so that a comment cannot be told from the value.
    pub fn is_free_text(&self) -> bool {
        self.secret || matches!(self.value, "TEXT" | "FILE" | "URL")
    }

    /// The variable with this name.
    pub fn named(name: &str) -> Option<&'static Variable> {
        VARIABLES.iter().find(|variable| variable.name == name)
    }
}

const fn var(
    section: Section,
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Variable {
    Variable {
        name,
        value,
        default,
        help,
        section,
        secret: false,
    }
}

const fn secret(section: Section, name: &'static str, value: &'static str, help: &'static str) -> Variable {
    Variable {
        name,
        value,
        default: "",
        help,
        section,
        secret: true,
    }
}

use Section::{Auth, Kafka, Limits, Listeners, Logging, Node, Origins, Redis};

/// Every variable, in the order of the listings and checks.
#[rustfmt::skip]
pub const VARIABLES: &[Variable] = &[
    var(Listeners, "PORT", "PORT", "8082", "HTTP and WebSocket; 0: the system picks a free port"),
    var(Listeners, "WS_PORT", "PORT", "8081", "A second listener with the same routes; empty or equal to PORT: none"),
    var(Listeners, "HOST", "IP", "0.0.0.0", "The address that PORT and WS_PORT bind to"),
    var(Listeners, "ADMIN_ADDR", "IP:PORT", "127.0.0.1:9464", "/metrics, /live and /ready; empty: off"),

    var(Origins, "ENVIRONMENT", "NAME", "development", "development, or production: browsers' origins are checked"),
    var(Origins, "DEMO", "BOOL", "", "Serve the console at /demo; unset: in development only"),
    var(Origins, "ALLOWED_ORIGINS", "LIST", "*", "Origins (https://chat.example.com, https://*.example.com, null), comma-separated, or * for any"),
    var(Origins, "ALLOW_CREDENTIALS", "BOOL", "false", "Let listed origins send cookies (production only, not with * or null)"),
    var(Origins, "ALLOWED_HEADERS", "LIST", "", "More request headers that pages may send in production, or * for any"),

    secret(Auth, "JWT_SECRET", "TEXT", "The secret of tokens (HS256, HS384, HS512), at least 32 bytes"),
    var(Auth, "JWT_SECRET_FILE", "FILE", "", "A file with it, read again when it changes"),
    secret(Auth, "JWT_PUBLIC_KEY", "PEM", "The issuer's public key (RSA, P-256, P-384, Ed25519), PEM; up to four, one after the other"),
    var(Auth, "JWT_PUBLIC_KEY_FILE", "FILE", "", "A file with it, read again when it changes"),
    var(Auth, "JWKS_FILE", "FILE", "", "A JSON Web Key Set, read again when it changes"),
    var(Auth, "JWKS_URL", "URL", "", "The same from the issuer, https:// (http:// only for this machine)"),
    var(Auth, "JWT_ISSUER", "TEXT", "", "What a token's iss must be; empty: anything"),
    var(Auth, "JWT_AUDIENCE", "TEXT", "", "What a token's aud must be or contain; empty: anything"),
    var(Auth, "JWT_LEEWAY", "DURATION", "30s", "How far the issuer's clock may differ, for exp and nbf"),
    var(Auth, "JWT_CLAIM_USER", "NAME", "sub", "The claim with the user's id"),
    var(Auth, "JWT_CLAIM_ROLE", "NAME", "role", "The claim with the user's type: customer, agent or admin"),
    var(Auth, "JWT_CLAIM_SESSIONS", "NAME", "sessions", "The claim with the sessions: a list, or *; without it agents and admins have all, customers none"),
    secret(Auth, "API_KEYS", "LIST", "Keys of backends (X-API-Key), comma-separated, each at least 16 bytes"),
    var(Auth, "API_KEYS_FILE", "FILE", "", "A file with them, read again when it changes"),
    var(Auth, "AUTH_FAILURES_PER_MINUTE", "COUNT", "30", "Refused tokens and API keys of one address, then 429; 0: no limit"),

    secret(Redis, "REDIS_URL", "URL", "redis://[user:password@]host[:port][/db], or rediss:// for TLS; wins over the three below"),
    var(Redis, "REDIS_HOST", "HOST", "", "Redis' host name or address"),
    var(Redis, "REDIS_PORT", "PORT", "6379", "Redis' port"),
    secret(Redis, "REDIS_PASSWORD", "TEXT", "Redis' password"),
    var(Redis, "REDIS_PASSWORD_FILE", "FILE", "", "A file with Redis' password, read again when it changes; also for a URL without one"),

    var(Kafka, "KAFKA_BROKERS", "LIST", "", "Brokers to start from, host:port, comma-separated"),
    var(Kafka, "KAFKA_BROKER", "HOST:PORT", "", "The older name of KAFKA_BROKERS, which wins"),
    var(Kafka, "KAFKA_TOPIC_MESSAGES", "TOPIC", "chat-messages", "The topic of messages"),
    var(Kafka, "KAFKA_TOPIC_TYPING", "TOPIC", "typing-indicators", "The topic of typing indicators"),
    var(Kafka, "KAFKA_TOPIC_STATUS", "TOPIC", "connection-status", "The topic of who is connected"),
    var(Kafka, "KAFKA_TOPIC_CONTROL", "TOPIC", "livechat-control", "The topic of who is disconnected and refused"),
    var(Kafka, "KAFKA_TOPIC_PARTITIONS", "COUNT", "8", "Partitions of a topic that this server creates"),
    var(Kafka, "KAFKA_TOPIC_REPLICATION", "COUNT", "1", "Replicas of a topic that this server creates"),
    var(Kafka, "KAFKA_PACE", "DURATION", "5ms", "How long a busy log's records gather for one fetch; 0s: not at all"),
    var(Kafka, "KAFKA_SECURITY_PROTOCOL", "NAME", "plaintext", "plaintext, ssl, sasl_plaintext or sasl_ssl (all but the first: feature kafka-tls)"),
    var(Kafka, "KAFKA_SASL_MECHANISM", "NAME", "PLAIN", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
    var(Kafka, "KAFKA_SASL_USERNAME", "TEXT", "", "The SASL user"),
    secret(Kafka, "KAFKA_SASL_PASSWORD", "TEXT", "The SASL password"),
    var(Kafka, "KAFKA_SASL_PASSWORD_FILE", "FILE", "", "A file with the SASL password, read again when it changes"),
    var(Kafka, "KAFKA_SSL_CA", "FILE", "", "Certificates to trust, PEM; empty: the system's"),

    var(Node, "NODE_ID", "NAME", "", "This node's name among the others; empty: the host's name"),
    var(Node, "PRESENCE_TTL", "DURATION", "60s", "How long the users of a dead node still count as connected"),
    var(Node, "PRESENCE_FLUSH", "DURATION", "10ms", "How long joins and leaves are collected for one write"),
    var(Node, "PRESENCE_GRACE", "DURATION", "2s", "A user who returns within it never left; 0s: off; at most PRESENCE_TTL"),
    var(Node, "DRAIN_TIMEOUT", "DURATION", "30s", "How long closing all connections may take at shutdown; 0s: at once"),
    var(Node, "TRUSTED_PROXIES", "LIST", "", "Addresses and networks (10.0.0.0/8) trusted to report the client's address (X-Forwarded-For, Forwarded, PROXY)"),
    var(Node, "PROXY_PROTOCOL", "BOOL", "false", "Expect a PROXY header (v1, v2) from TRUSTED_PROXIES and close others; not on ADMIN_ADDR"),
    var(Node, "HTTP_KEEP_ALIVE", "DURATION", "75s", "How long a connection waits for its next request; 0s: closed after each answer"),
    var(Node, "SESSION_ID_FORMAT", "NAME", "any", "Which session ids are accepted: any, or uuid"),
    var(Node, "FANOUT_IO", "NAME", "auto", "How a batch reaches its sockets: send, uring (Linux 6.1), or auto"),
    var(Node, "RECENT_LOG_BYTES", "BYTES", "67108864", "Memory for messages read lately, for clients that come back; 0: none"),
    var(Node, "RESUME_WINDOW", "DURATION", "15m", "How far back the log is read for a client that comes back"),
    var(Node, "RESUME_TIMEOUT", "DURATION", "5s", "How long such a client waits for what it has missed"),
    var(Node, "RESUME_MAX_MESSAGES", "COUNT", "1000", "A client that has missed more must load them elsewhere"),
    var(Node, "RESUME_MAX_BYTES", "BYTES", "4194304", "The same, in bytes"),
    var(Node, "DEDUP_WINDOW", "DURATION", "5m", "How long a repeated client_message_id is the same message; the same on all nodes"),
    var(Node, "DEDUP_BYTES", "BYTES", "33554432", "Memory for recognizing them; when it is full, the oldest are forgotten"),
    var(Node, "MAX_RECORD_BYTES", "BYTES", "1048576", "Longer records in the log are skipped; at most SEND_QUEUE_BYTES, which also lowers the default"),

    var(Logging, "LOG_LEVEL", "LEVEL", "info", "off, error, warn, info, debug or trace; also target=level; other targets stay at info"),
    var(Logging, "LOG_FORMAT", "NAME", "text", "text or json"),

    var(Limits, "MAX_MESSAGE_BYTES", "BYTES", "65536", "A longer message from a client closes its connection (1009)"),
    var(Limits, "SEND_QUEUE_BYTES", "BYTES", "1048576", "What may wait for one client before it is a slow consumer (4008)"),
    var(Limits, "SEND_MEMORY_BYTES", "BYTES", "", "What may wait for all clients together (4008); empty: a quarter of the memory"),
    var(Limits, "SEND_TIMEOUT", "DURATION", "10s", "How long it may wait for one client without any progress (4008)"),
    var(Limits, "RATE_LIMIT_MESSAGES", "COUNT", "20", "Messages a second of one connection; 0: no limit"),
    var(Limits, "RATE_LIMIT_BURST", "COUNT", "40", "How many messages may arrive at once before the rate applies; 0: no limit"),
    var(Limits, "MAX_CONNECTIONS", "COUNT", "", "Connections of this process; empty or 0: the descriptor limit less a reserve"),
    var(Limits, "MAX_CONNECTIONS_PER_IP", "COUNT", "0", "Connections of one address; 0: no limit"),
    var(Limits, "MAX_CONNECTIONS_PER_USER", "COUNT", "0", "Connections of one user in one session and node, beyond which the oldest is closed (4009); 0: no limit"),
    var(Limits, "PING_INTERVAL", "DURATION", "25s", "How often a quiet connection is pinged"),
    var(Limits, "PONG_TIMEOUT", "DURATION", "10s", "How long the answer to a ping may take (4001); at most PING_INTERVAL"),
];
