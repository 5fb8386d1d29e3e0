//! Failures of Redis in words for the operator. Health shows them to anybody, so they name no address and no user; the
//! log has both.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{ConnectionAddr, ErrorKind, RedisError, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Error codes that concern the server and not one key: nothing else will work either.
const SERVER_ERRORS: [&str; 12] = [
    "NOSCRIPT",
    "READONLY",
    "LOADING",
    "OOM",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "MISCONF",
    "BUSY",
    "NOREPLICAS",
];

/// What a failure means.
#[derive(Debug, PartialEq, Eq)]
pub struct Cause {
    /// For everybody.
    pub public: String,
    /// For the log only: Redis' own words, if they contain no secret.
    pub words: Option<String>,
}

impl Cause {
    pub fn of(error: &RedisError) -> Self {
        if let Some(code) = error.code() {
            return of_answer(code, error.detail().unwrap_or_default());
        }
        match error.kind() {
            ErrorKind::Parse => Self::plain("what answers there is not Redis, or it expects TLS (rediss://)"),
            _ => match io_error(error) {
                Some(error) => of_io(error),
                None => Self::plain(error.category()),
            },
        }
    }

    fn plain(public: &str) -> Self {
        Self {
            public: public.to_owned(),
            words: None,
        }
    }

    fn with(public: &str, words: impl Into<String>) -> Self {
        Self {
            public: public.to_owned(),
            words: Some(words.into()),
        }
    }
}

/// Redis has answered with an error. Its text is only shown if it can't repeat what was sent: for an unknown command it
/// repeats the arguments, and those of `AUTH` are a password.
fn of_answer(code: &str, text: &str) -> Cause {
    let says = |part: &str| text.to_ascii_lowercase().contains(part);
    match code {
        "WRONGPASS" => Cause::plain("wrong user or password (WRONGPASS)"),
        "NOAUTH" => Cause::plain("it wants a password, and none is set (NOAUTH)"),
        "NOPERM" => Cause::with("its user lacks a permission (NOPERM)", text),
        "LOADING" => Cause::plain("it is still loading its data (LOADING)"),
        "READONLY" => Cause::plain("it is a replica, which takes no writes: use its master (READONLY)"),
        "OOM" => Cause::plain("it is out of memory: maxmemory is reached (OOM)"),
        "MISCONF" => Cause::with("it can't save its data and takes no writes (MISCONF)", text),
        "MASTERDOWN" => Cause::plain("it is a replica whose master is down (MASTERDOWN)"),
        "NOREPLICAS" => Cause::plain("it has too few replicas to take writes (NOREPLICAS)"),
        "BUSY" => Cause::plain("it is busy with somebody's script (BUSY)"),
        "CLUSTERDOWN" => Cause::plain("its cluster is down (CLUSTERDOWN)"),
        _ if says("max number of clients") => Cause::plain("it has too many clients (maxclients)"),
        _ if says("db index is out of range") || says("invalid db index") => {
            Cause::plain("it has no database of that number")
        }
        _ if says("without any password configured") || says("no password is set") => {
            Cause::plain("a password is set, and it has none for this user")
        }
        _ if says("protected mode") || code == "DENIED" => {
            Cause::plain("it is in protected mode and refuses other machines (DENIED)")
        }
        code => match script_error(text) {
            Some(inner) => of_answer(inner, ""),
            None => Cause::plain(&format!("it refused a command ({code})")),
        },
    }
}

/// The code of an error inside a script: older servers have it in the text only.
fn script_error(text: &str) -> Option<&str> {
    let mut words = text.split_whitespace();
    words.find_map(|word| word.strip_prefix('-').filter(|code| SERVER_ERRORS.contains(code)))
}

/// The connection's error, wherever the library keeps it.
fn io_error(error: &RedisError) -> Option<&io::Error> {
    let source = error.source()?;
    let shared = source.downcast_ref::<Arc<dyn Error + Send + Sync>>();
    shared.map_or_else(|| source.downcast_ref(), |shared| shared.downcast_ref())
}

