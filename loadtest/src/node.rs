//! The system under test of one arm: livechat-ws or the bare loop, with the services it needs, all fresh.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::kafka::Topics;
use crate::process::{Process, free_port, get};
use crate::services::{Redis, RedisStats, kafka_brokers};

/// The programs and their settings.
#[derive(Args, Clone)]
pub struct Programs {
    /// The server's binary
    #[arg(long, default_value = "target/dist/livechat-ws", value_name = "FILE")]
    pub server: PathBuf,
    /// The bare loop's binary; by default next to this program
    #[arg(long, value_name = "FILE")]
    pub floor: Option<PathBuf>,
    /// A variable of the server; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// A librdkafka property of the bare loop's consumer; may be repeated
    #[arg(long = "floor-set", value_name = "NAME=VALUE")]
    pub floor_set: Vec<String>,
}

impl Programs {
    /// The same with another binary of the server.
    pub fn with_server(&self, server: &Path) -> Self {
        Self {
            server: server.to_owned(),
            ..self.clone()
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The bare loop with its own feed.
    Floor {
        is_batched: bool,
    },
    FloorKafka,
    Server {
        has_kafka: bool,
        has_redis: bool,
    },
}

impl Kind {
    pub const EMBEDDED: Self = Self::server(false, false);
    pub const KAFKA: Self = Self::server(true, false);
    pub const REDIS: Self = Self::server(false, true);
    pub const KAFKA_REDIS: Self = Self::server(true, true);

    const fn server(has_kafka: bool, has_redis: bool) -> Self {
        Self::Server { has_kafka, has_redis }
    }
}

pub struct Node {
    // Ends before the topics are deleted.
    pub process: Process,
    pub addr: SocketAddr,
    pub redis: Option<Redis>,
    pub topics: Option<Topics>,
}

/// The usage of server and Redis so far, or a difference.
#[derive(Clone, Copy)]
pub struct Cost {
    pub cpu: Duration,
    pub redis: Option<RedisStats>,
}

impl Cost {
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu - before.cpu,
            redis: self
                .redis
                .zip(before.redis)
                .map(|(after, before)| after.since(before)),
        }
    }
}

impl Node {
    /// Starts it, with these variables if it is a server, and waits until it is ready.
    pub fn start(programs: &Programs, kind: Kind, settings: &[(&str, String)]) -> Result<Self> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let has_kafka = matches!(kind, Kind::FloorKafka | Kind::Server { has_kafka: true, .. });
        let brokers = if has_kafka { Some(brokers()?) } else { None };
        let topics = brokers.as_deref().map(Topics::create).transpose()?;
        let has_redis = matches!(kind, Kind::Server { has_redis: true, .. });
        let redis = if has_redis { Some(Redis::start()?) } else { None };
        let kafka = topics.as_ref().zip(brokers.as_deref());
        let mut process = match kind {
            Kind::Server { .. } => {
                let env = server_env(programs, addr, kafka, redis.as_ref(), settings)?;
                Process::start(&programs.server, &[], &env)?
            }
            Kind::Floor { is_batched } => {
                let batch = is_batched.then(|| "--batch".to_owned());
                Process::start(&floor(programs)?, &floor_args(addr, batch), &[])?
            }
            Kind::FloorKafka => {
                let (topics, brokers) = kafka.context("Kafka")?;
                let mut more = vec![
                    "--kafka".into(),
                    brokers.into(),
                    "--topic".into(),
                    topics.messages.clone(),
                ];
                more.extend(
                    programs
                        .floor_set
                        .iter()
                        .flat_map(|set| ["--set".into(), set.clone()]),
                );
                Process::start(&floor(programs)?, &floor_args(addr, more), &[])?
            }
        };
        wait_until_ready(&mut process, addr)?;
        Ok(Self {
            process,
            addr,
            redis,
            topics,
        })
    }

    /// Starts a server on topics that it shares with others.
    pub fn start_on(programs: &Programs, topics: &Topics, settings: &[(&str, String)]) -> Result<Self> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let env = server_env(programs, addr, Some((topics, &brokers()?)), None, settings)?;
        let mut process = Process::start(&programs.server, &[], &env)?;
        wait_until_ready(&mut process, addr)?;
        Ok(Self {
            process,
            addr,
            redis: None,
            topics: None,
        })
    }

    pub fn cost(&self) -> Result<Cost> {
        Ok(Cost {
            cpu: self.process.cpu()?,
            redis: self.redis.as_ref().map(Redis::stats).transpose()?,
        })
    }

    /// The number of connections according to the server.
    pub fn connections(&self) -> Result<u64> {
        let health: serde_json::Value = serde_json::from_str(&get(self.addr, "/health")?.1)?;
        health["connections"]
            .as_u64()
            .context("no connections in /health")
    }
}

fn wait_until_ready(process: &mut Process, addr: SocketAddr) -> Result<()> {
    process.wait_until("ready", || {
        get(addr, "/ready").is_ok_and(|(status, _)| status == 200)
    })
}

pub fn brokers() -> Result<String> {
    kafka_brokers()
        .context("KAFKA_BROKERS is not set: loadtest/run.sh and scripts/services.sh start a broker")
}

fn floor(programs: &Programs) -> Result<PathBuf> {
    match &programs.floor {
        Some(path) => Ok(path.clone()),
        None => Ok(std::env::current_exe()?.with_file_name("floor")),
    }
}

fn floor_args(addr: SocketAddr, more: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut args = vec!["--listen".to_owned(), addr.to_string()];
    args.extend(more);
    args
}

/// Only warnings are logged, limits are off, and there are no pings to measure.
fn server_env(
    programs: &Programs,
    addr: SocketAddr,
    kafka: Option<(&Topics, &str)>,
    redis: Option<&Redis>,
    settings: &[(&str, String)],
) -> Result<Vec<(String, String)>> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| env.push((name.to_owned(), value.to_owned()));
    set("PORT", &addr.port().to_string());
    set("WS_PORT", "");
    set("HOST", &addr.ip().to_string());
    set("ADMIN_ADDR", "");
    set("NODE_ID", "loadtest");
    set("LOG_LEVEL", "warn");
    set("RATE_LIMIT_MESSAGES", "0");
    set("PING_INTERVAL", "300s");
    if let Some(redis) = redis {
        set("REDIS_URL", &redis.url());
    }
    if let Some((topics, brokers)) = kafka {
        set("KAFKA_BROKERS", brokers);
        set("KAFKA_TOPIC_MESSAGES", &topics.messages);
        set("KAFKA_TOPIC_TYPING", &topics.typing);
        set("KAFKA_TOPIC_STATUS", &topics.status);
    }
    for (name, value) in settings {
        set(name, value);
    }
    for variable in &programs.env {
        let (name, value) = variable
            .split_once('=')
            .with_context(|| format!("not NAME=VALUE: {variable}"))?;
        set(name, value);
    }
    Ok(env)
}
