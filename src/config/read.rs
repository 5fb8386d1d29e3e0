//! From a lookup to a [`Config`]: every variable is parsed, then they are checked against each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::IntoConnectionInfo;

use super::parse::{self, choice, duration, number};
use super::{
    Config, ConfigError, Environment, FanoutIo, KafkaConfig, Limits, LogFormat, Network, Origins, Problem,
    RedisConfig, Sasl, SaslMechanism, SecurityProtocol, SessionIdFormat, Variable, memory,
};
use crate::secret::Secret;

/// Whether this build can speak TLS and SASL to Kafka.
const KAFKA_TLS: bool = cfg!(feature = "kafka-tls");

/// Descriptors that are not for clients: listeners, Kafka, Redis, log files, and connections that are being refused.
const MIN_RESERVE: u64 = 64;

/// Where a machine sets no limit of its own, this is ours: the kernel's usual ceiling for one process (`nr_open`).
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// What may wait for all clients together where the system doesn't say how much memory there is.
const SEND_MEMORY_BYTES: u64 = 256 << 20;

/// What the machine contributes to the defaults; a parameter, so that tests don't depend on the machine.
pub(super) struct Machine {
    /// The soft limit of open descriptors.
    pub(super) descriptors: u64,
    /// The host's name, whatever its characters.
    pub(super) hostname: String,
    /// Bytes of memory that this process may have, where the system says.
    pub(super) memory: Option<u64>,
}

impl Machine {
    pub(super) fn this() -> Self {
        let soft = rlimit::Resource::NOFILE.get_soft().unwrap_or(1024);
        let hostname = gethostname::gethostname().to_string_lossy().into_owned();
        Machine {
            descriptors: soft.min(MOST_DESCRIPTORS),
            hostname,
            memory: memory::available(Path::new("/")),
        }
    }

    /// What may wait for all clients together: a quarter of the memory.
    fn send_memory_bytes(&self) -> usize {
        let quarter = self.memory.map_or(SEND_MEMORY_BYTES, |memory| memory / 4);
        usize::try_from(quarter).unwrap_or(usize::MAX)
    }

    /// Descriptors that clients may have: all but 5 %, and at least [`MIN_RESERVE`].
    fn max_connections(&self) -> u64 {
        self.descriptors
            .saturating_sub(MIN_RESERVE.max(self.descriptors.div_ceil(20)))
    }
}

