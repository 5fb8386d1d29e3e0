//! Workload D: idle connections and their memory.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::crowd::{Crowd, Id, Watcher};
use crate::node::{Kind, Node, Programs};
use crate::report::{Figures, Named as _, Report, column, progress};
use crate::services::kafka_brokers;

const TURN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);
/// Time for allocators to return what the joins used.
const SETTLE: Duration = Duration::from_secs(2);
/// Connections before the first measurement, so that one-time costs are not attributed to connections.
const FIRST: usize = 100;

#[derive(Args, Clone)]
pub struct Options {
    #[command(flatten)]
    pub programs: Programs,
    #[arg(long, default_value_t = 10_000)]
    pub connections: usize,
    #[arg(long, default_value_t = 5_000)]
    pub sessions: usize,
    #[arg(long, value_delimiter = ',')]
    pub arms: Option<Vec<Arm>>,
    /// Another binary of the server, measured in turn with the first in all its arms
    #[arg(long, value_name = "FILE")]
    pub other_server: Option<PathBuf>,
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds to idle
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arm {
    Floor,
    Embedded,
    KafkaRedis,
}

impl Arm {
    fn kind(self) -> Kind {
        match self {
            Self::Floor => Kind::Floor { is_batched: false },
            Self::Embedded => Kind::EMBEDDED,
            Self::KafkaRedis => Kind::KAFKA_REDIS,
        }
    }
}

#[derive(Default)]
struct Sleepers {
    greeted: usize,
}

impl Watcher for Sleepers {
    fn opened(&mut self, _id: Id, _now: Instant) {
        self.greeted += 1;
    }
    fn frame(&mut self, _id: Id, _payload: &[u8], _now: Instant) {}
}

pub fn run(options: &Options) -> Result<Vec<Report>> {
    let columns = [
        column("rss_kib_per_connection", "RSS, KiB per connection", 2),
        column("rss_mib", "RSS with all, MiB", 1),
        column("rss_before_mib", "before, MiB", 1),
        column("rss_after_mib", "when they have left, MiB", 1),
        column("cpu_percent", "CPU when idle, % of a core", 2),
    ];
    let title = format!(
        "D: {} idle connections in {} sessions",
        options.connections, options.sessions
    );
    let mut report = Report::new(title, &columns);
    let all = || {
        let kafka_redis = kafka_brokers().map(|_| Arm::KafkaRedis);
        [Arm::Floor, Arm::Embedded]
            .into_iter()
            .chain(kafka_redis)
            .collect()
    };
    let arms: Vec<Arm> = options.arms.clone().unwrap_or_else(all);
    let other = options.other_server.as_ref();
    let other = other.map(|server| options.programs.with_server(server));
    for round in 0..options.rounds {
        for &arm in &arms {
            let mut add = |programs: &Programs, name: String| -> Result<()> {
                let figures = measure(options, programs, arm)?;
                progress(&format!(
                    "D round {}: {name} {:.2} KiB per connection",
                    round + 1,
                    figures["rss_kib_per_connection"]
                ));
                report.add(&name, figures);
                Ok(())
            };
            add(&options.programs, arm.name())?;
            if let (Some(other), Kind::Server { .. }) = (&other, arm.kind()) {
                add(other, format!("{}, other", arm.name()))?;
            }
        }
    }
    report.note(format!("Before: after {FIRST} connections have come and gone."));
    Ok(vec![report])
}

fn measure(options: &Options, programs: &Programs, arm: Arm) -> Result<Figures> {
    let node = Node::start(programs, arm.kind(), &[])?;
    let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    let mut crowd = Crowd::new()?;
    fill(&mut crowd, &node, FIRST, FIRST)?;
    crowd.drop_all();
    std::thread::sleep(SETTLE);
    let before = node.process.rss()?;
    fill(&mut crowd, &node, options.connections, options.sessions)?;
    std::thread::sleep(SETTLE);
    let (cpu, started) = (node.process.cpu()?, Instant::now());
    std::thread::sleep(Duration::from_secs(options.seconds));
    let idle = (node.process.cpu()? - cpu).as_secs_f64() / started.elapsed().as_secs_f64();
    let with = node.process.rss()?;
    crowd.drop_all();
    std::thread::sleep(2 * SETTLE);
    let grown = with.saturating_sub(before) as f64;
    Ok(Figures::from([
        (
            "rss_kib_per_connection",
            grown / 1024.0 / options.connections as f64,
        ),
        ("rss_mib", mib(with)),
        ("rss_before_mib", mib(before)),
        ("rss_after_mib", mib(node.process.rss()?)),
        ("cpu_percent", idle * 100.0),
    ]))
}

fn fill(crowd: &mut Crowd, node: &Node, connections: usize, sessions: usize) -> Result<()> {
    let (mut sleepers, started) = (Sleepers::default(), Instant::now());
    let mut opened = 0;
    while sleepers.greeted < connections {
        ensure!(
            started.elapsed() < PATIENCE,
            "{} of {connections} clients are in",
            sleepers.greeted
        );
        while opened < connections && opened - sleepers.greeted < 256 {
            crowd.open(
                node.addr,
                &format!("/ws/s{}/u{opened}/customer", opened % sessions),
            )?;
            opened += 1;
        }
        crowd.turn(TURN, &mut sleepers)?;
    }
    ensure!(
        crowd.settle(SETTLE, PATIENCE, &mut sleepers)?,
        "frames do not end"
    );
    Ok(())
}
