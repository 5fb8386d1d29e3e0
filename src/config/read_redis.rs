//! Reads the variables for Redis: `REDIS_URL`, or a URL made from the older ones.

use redis::IntoConnectionInfo;

use super::RedisConfig;
use super::parse::{self, number};
use super::reader::Reader;

const REDIS_PASSWORD_FILE: &str = "REDIS_PASSWORD_FILE";

/// `REDIS_URL`, or a URL made from the older three variables.
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
        // The URL overrides REDIS_PASSWORD, even if it has no password.
        let password = password.filter(|_| has_file);
        return Some(RedisConfig { url, password });
    }
    let Some(host) = host else {
        if !r.is_wrong("REDIS_HOST") {
            for name in ["REDIS_PASSWORD", REDIS_PASSWORD_FILE] {
                if r.text(name).is_some() && !r.is_wrong(name) {
                    r.wrong(
                        name,
                        "only accepted with REDIS_HOST, which is empty (it no longer has a default)",
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

/// Whether a valid URL contains a password.
fn has_password(url: &str) -> bool {
    url.into_connection_info()
        .is_ok_and(|info| info.redis_settings().password().is_some())
}

/// What is wrong with a URL, without quoting it: it may contain a password.
fn redis_url_problem(url: &str) -> Option<String> {
    const ACCEPTED: &str = "expected redis://[user:password@]host[:port][/db]";
    let Some(parsed) = redis::parse_redis_url(url) else {
        return Some(format!(
            "{ACCEPTED} (a password's special characters percent-encoded)"
        ));
    };
    // The URL parser silently drops these, which would change a password.
    if url.contains(|c: char| c.is_control() || c == ' ') {
        return Some(
            "blanks and control characters are not accepted: percent-encode them in a password".to_owned(),
        );
    }
    let wants_tls = matches!(parsed.scheme(), "rediss" | "valkeys");
    // An unescaped ? or # ends a password, and the rest would be taken for something else.
    if parsed.has_host()
        && (parsed.query().is_some() || parsed.fragment().is_some_and(|part| part != "insecure"))
    {
        return Some(format!(
            "{ACCEPTED}: ? and # are written %3F and %23 in a password"
        ));
    }
    match parsed.into_connection_info() {
        Ok(info) if info.redis_settings().db() < 0 => {
            Some(format!("{ACCEPTED}; the database number cannot be negative"))
        }
        Ok(_) => None,
        // The client's other errors do not say what would be accepted.
        Err(_) if wants_tls && !redis_tls() => Some(format!("this build has no TLS for Redis: {ACCEPTED}")),
        Err(_) => Some(ACCEPTED.to_owned()),
    }
}

/// Whether this build's Redis client supports TLS.
pub(super) fn redis_tls() -> bool {
    "rediss://localhost".into_connection_info().is_ok()
}
