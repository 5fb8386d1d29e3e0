//! Where presence is kept: `REDIS_URL`, or one made of the older variables.

use redis::IntoConnectionInfo;

use super::RedisConfig;
use super::parse::{self, number};
use super::reader::Reader;

const REDIS_PASSWORD_FILE: &str = "REDIS_PASSWORD_FILE";

/// `REDIS_URL`, or one made of the older three.
pub(super) fn redis(r: &mut Reader<'_>) -> Option<RedisConfig> {
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
            Err("expected a host name or an address; its port is REDIS_PORT".to_owned())
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
    const ACCEPTED: &str = "expected redis://[user:password@]host[:port][/db]";
    let Some(parsed) = redis::parse_redis_url(url) else {
        return Some(format!(
            "{ACCEPTED} (a password's special characters percent-encoded)"
        ));
    };
    // The parser of URLs would leave these out without a word: a password would be another one.
    if url.contains(|c: char| c.is_control() || c == ' ') {
        return Some(
            "blanks and control characters are not accepted: percent-encode them in a password".to_owned(),
        );
    }
    let wants_tls = matches!(parsed.scheme(), "rediss" | "valkeys");
    // A password with one of these in plain ends there, and its rest is taken for something else.
    if parsed.has_host()
        && (parsed.query().is_some() || parsed.fragment().is_some_and(|part| part != "insecure"))
    {
        return Some(format!(
            "{ACCEPTED}: ? and # are written %3F and %23 in a password"
        ));
    }
    match parsed.into_connection_info() {
        Ok(info) if info.redis_settings().db() < 0 => {
            Some(format!("{ACCEPTED}; a database's number is not negative"))
        }
        Ok(_) => None,
        // The client knows whether it was built with TLS; its other errors don't say what would be right.
        Err(_) if wants_tls && !redis_tls() => Some(format!("this build has no TLS for Redis: {ACCEPTED}")),
        Err(_) => Some(ACCEPTED.to_owned()),
    }
}

/// Whether the Redis client of this build can speak TLS.
pub(super) fn redis_tls() -> bool {
    "rediss://localhost".into_connection_info().is_ok()
}