/// Asks a server that has just closed the connection without an answer the library would show: it may be a Redis that
/// refuses new connections, or no Redis at all.
pub async fn answer_to_ping(address: &ConnectionAddr, patience: Duration) -> Option<RedisError> {
    let ConnectionAddr::Tcp(host, port) = address else {
        return None;
    };
    let ask = async {
        let mut socket = TcpStream::connect((host.as_str(), *port)).await?;
        // Another protocol's server may wait for an empty line.
        socket.write_all(b"PING\r\n\r\n").await?;
        let mut answer = vec![0; 512];
        let read = socket.read(&mut answer).await?;
        answer.truncate(read);
        io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(patience, ask).await.ok()?.ok()?;
    match redis::parse_redis_value(&answer) {
        _ if answer.is_empty() => None,
        Ok(Value::ServerError(error)) => Some(error.into()),
        Ok(_) => None,
        Err(_) => Some((ErrorKind::Parse, "not Redis").into()),
    }
}

fn of_io(error: &io::Error) -> Cause {
    use io::ErrorKind as Kind;
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(tls) = tls {
        return of_tls(tls);
    }
    match error.kind() {
        Kind::TimedOut => Cause::plain("it does not answer in time"),
        Kind::ConnectionRefused => Cause::plain("the connection is refused"),
        Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => {
            Cause::with("it can't be reached", error.to_string())
        }
        Kind::NotFound => Cause::plain("its socket does not exist"),
        Kind::PermissionDenied => Cause::plain("its socket may not be opened"),
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe | Kind::UnexpectedEof => {
            Cause::plain("it has closed the connection")
        }
        // The standard library's words; it has no error kind for this.
        _ if error.to_string().starts_with("failed to lookup address") => {
            Cause::with("its name can't be resolved", error.to_string())
        }
        _ => Cause::with("the connection failed", error.to_string()),
    }
}

fn of_tls(error: &rustls::Error) -> Cause {
    let public = match error {
        rustls::Error::InvalidCertificate(_) => "TLS: its certificate is not trusted",
        rustls::Error::InvalidMessage(_) => "TLS: it does not speak it",
        rustls::Error::AlertReceived(_) => "TLS: it refuses the handshake",
        _ => "TLS: the handshake failed",
    };
    Cause::with(public, error.to_string())
}

/// Whether nothing else will work either. Older servers report an error inside a script by its text only.
pub fn is_server_error(error: &RedisError) -> bool {
    let is_one = |code: &str| SERVER_ERRORS.contains(&code);
    let within = |text: &str| {
        text.split_whitespace()
            .any(|word| word.strip_prefix('-').is_some_and(is_one))
    };
    error.code().is_some_and(is_one) || error.detail().is_some_and(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_answer_is_explained_without_secrets() {
        for (code, text, part) in [
            (
                "WRONGPASS",
                "invalid username-password pair",
                "wrong user or password",
            ),
            ("NOAUTH", "Authentication required.", "wants a password"),
            ("ERR", "max number of clients reached", "too many clients"),
            ("ERR", "DB index is out of range", "database"),
            (
                "ERR",
                "AUTH <password> called without any password configured for the default user",
                "has none",
            ),
            (
                "ERR",
                "unknown command 'AUTH', with args beginning with: 'hunter2'",
                "ERR",
            ),
            ("WHATEVER", "hunter2", "WHATEVER"),
            (
                "ERR",
                "Error running script: -OOM command not allowed",
                "out of memory",
            ),
        ] {
            let cause = of_answer(code, text);
            assert!(cause.public.contains(part), "{code} {text}: {cause:?}");
            assert_eq!(cause.words, None, "{code} {text}");
        }
        let denied = of_answer(
            "NOPERM",
            "User bob has no permissions to run the 'evalsha' command",
        );
        assert!(!denied.public.contains("bob") && denied.words.is_some_and(|words| words.contains("bob")));
    }

    #[test]
    fn a_connection_error_is_named_by_its_kind() {
        for (kind, part) in [
            (io::ErrorKind::TimedOut, "in time"),
            (io::ErrorKind::ConnectionRefused, "refused"),
            (io::ErrorKind::UnexpectedEof, "closed"),
        ] {
            let cause = Cause::of(&io::Error::from(kind).into());
            assert!(cause.public.contains(part), "{kind}: {cause:?}");
        }
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let cause = Cause::of(&io::Error::new(io::ErrorKind::InvalidData, tls).into());
        assert!(cause.public.starts_with("TLS: its certificate"), "{cause:?}");
    }
}
