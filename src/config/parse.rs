//! Parsers for single values: each one's error says what is accepted.

use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::SignedDuration;

use super::{AllowedHeaders, Variable};

/// An integer in a range.
pub(super) fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(value) if digits && range.contains(&value) => Ok(value),
        _ => Err(format!(
            "expected an integer from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// A boolean.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// One of a few names, in any case.
pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    choices
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(text))
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            match names.split_last() {
                Some((last, [])) => format!("expected {last}"),
                Some((last, others)) => format!("expected {} or {last}", others.join(", ")),
                None => "expected nothing".to_owned(),
            }
        })
}

/// An integer with one unit: `500ms`, `25s`, `2m`, `1h`.
pub fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    // jiff also reads signs, fractions, spaces, other units, and several of them.
    let count = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let is_plain =
        count.bytes().all(|b| b.is_ascii_digit()) && matches!(&text[count.len()..], "ms" | "s" | "m" | "h");
    let parsed = text.parse::<SignedDuration>().ok().filter(|_| is_plain);
    parsed
        .and_then(|value| Duration::try_from(value).ok())
        .filter(|value| range.contains(value))
        .ok_or_else(|| {
            format!(
                "expected a duration such as 500ms, 25s or 2m, from {} to {}",
                show_duration(*range.start()),
                show_duration(*range.end())
            )
        })
}

/// A duration as [`duration`] reads it, in the largest unit that fits.
pub(super) fn show_duration(value: Duration) -> String {
    let milliseconds = value.as_millis();
    match milliseconds {
        0 => "0s".to_owned(),
        _ if milliseconds.is_multiple_of(3_600_000) => format!("{}h", milliseconds / 3_600_000),
        _ if milliseconds.is_multiple_of(60_000) => format!("{}m", milliseconds / 60_000),
        _ if milliseconds.is_multiple_of(1_000) => format!("{}s", milliseconds / 1_000),
        _ => format!("{milliseconds}ms"),
    }
}

/// A text for an error message, without anything before an `@`: that may be a misplaced user and password.
pub(super) fn without_user(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, rest)), Some((_, host))) if rest.contains('@') => format!("{scheme}://***@{host}"),
        (_, Some((_, host))) => format!("***@{host}"),
        (_, None) => text.to_owned(),
    }
}

/// The items of a comma-separated list, trimmed; empty ones (after a trailing comma) are skipped.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// `*`, or a list of header names.
pub(super) fn headers(text: &str) -> Result<AllowedHeaders, String> {
    if text == "*" {
        return Ok(AllowedHeaders::Any);
    }
    let is_token = |name: &str| {
        name.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let names = list(text).map(|name| {
        if name == "*" {
            Err("* cannot be part of a list; expected * alone, or comma-separated header names".to_owned())
        } else if is_token(name) {
            Ok(name.to_owned())
        } else {
            Err(format!(
                "{:?} is not a header name; expected * or comma-separated header names",
                without_user(name)
            ))
        }
    });
    Ok(AllowedHeaders::List(names.collect::<Result<_, _>>()?))
}

/// Splits `host`, `host:port`, `[::1]` or `[::1]:port`. None: it is none of these.
pub(super) fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if text.starts_with('[') {
        let end = text.find(']')? + 1;
        return match &text[end..] {
            "" => Some((text, None)),
            rest => Some((&text[..end], Some(rest.strip_prefix(':')?))),
        };
    }
    match text.split_once(':') {
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((host, Some(port))),
        None => Some((text, None)),
    }
}

/// A host name, an IPv4 address or an IPv6 address in brackets.
pub(super) fn is_host(text: &str) -> bool {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A trailing dot is legal: it marks a fully qualified name.
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

/// A list of `host:port` for librdkafka's `bootstrap.servers`. The port is 9092 if omitted.
pub(super) fn brokers(text: &str) -> Result<String, String> {
    const ACCEPTED: &str = "expected host:port, or several of them separated by commas";
    let mut brokers = Vec::new();
    for part in list(text) {
        let broker = match split_port(part) {
            Some((host, None)) if is_host(host) => format!("{host}:9092"),
            Some((host, Some(port))) if is_host(host) && number::<u16>(port, 1..=u16::MAX).is_ok() => {
                part.to_owned()
            }
            _ => return Err(format!("{:?} is not a broker: {ACCEPTED}", without_user(part))),
        };
        brokers.push(broker);
    }
    if brokers.is_empty() {
        Err(ACCEPTED.to_owned())
    } else {
        Ok(brokers.join(","))
    }
}

/// A valid name of a Kafka topic.
pub(super) fn topic(text: &str) -> Result<String, String> {
    let legal = (1..=249).contains(&text.len())
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if legal {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 249 letters, digits, dots, dashes or underscores".to_owned())
    }
}

/// A name that is safe in a Redis key, a Kafka header and a log line.
pub(super) fn node_id(text: &str) -> Result<String, String> {
    let legal = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if legal {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 64 letters, digits, dots, dashes or underscores".to_owned())
    }
}

/// A [`node_id`] made from the host's name.
pub(super) fn node_id_of_host(hostname: &str) -> String {
    let fit = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = hostname.chars().take(64).map(fit).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

/// A filter for `tracing_subscriber::EnvFilter`: a level, or `target=level` parts; other targets keep the default.
///
/// It is stricter than the filter itself, which takes a misspelt level for a target and logs everything. Level names of
/// other loggers (`warning`, `fatal`, `panic`) are translated.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    const ACCEPTED: &str =
        "expected off, error, warn, info, debug or trace, or target=level parts separated by commas";
    let level = |text: &str| match text.to_ascii_lowercase().as_str() {
        level @ ("off" | "error" | "warn" | "info" | "debug" | "trace") => Ok(level.to_owned()),
        "warning" => Ok("warn".to_owned()),
        "fatal" | "panic" => Ok("error".to_owned()),
        _ => Err(ACCEPTED.to_owned()),
    };
    let is_target = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_:-.".contains(&b))
    };
    let mut parts = Vec::new();
    let mut has_level = false;
    for part in list(text) {
        parts.push(match part.split_once('=') {
            Some((target, of_target)) if is_target(target) => format!("{target}={}", level(of_target)?),
            Some(_) => return Err(ACCEPTED.to_owned()),
            None => {
                has_level = true;
                level(part)?
            }
        });
    }
    if parts.is_empty() {
        return Err(ACCEPTED.to_owned());
    }
    if !has_level {
        // By default the filter silences targets that are not named.
        let default = Variable::named("LOG_LEVEL").map_or("info", |variable| variable.default);
        parts.insert(0, default.to_owned());
    }
    Ok(parts.join(","))
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
