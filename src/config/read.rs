//! Reads all variables into a [`Config`], from any source: the caller passes a lookup by name.
//!
//! Each variable is parsed by itself, by the [`Reader`] of single variables (those of Kafka and Redis in `read_kafka`
//! and `read_redis`). Then come the rules that concern several variables, and the defaults that depend on the
//! [`Machine`].

use std::path::Path;
use std::time::Duration;

use super::parse::{self, choice, number};
use super::reader::Reader;
use super::{
    Config, ConfigError, DedupConfig, Environment, FanoutIo, Limits, LogFormat, Network, Origins,
    ResumeConfig, SessionIdFormat, descriptor_limit, memory, read_auth, read_kafka, read_redis,
};

/// Descriptors that clients may not use: listeners, Kafka, Redis, log files, and connections that are being refused.
const MIN_RESERVE: u64 = 64;

/// The limit on a machine that sets none: the kernel's usual ceiling for one process (`nr_open`).
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// How much may be queued for all clients together if the system does not report its memory.
const SEND_MEMORY_BYTES: u64 = 256 << 20;

/// What the defaults take from the machine; a parameter, so that tests do not depend on it.
pub(super) struct Machine {
    /// The soft limit of open descriptors.
    pub(super) descriptors: u64,
    /// The host's name, with any characters.
    pub(super) hostname: String,
    /// Bytes of memory that this process may use, if the system reports it.
    pub(super) memory: Option<u64>,
}

impl Machine {
    pub(super) fn this() -> Self {
        let hostname = gethostname::gethostname().to_string_lossy().into_owned();
        Machine {
            descriptors: descriptor_limit().min(MOST_DESCRIPTORS),
            hostname,
            memory: memory::available(Path::new("/")),
        }
    }

    /// How much may be queued for all clients together: a quarter of the memory.
    fn send_memory_bytes(&self) -> usize {
        let quarter = self.memory.map_or(SEND_MEMORY_BYTES, |memory| memory / 4);
        usize::try_from(quarter).unwrap_or(usize::MAX)
    }

