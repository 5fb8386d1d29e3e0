//! The cost of presence, and the frames that clients get.
//!
//! - [`storm`]: many joins in many sessions at once, and then all leave
//! - [`large`]: many joins in one session
//! - [`trickle`]: steady joins and leaves
//! - [`flush`]: storm and trickle for several flush windows

mod flush;
mod large;
mod storm;
mod trickle;

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use crate::node::{Kind, Node, Programs};
use crate::report::Report;
use crate::services::kafka_brokers;
use crate::tokens::Signature;

/// The start of every status frame of the server.
const STATUS_FRAME: &[u8] = b"{\"type\":\"connection_status_update\"";

#[derive(Subcommand)]
pub enum Command {
    /// Many joins in many sessions as fast as the machine allows, then all leave at once
    Storm(storm::Options),
    /// Many joins in one session
    Large(large::Options),
    /// The storm, and steady joins and leaves, for several flush windows
    Flush(flush::Options),
}

/// Options of all presence workloads.
#[derive(Args, Clone)]
pub struct Common {
    #[command(flatten)]
    programs: Programs,
    /// How often each arm is measured; the arms alternate
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many clients may be between connect and greeting at a time
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arm {
    /// The bare loop: upgrades and nothing else
    Floor,
    /// Presence only marks changed sessions: joins between two flushes, which are a second apart
    None,
    /// Presence in the process
    Embedded,
    /// Presence in a Redis of the test's own
    Redis,
    /// The same, and status records published to the brokers of KAFKA_BROKERS
    RedisKafka,
}

impl Arm {
    fn kind(self) -> Kind {
        match self {
            Self::Floor => Kind::Floor { is_batched: false },
            Self::None | Self::Embedded => Kind::EMBEDDED,
            Self::Redis => Kind::REDIS,
            Self::RedisKafka => Kind::KAFKA_REDIS,
        }
    }

    /// By default all that are possible here.
    fn default_set() -> Vec<Self> {
        let mut arms = vec![Self::Floor, Self::None, Self::Embedded, Self::Redis];
        arms.extend(kafka_brokers().map(|_| Self::RedisKafka));
        arms
    }
}

/// A fresh server with what its arm needs.
fn start(common: &Common, arm: Arm, window: Duration) -> Result<Node> {
    let settings = [("PRESENCE_FLUSH", format!("{}ms", window.as_millis()))];
    Node::start(&common.programs, arm.kind(), &settings)
}

/// Microseconds per item of `count`.
fn us_each(total: Duration, count: usize) -> f64 {
    total.as_secs_f64() * 1e6 / count as f64
}

/// Runs a workload.
///
/// # Errors
///
/// Something could not be started, or did not behave as expected: incomplete measurements are discarded.
pub fn run(command: &Command) -> Result<Vec<Report>> {
    match command {
        Command::Storm(options) => storm::run(options),
        Command::Large(options) => large::run(options),
        Command::Flush(options) => flush::run(options),
    }
}

/// Workload E: everyone reconnects at once.
pub fn reconnect(programs: &Programs, rounds: usize) -> Result<Vec<Report>> {
    storm::run(&storm::Options {
        common: Common {
            programs: programs.clone(),
            rounds,
            in_flight: 256,
        },
        joins: 10_000,
        sessions: 5_000,
        flush: 10,
        arms: None,
        tokens: vec![Signature::Off],
        other_server: None,
    })
}
