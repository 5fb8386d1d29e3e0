//! From text to value: each parser says, when it fails, what it would have accepted.

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

/// Yes or no.
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
pub(super) fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
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

/// A text that is shown in an error, without what stands before an `@`: it may be a user and a password where none
/// belongs.
pub(super) fn without_user(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, rest)), Some((_, host))) if rest.contains('@') => format!("{scheme}://***@{host}"),
        (_, Some((_, host))) => format!("***@{host}"),
        (_, None) => text.to_owned(),
    }
}

/// The parts of a comma-separated list, without the blanks around them; empty parts (a trailing comma) don't count.
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
            Err("* can't stand in a list; expected * alone, or comma-separated header names".to_owned())
        } else if is_token(name) {
            Ok(name.to_owned())
        } else {
            Err(format!(
                "{:?} is not a header's name; expected * or comma-separated header names",
                without_user(name)
            ))
        }
    });
    Ok(AllowedHeaders::List(names.collect::<Result<_, _>>()?))
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`. None: neither.
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
    // One dot at the end is legal: it says that the name is complete.
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

/// Kafka's bootstrap list, `host:port` each, as librdkafka reads it. The port may be left out: 9092.
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

/// A name that Kafka takes for a topic.
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
        Err("1 to 249 letters, digits, dots, dashes and underscores are accepted".to_owned())
    }
}

/// A name that can stand in a Redis key, in a Kafka header and in a log line.
pub(super) fn node_id(text: &str) -> Result<String, String> {
    let legal = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if legal {
        Ok(text.to_owned())
    } else {
        Err("1 to 64 letters, digits, dots, dashes and underscores are accepted".to_owned())
    }
}

/// The host's name, made to fit [`node_id`].
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

/// A filter for `tracing_subscriber::EnvFilter`: a level, or `target=level` parts, beside which others keep the default.
///
/// Stricter than the filter itself, which takes a misspelt level for a target and logs everything. The names that
/// other loggers have and ours lacks (`warning`, `fatal`, `panic`) are translated.
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
        // The filter's own default for what is not named is silence.
        let default = Variable::named("LOG_LEVEL").map_or("info", |variable| variable.default);
        parts.insert(0, default.to_owned());
    }
    Ok(parts.join(","))
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
