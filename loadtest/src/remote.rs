//! Messages over another server, for comparison, described by a URL template and hello frames.

use std::net::ToSocketAddrs;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::kafka::{Form, Producer};
use crate::message::http::HttpSink;
use crate::message::publisher::{Pace, Sink};
use crate::message::run::{Publish, Shape, Target, measure};
use crate::message::workload::{COLUMNS, UNDER_WAY};
use crate::node::brokers;
use crate::report::{Report, progress};
use crate::template::Template;
use crate::timing::Timing;

#[derive(Args, Clone)]
pub struct Options {
    /// ws://HOST:PORT/PATH, with {session} and {user} where they belong
    #[arg(long, value_name = "URL")]
    target: String,
    /// A frame that each client sends first, with {session}, {user}, {number}; may be repeated
    #[arg(long = "hello", value_name = "FRAME")]
    hello: Vec<String>,
    /// How messages get in: socket (a client's own frames), http://HOST:PORT/PATH, kafka:TOPIC (records keyed by
    /// session), kafka-old:TOPIC (no key), kafka-native:TOPIC (livechat-ws's own)
    #[arg(long, value_name = "HOW")]
    publish: String,
    /// The message as it is published, with {marker} where its text belongs, and {session}, {user}, {number}
    #[arg(long, value_name = "TEXT")]
    message: String,
    /// A header of the HTTP publisher, for example "X-API-Key: secret"; may be repeated
    #[arg(long = "header", value_name = "LINE")]
    headers: Vec<String>,
    /// The server's process, for its CPU and memory
    #[arg(long)]
    pid: Option<u32>,
    /// Its name in the table
    #[arg(long, default_value = "target")]
    name: String,
    #[arg(long, default_value_t = 1_000)]
    sockets: usize,
    #[arg(long, default_value_t = 10)]
    sessions: usize,
    /// Messages a second, over all sessions; 0: as fast as they are accepted
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    #[command(flatten)]
    timing: Timing,
    /// How many clients may be between connect and upgrade at a time
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
}

pub fn run(options: &Options) -> Result<Vec<Report>> {
    let (host, path) = split_url(&options.target)?;
    let addr = host
        .to_socket_addrs()
        .with_context(|| format!("no address {host}"))?
        .next()
        .context("no address")?;
    let target = Target {
        addr,
        pid: options.pid,
        path: Template::parse(&path),
        issuer: None,
        hello: options.hello.iter().map(|frame| Template::parse(frame)).collect(),
    };
    let shape = Shape {
        sockets: options.sockets,
        sessions: options.sessions,
        pace: if options.rate > 0.0 {
            Pace::Rate(options.rate)
        } else {
            Pace::UnderWay(UNDER_WAY)
        },
        warmup: options.timing.warmup(),
        steady: options.timing.measured(),
        in_flight: options.in_flight,
        has_slow_reader: false,
    };
    let message = Template::with_marker(&options.message)?;
    let title = format!(
        "{} sockets in {} sessions, {} messages a second",
        options.sockets, options.sessions, options.rate
    );
    let mut report = Report::new(title, &COLUMNS);
    for round in 0..options.timing.rounds {
        let figures = measure(&shape, &target, publish(options)?, &message)?;
        progress(&format!("round {}: {figures:?}", round + 1));
        report.add(&options.name, figures);
    }
    Ok(vec![report])
}

fn publish(options: &Options) -> Result<Publish> {
    let how = options.publish.as_str();
    if how == "socket" {
        return Ok(Publish::BySocket);
    }
    if how.starts_with("http://") {
        return Ok(Publish::By(Sink::Http(HttpSink::connect(how, &options.headers)?)));
    }
    let form = match how.split_once(':') {
        Some(("kafka", topic)) => (topic, Form::Foreign),
        Some(("kafka-old", topic)) => (topic, Form::Legacy),
        Some(("kafka-native", topic)) => (topic, Form::Native),
        _ => bail!(
            "--publish {how}: socket, http://…, kafka:TOPIC, kafka-old:TOPIC or kafka-native:TOPIC is accepted"
        ),
    };
    Ok(Publish::By(Sink::Kafka(Producer::new(
        &brokers()?,
        form.0,
        form.1,
    )?)))
}

/// HOST:PORT and path.
fn split_url(url: &str) -> Result<(String, String)> {
    let rest = url
        .strip_prefix("ws://")
        .with_context(|| format!("not a ws:// address: {url}"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = if host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    Ok((host, format!("/{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_at_the_path() {
        let split = |url| split_url(url).unwrap();
        assert_eq!(
            split("ws://h:1/a/{session}?u={user}"),
            ("h:1".into(), "/a/{session}?u={user}".into())
        );
        assert_eq!(split("ws://h"), ("h:80".into(), "/".into()));
        assert!(split_url("http://h").is_err());
    }
}