    /// Descriptors for clients: all but a reserve of 5 %, or [`MIN_RESERVE`] if that is more.
    fn max_connections(&self) -> u64 {
        self.descriptors
            .saturating_sub(MIN_RESERVE.max(self.descriptors.div_ceil(20)))
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const MEBIBYTE: usize = 1 << 20;

pub(super) fn config(
    lookup: &dyn Fn(&str) -> Option<String>,
    machine: &Machine,
) -> Result<Config, ConfigError> {
    let mut reader = Reader::new(lookup);
    let r = &mut reader;

    let port = r.required("PORT", |text| number::<u16>(text, 0..=u16::MAX));
    let ws_port = r
        .unless_empty("WS_PORT", |text| number::<u16>(text, 0..=u16::MAX))
        .filter(|ws| *ws != port);
    let host = r.required("HOST", |text| {
        text.parse()
            .map_err(|_| "expected an IPv4 or IPv6 address".to_owned())
    });
    let admin_addr = r.unless_empty("ADMIN_ADDR", |text| {
        text.parse()
            .map_err(|_| "expected an address with a port, such as 127.0.0.1:9464, or nothing".to_owned())
    });

    let environment = r.required("ENVIRONMENT", |text| {
        choice(
            text,
            &[
                ("development", Environment::Development),
                ("production", Environment::Production),
            ],
        )
    });
    let demo = r.optional("DEMO", parse::boolean);
    let allowed_origins = r.required("ALLOWED_ORIGINS", Origins::parse);
    let cors_origins = r.required("ALLOWED_ORIGINS", |text| Ok(text.to_owned()));
    let allow_credentials = r.required("ALLOW_CREDENTIALS", parse::boolean);
    let allowed_headers = r.required("ALLOWED_HEADERS", parse::headers);

    let auth = read_auth::auth(r);
    let redis = read_redis::redis(r);
    let kafka = read_kafka::kafka(r);

    let node_id = r
        .optional("NODE_ID", parse::node_id)
        .unwrap_or_else(|| parse::node_id_of_host(&machine.hostname));
    let presence_ttl = r.duration("PRESENCE_TTL", SECOND, HOUR);
    let presence_flush = r.duration("PRESENCE_FLUSH", Duration::from_millis(1), SECOND);
    let presence_grace = presence_grace(r, presence_ttl);
    let drain_timeout = r.duration("DRAIN_TIMEOUT", Duration::ZERO, HOUR);
    let trusted_proxies = r
        .optional("TRUSTED_PROXIES", |text| {
            let networks: Vec<Network> = parse::list(text).map(str::parse).collect::<Result<_, _>>()?;
            if networks.is_empty() {
                return Err("expected addresses and networks, separated by commas".to_owned());
            }
            Ok(networks)
        })
        .unwrap_or_default();
    let proxy_protocol = r.required("PROXY_PROTOCOL", parse::boolean);
    let http_keep_alive = r.duration("HTTP_KEEP_ALIVE", Duration::ZERO, HOUR);
    let fanout_io = r.required("FANOUT_IO", |text| {
        choice(
            text,
            &[
                ("auto", FanoutIo::Auto),
                ("send", FanoutIo::Send),
                ("uring", FanoutIo::Uring),
            ],
        )
    });
    let session_id_format = r.required("SESSION_ID_FORMAT", |text| {
        choice(
            text,
            &[("any", SessionIdFormat::Any), ("uuid", SessionIdFormat::Uuid)],
        )
    });
    let log_level = r.required("LOG_LEVEL", parse::log_level);
    let log_format = r.required("LOG_FORMAT", |text| {
        choice(text, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
    });
    let resume = resume(r);
    let dedup = DedupConfig {
        window: r.duration("DEDUP_WINDOW", SECOND, 24 * HOUR),
        bytes: r.required("DEDUP_BYTES", |text| number(text, 65_536..=64 << 30)),
    };
    let limits = limits(r, machine);
    let mut max_record_bytes = r.required("MAX_RECORD_BYTES", |text| number(text, 1024..=64 * MEBIBYTE));
    if r.text("MAX_RECORD_BYTES").is_none() {
        max_record_bytes = max_record_bytes.min(limits.send_queue_bytes);
    }

    let config = Config {
        port,
        ws_port,
        host,
        admin_addr,
        environment,
        demo: demo.unwrap_or(environment == Environment::Development),
        allowed_origins,
        cors_origins,
        allow_credentials,
        allowed_headers,
        redis,
        kafka,
        node_id,
        presence_ttl,
        presence_flush,
        presence_grace,
        drain_timeout,
        trusted_proxies,
        proxy_protocol,
        http_keep_alive,
        session_id_format,
        fanout_io,
        resume,
        dedup,
        auth,
        max_record_bytes,
        log_level,
        log_format,
        limits,
        warnings: Vec::new(),
    };
    check_together(r, &config);
    let problems = reader.into_problems();
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Invalid(problems))
    }
}

/// Checks the rules that concern several variables, leaving out those that are already wrong.
fn check_together(r: &mut Reader<'_>, config: &Config) {
    if let Some(admin) = config.admin_addr {
        let overlaps =
            admin.ip() == config.host || admin.ip().is_unspecified() || config.host.is_unspecified();
        for (name, port) in [("PORT", Some(config.port)), ("WS_PORT", config.ws_port)] {
            let same = port.is_some_and(|port| port != 0 && port == admin.port());
            if overlaps && same && !r.is_wrong(name) && !r.is_wrong("ADMIN_ADDR") {
                r.wrong(
                    "ADMIN_ADDR",
                    format!("expected a port other than {name}'s ({})", admin.port()),
                );
            }
        }
    }
    let any_with_credentials = config.allow_credentials && config.allowed_origins == Origins::Any;
    if any_with_credentials && config.environment == Environment::Production && !r.is_wrong("ALLOWED_ORIGINS")
    {
        r.wrong(
            "ALLOW_CREDENTIALS",
            "expected false: in production ALLOWED_ORIGINS=* would let any site act for its visitors; list the origins",
        );
    }
    if config.allow_credentials
        && config.allowed_origins.lists_null()
        && config.environment == Environment::Production
    {
        r.wrong(
            "ALLOW_CREDENTIALS",
            "must be false in production when ALLOWED_ORIGINS lists null, which any page can send (from a sandboxed frame)",
        );
    }
    if config.proxy_protocol && config.trusted_proxies.is_empty() && !r.is_wrong("TRUSTED_PROXIES") {
        r.wrong(
            "PROXY_PROTOCOL",
            "needs TRUSTED_PROXIES: the balancers that send the header; any other peer is closed",
        );
    }
    let queue = config.limits.send_queue_bytes;
    if config.max_record_bytes > queue && !r.is_wrong("MAX_RECORD_BYTES") && !r.is_wrong("SEND_QUEUE_BYTES") {
        let accepted = format!(
            "{} does not fit: expected at most SEND_QUEUE_BYTES ({queue})",
            config.max_record_bytes
        );
        r.wrong("MAX_RECORD_BYTES", accepted);
    }
    let slowest = config.presence_ttl / 4;
    if config.presence_flush > slowest && !r.is_wrong("PRESENCE_TTL") && !r.is_wrong("PRESENCE_FLUSH") {
        r.wrong(
            "PRESENCE_FLUSH",
            format!(
                "expected at most a quarter of PRESENCE_TTL ({})",
                parse::show_duration(slowest)
            ),
        );
    }
}

fn presence_grace(r: &mut Reader<'_>, presence_ttl: Duration) -> Duration {
    let grace = r.duration("PRESENCE_GRACE", Duration::ZERO, HOUR);
    if grace <= presence_ttl || r.is_wrong("PRESENCE_TTL") {
        return grace;
    }
    // If unset, it follows a shorter PRESENCE_TTL; if set, it must fit.
    if r.text("PRESENCE_GRACE").is_some() && !r.is_wrong("PRESENCE_GRACE") {
        let most = parse::show_duration(presence_ttl);
        r.wrong(
            "PRESENCE_GRACE",
            format!("expected a duration of at most PRESENCE_TTL ({most})"),
        );
    }
    presence_ttl
}

fn resume(r: &mut Reader<'_>) -> ResumeConfig {
    let recent_log_bytes = r.required("RECENT_LOG_BYTES", |text| match number(text, 0..=1 << 40)? {
        // Too little to hold what is being delivered.
        bytes @ 1..MEBIBYTE => Err(format!(
            "{bytes} is too small: expected 0, or at least {MEBIBYTE}"
        )),
        bytes => Ok(bytes),
    });
    ResumeConfig {
        recent_log_bytes,
        window: r.duration("RESUME_WINDOW", SECOND, 24 * HOUR),
        timeout: r.duration("RESUME_TIMEOUT", SECOND / 10, 60 * SECOND),
        max_messages: r.required("RESUME_MAX_MESSAGES", |text| number(text, 1..=5_000)),
        max_bytes: r.required("RESUME_MAX_BYTES", |text| number(text, 1024..=1024 * MEBIBYTE)),
    }
}

fn limits(r: &mut Reader<'_>, machine: &Machine) -> Limits {
    const SOME: u32 = 1_000_000;
    let max_message_bytes = r.required("MAX_MESSAGE_BYTES", |text| number(text, 64..=64 * MEBIBYTE));
    let send_queue_bytes = r.required("SEND_QUEUE_BYTES", |text| number(text, 4096..=1024 * MEBIBYTE));
    let send_memory_bytes = r
        .optional("SEND_MEMORY_BYTES", |text| number(text, 65_536..=usize::MAX >> 8))
        .unwrap_or_else(|| machine.send_memory_bytes());
    let send_timeout = r.duration("SEND_TIMEOUT", SECOND / 10, HOUR);
    let messages = r.required("RATE_LIMIT_MESSAGES", |text| number(text, 0..=SOME));
    let burst = r.required("RATE_LIMIT_BURST", |text| number(text, 0..=SOME));
    // An empty bucket, or one that never refills, would block everything: zero in either means no limit.
    let (rate_limit_messages, rate_limit_burst) = if messages == 0 || burst == 0 {
        (0, 0)
    } else {
        (messages, burst)
    };

    let most = usize::try_from(machine.max_connections()).unwrap_or(usize::MAX);
    if most == 0 {
        r.wrong(
            "MAX_CONNECTIONS",
            format!(
                "the limit of open descriptors is {}, and {MIN_RESERVE} are kept in reserve: raise it (ulimit -n)",
                machine.descriptors
            ),
        );
    }
    let max_connections = r.optional("MAX_CONNECTIONS", |text| {
        number(text, 0..=most).map_err(|accepted| {
            format!(
                "{accepted} (the limit of open descriptors, {}, less a reserve)",
                machine.descriptors
            )
        })
    });
    let per_ip = r.required("MAX_CONNECTIONS_PER_IP", |text| number(text, 0..=usize::MAX >> 8));
    let per_user = r.required("MAX_CONNECTIONS_PER_USER", |text| {
        number(text, 0..=usize::MAX >> 8)
    });

    let ping_interval = r.duration("PING_INTERVAL", SECOND / 10, HOUR);
    let mut pong_timeout = r.duration("PONG_TIMEOUT", SECOND / 10, HOUR);
    if pong_timeout > ping_interval && !r.is_wrong("PING_INTERVAL") {
        // If unset, it follows a shorter interval; if set, it must fit.
        pong_timeout = ping_interval;
        if r.text("PONG_TIMEOUT").is_some() {
            let most = parse::show_duration(ping_interval);
            r.wrong("PONG_TIMEOUT", format!("expected at most PING_INTERVAL ({most})"));
        }
    }

    Limits {
        max_message_bytes,
        send_queue_bytes,
        send_memory_bytes,
        send_timeout,
        rate_limit_messages,
        rate_limit_burst,
        max_connections: max_connections.filter(|&count| count > 0).unwrap_or(most),
        max_connections_per_ip: per_ip,
        max_connections_per_user: per_user,
        ping_interval,
        pong_timeout,
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "read_kafka_tests.rs"]
mod kafka_tests;

#[cfg(test)]
#[path = "read_refused_tests.rs"]
mod refused_tests;

#[cfg(test)]
#[path = "read_auth_tests.rs"]
mod auth_tests;
