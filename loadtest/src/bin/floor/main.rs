//! The bare loop: what the system calls of a chat delivery cost without a chat server. It upgrades WebSocket clients
//! of `/ws/SESSION/USER/TYPE`, and writes each message to every socket of its session, one `send` each. It knows
//! nothing of presence, slow readers, heartbeats or limits.
//!
//! Messages come over a connection of their own (see [`livechat_loadtest::feed`]), or with `--kafka` from a topic.

mod kafka;
mod net;
mod rooms;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;
use rooms::Rooms;

#[derive(Parser)]
#[command(about = "The bare send loop that livechat-ws is compared to", version)]
struct Cli {
    /// Where to listen
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// One `send` per socket for all messages of a session that have come together, instead of one for each
    #[arg(long)]
    batch: bool,
    /// Takes messages from these brokers: always batched
    #[arg(long, value_name = "BROKERS", requires = "topic")]
    kafka: Option<String>,
    #[arg(long)]
    topic: Option<String>,
    /// Another property of the consumer, for example fetch.wait.max.ms=2; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// How long a busy topic's records gather, in milliseconds: as KAFKA_PACE
    #[arg(long, default_value_t = 5)]
    pace: u64,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let rooms = Arc::new(Rooms::default());
    if let (Some(brokers), Some(topic)) = (&cli.kafka, &cli.topic) {
        let pace = std::time::Duration::from_millis(cli.pace);
        let consumer = kafka::consumer(brokers, topic, pace, &cli.properties)?;
        let rooms = Arc::clone(&rooms);
        std::thread::spawn(move || kafka::deliver(&consumer, &rooms, pace));
    }
    net::run(cli.listen, &rooms, cli.batch)
}