/// Reads variables and remembers what was wrong with them.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    /// The value, without the blanks around it. None: unset. Some(""): set to nothing.
    fn given(&self, name: &str) -> Option<String> {
        let value = (self.lookup)(name)?;
        // A password may begin or end with a blank.
        let keep = Variable::named(name).is_some_and(|variable| variable.secret);
        Some(if keep { value } else { value.trim().to_owned() })
    }

    /// The value, if there is one that is not empty.
    fn text(&self, name: &str) -> Option<String> {
        self.given(name).filter(|value| !value.is_empty())
    }

    /// Notes that the variable is wrong.
    fn wrong(&mut self, name: &str, accepted: impl Into<String>) {
        let secret = Variable::named(name).is_some_and(|variable| variable.secret);
        let value = self.text(name).filter(|_| !secret);
        self.problems.push(Problem {
            name: name.to_owned(),
            value,
            accepted: accepted.into(),
        });
    }

    fn is_wrong(&self, name: &str) -> bool {
        self.problems.iter().any(|problem| problem.name == name)
    }

    /// The parsed value; None where it is unset or wrong.
    fn optional<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(&self.text(name)?) {
            Ok(value) => Some(value),
            Err(accepted) => {
                self.wrong(name, accepted);
                None
            }
        }
    }

    /// The parsed value, or the parsed default of the table where it is unset or wrong.
    fn required<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let default = Variable::named(name).map_or("", |variable| variable.default);
        match self.optional(name, &parse) {
            Some(value) => value,
            None => {
                parse(default).unwrap_or_else(|why| unreachable!("the default of {name} is wrong: {why}"))
            }
        }
    }

    /// As `required`, but set to nothing means none.
    fn unless_empty<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        if self.given(name).is_some_and(|value| value.is_empty()) {
            None
        } else {
            Some(self.required(name, parse))
        }
    }

    /// A secret: the variable's own value, or the content of the file that its `_FILE` variable names.
    fn secret(&mut self, name: &'static str, file: &'static str) -> Option<Secret> {
        match (self.text(name), self.text(file)) {
            (Some(_), Some(_)) => {
                self.wrong(file, format!("{name} is set, too: expected only one of them"));
                None
            }
            (Some(value), None) => Some(Secret::fixed(value)),
            (None, Some(_)) => self.optional(file, |path| Secret::from_file(file, Path::new(path))),
            (None, None) => None,
        }
    }

    fn duration(&mut self, name: &str, from: Duration, to: Duration) -> Duration {
        self.required(name, |text| duration(text, from..=to))
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const MEBIBYTE: usize = 1 << 20;

pub(super) fn config(
    lookup: &dyn Fn(&str) -> Option<String>,
    machine: &Machine,
) -> Result<Config, ConfigError> {
    let mut reader = Reader {
        lookup,
        problems: Vec::new(),
    };
    let r = &mut reader;

    let port = r.required("PORT", |text| number::<u16>(text, 0..=u16::MAX));
    let ws_port = r
        .unless_empty("WS_PORT", |text| number::<u16>(text, 0..=u16::MAX))
        .filter(|ws| *ws != port);
    let host = r.required("HOST", |text| {
        text.parse()
            .map_err(|_| "an IPv4 or IPv6 address is accepted".to_owned())
    });
    let admin_addr = r.unless_empty("ADMIN_ADDR", |text| {
        text.parse()
            .map_err(|_| "an address with a port, such as 127.0.0.1:9464, or nothing is accepted".to_owned())
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
    let allowed_origins = r.required("ALLOWED_ORIGINS", Origins::parse);
    let cors_origins = r.required("ALLOWED_ORIGINS", |text| Ok(text.to_owned()));
    let allow_credentials = r.required("ALLOW_CREDENTIALS", parse::boolean);
    let allowed_headers = r.required("ALLOWED_HEADERS", parse::headers);

    let redis = redis(r);
    let kafka = kafka(r);

    let node_id = r
        .optional("NODE_ID", parse::node_id)
        .unwrap_or_else(|| parse::node_id_of_host(&machine.hostname));
    let presence_ttl = r.duration("PRESENCE_TTL", SECOND, HOUR);
    let presence_flush = r.duration("PRESENCE_FLUSH", Duration::from_millis(1), SECOND);
    let presence_grace = presence_grace(r, presence_ttl);
    let drain_timeout = r.duration("DRAIN_TIMEOUT", Duration::ZERO, HOUR);
    let trusted_proxies = r
        .optional("TRUSTED_PROXIES", |text| {
            parse::list(text).map(str::parse::<Network>).collect()
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
        max_record_bytes,
        log_level,
        log_format,
        limits,
    };
    check_together(r, &config);
    if reader.problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Invalid(reader.problems))
    }
}

/// The rules that need more than one variable. Those that are wrong by themselves are left out of it.
fn check_together(r: &mut Reader<'_>, config: &Config) {
    if let Some(admin) = config.admin_addr {
        let overlaps =
            admin.ip() == config.host || admin.ip().is_unspecified() || config.host.is_unspecified();
        for (name, port) in [("PORT", Some(config.port)), ("WS_PORT", config.ws_port)] {
            let same = port.is_some_and(|port| port != 0 && port == admin.port());
            if overlaps && same && !r.is_wrong(name) && !r.is_wrong("ADMIN_ADDR") {
                r.wrong(
                    "ADMIN_ADDR",
                    format!("another port than {name}'s ({}) is accepted", admin.port()),
                );
            }
        }
    }
    let any_with_credentials = config.allow_credentials && config.allowed_origins == Origins::Any;
    if any_with_credentials && config.environment == Environment::Production && !r.is_wrong("ALLOWED_ORIGINS")
    {
        r.wrong(
            "ALLOW_CREDENTIALS",
            "with ALLOWED_ORIGINS=* only false is accepted in production: list the origins, or any site could act for its visitors",
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
            "{} is more than SEND_QUEUE_BYTES ({queue}), which is the most that is accepted",
            config.max_record_bytes
        );
        r.wrong("MAX_RECORD_BYTES", accepted);
    }
    let slowest = config.presence_ttl / 4;
    if config.presence_flush > slowest && !r.is_wrong("PRESENCE_TTL") && !r.is_wrong("PRESENCE_FLUSH") {
        r.wrong(
            "PRESENCE_FLUSH",
            format!(
                "at most a quarter of PRESENCE_TTL ({}) is accepted",
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
    // Unset, it follows a shorter PRESENCE_TTL; set, it must fit.
    if r.text("PRESENCE_GRACE").is_some() && !r.is_wrong("PRESENCE_GRACE") {
        let most = parse::show_duration(presence_ttl);
        r.wrong(
            "PRESENCE_GRACE",
            format!("expected a duration of at most PRESENCE_TTL ({most})"),
        );
    }
    presence_ttl
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
    // A bucket of no size, or one that is never filled, would stop everything: either zero means no limit.
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
        // Unset, it follows a shorter interval; set, it must fit.
        pong_timeout = ping_interval;
        if r.text("PONG_TIMEOUT").is_some() {
            let most = parse::show_duration(ping_interval);
            r.wrong(
                "PONG_TIMEOUT",
                format!("at most PING_INTERVAL ({most}) is accepted"),
            );
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

const REDIS_PASSWORD_FILE: &str = "REDIS_PASSWORD_FILE";

/// `REDIS_URL`, or one made of the older three.
fn redis(r: &mut Reader<'_>) -> Option<RedisConfig> {
    let port = r.required("REDIS_PORT", |text| number::<u16>(text, 1..=u16::MAX));
    let host = r.optional("REDIS_HOST", |text| {
        let bracketed = if text.parse::<std::net::Ipv6Addr>().is_ok() {
            format!("[{text}]")
        } else {
            text.to_owned()
        };
        let usable =
            parse::is_host(&bracketed) && redis_url_problem(&format!("redis://{bracketed}")).is_none();
        if usable {
            Ok(bracketed)
        } else {
            Err("a host name or an address is accepted; its port is REDIS_PORT".to_owned())
        }
    });
    let password = r.secret("REDIS_PASSWORD", REDIS_PASSWORD_FILE);
    let has_file = r.text(REDIS_PASSWORD_FILE).is_some();
    if let Some(url) = r.text("REDIS_URL") {
        match redis_url_problem(&url) {
            Some(problem) => r.wrong("REDIS_URL", problem),
            None if has_file && has_password(&url) => {
                r.wrong(
                    REDIS_PASSWORD_FILE,
                    "REDIS_URL has a password, too: expected only one of them",
                );
            }
            None => {}
        }
        // The URL wins over REDIS_PASSWORD, also where it has none.
        let password = password.filter(|_| has_file);
        return Some(RedisConfig { url, password });
    }
    let Some(host) = host else {
        if !r.is_wrong("REDIS_HOST") {
            for name in ["REDIS_PASSWORD", REDIS_PASSWORD_FILE] {
                if r.text(name).is_some() && !r.is_wrong(name) {
                    r.wrong(
                        name,
                        "only accepted with REDIS_HOST, which is empty (there is no default any more)",
                    );
                }
            }
        }
        return None;
    };
    Some(RedisConfig {
        url: format!("redis://{host}:{port}"),
        password,
    })
}

/// Whether a URL that is right has a password in it.
fn has_password(url: &str) -> bool {
    url.into_connection_info()
        .is_ok_and(|info| info.redis_settings().password().is_some())
}

/// What is wrong with a URL, told without the URL itself: it may hold a password.
fn redis_url_problem(url: &str) -> Option<String> {
    const ACCEPTED: &str = "redis://[user:password@]host[:port][/db] is accepted";
    let Some(parsed) = redis::parse_redis_url(url) else {
        return Some(format!(
            "{ACCEPTED} (a password's special characters percent-encoded)"
        ));
    };
    let wants_tls = matches!(parsed.scheme(), "rediss" | "valkeys");
    match parsed.into_connection_info() {
        Ok(_) => None,
        // The client knows whether it was built with TLS; its other errors don't say what would be right.
        Err(_) if wants_tls && !redis_tls() => Some(format!("this build has no TLS for Redis: {ACCEPTED}")),
        Err(_) => Some(ACCEPTED.to_owned()),
    }
}

/// Whether the Redis client of this build can speak TLS.
fn redis_tls() -> bool {
    "rediss://localhost".into_connection_info().is_ok()
}

fn kafka(r: &mut Reader<'_>) -> Option<KafkaConfig> {
    // Both are checked, so that the older name can't hide a mistake that appears when the newer is removed.
    let older = r.optional("KAFKA_BROKER", parse::brokers);
    let brokers = r.optional("KAFKA_BROKERS", parse::brokers).or(older);

    let topics = ["KAFKA_TOPIC_MESSAGES", "KAFKA_TOPIC_TYPING", "KAFKA_TOPIC_STATUS"];
    let [topic_messages, topic_typing, topic_status] = topics.map(|name| r.required(name, parse::topic));
    // Kafka's metrics can't tell a dot from an underscore, so it refuses to have both names.
    let key = |topic: &str| topic.replace('.', "_");
    for (name, topic, others) in [
        (topics[1], &topic_typing, vec![(topics[0], &topic_messages)]),
        (
            topics[2],
            &topic_status,
            vec![(topics[0], &topic_messages), (topics[1], &topic_typing)],
        ),
    ] {
        if let Some((other, _)) = others.into_iter().find(|(_, other)| key(other) == key(topic)) {
            r.wrong(
                name,
                format!("another topic than {other}'s ({topic}) is accepted"),
            );
        }
    }
    let partitions = r.required("KAFKA_TOPIC_PARTITIONS", |text| number(text, 1..=10_000));
    let replication = r.required("KAFKA_TOPIC_REPLICATION", |text| {
        number(text, 1..=i32::from(i16::MAX))
    });
    let pace = r.duration("KAFKA_PACE", Duration::ZERO, Duration::from_millis(100));
    let (security, sasl, ssl_ca) = kafka_security(r);

    Some(KafkaConfig {
        brokers: brokers?,
        topic_messages,
        topic_typing,
        topic_status,
        partitions,
        replication,
        pace,
        security,
        sasl,
        ssl_ca,
    })
}

fn kafka_security(r: &mut Reader<'_>) -> (SecurityProtocol, Option<Sasl>, Option<PathBuf>) {
    use SecurityProtocol::{Plaintext, SaslPlaintext, SaslSsl, Ssl};
    const PROTOCOL: &str = "KAFKA_SECURITY_PROTOCOL";
    const PASSWORD: &str = "KAFKA_SASL_PASSWORD";
    const PASSWORD_FILE: &str = "KAFKA_SASL_PASSWORD_FILE";
    let security = r.required(PROTOCOL, |text| {
        choice(
            text,
            &[Plaintext, Ssl, SaslPlaintext, SaslSsl].map(|protocol| (protocol.as_str(), protocol)),
        )
    });
    if security != Plaintext && !KAFKA_TLS {
        r.wrong(PROTOCOL, "this build has neither TLS nor SASL for Kafka (cargo feature kafka-tls): only plaintext is accepted");
    }
    let mechanism = r.required("KAFKA_SASL_MECHANISM", |text| {
        use SaslMechanism::{Plain, ScramSha256, ScramSha512};
        choice(
            text,
            &[Plain, ScramSha256, ScramSha512].map(|mechanism| (mechanism.as_str(), mechanism)),
        )
    });
    let username = r.text("KAFKA_SASL_USERNAME");
    let password = r.secret(PASSWORD, PASSWORD_FILE);
    let ssl_ca = r.optional("KAFKA_SSL_CA", |text| match std::fs::read(text) {
        Ok(content) if content.windows(11).any(|window| window == b"-----BEGIN ") => Ok(PathBuf::from(text)),
        Ok(_) => Err("a file with certificates in PEM form is accepted".to_owned()),
        Err(why) => Err(format!("a readable file is accepted: {why}")),
    });

    if !r.is_wrong(PROTOCOL) {
        for name in [
            "KAFKA_SASL_MECHANISM",
            "KAFKA_SASL_USERNAME",
            PASSWORD,
            PASSWORD_FILE,
        ] {
            let is_set = r.text(name).is_some();
            if !security.has_sasl() && is_set {
                r.wrong(
                    name,
                    format!("only accepted with {PROTOCOL}=sasl_ssl or sasl_plaintext"),
                );
            }
            let is_needed = match name {
                "KAFKA_SASL_USERNAME" => true,
                PASSWORD => r.text(PASSWORD_FILE).is_none(),
                _ => false,
            };
            if security.has_sasl() && !is_set && is_needed {
                r.wrong(name, format!("needed with {PROTOCOL}={}", security.as_str()));
            }
        }
        if !security.has_tls() && ssl_ca.is_some() {
            r.wrong(
                "KAFKA_SSL_CA",
                format!("only accepted with {PROTOCOL}=ssl or sasl_ssl"),
            );
        }
    }
    let sasl = security.has_sasl().then(|| Sasl {
        mechanism,
        username: username.unwrap_or_default(),
        password: password.unwrap_or_else(|| Secret::fixed(String::new())),
    });
    (security, sasl, ssl_ca)
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
