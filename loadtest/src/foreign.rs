//! Records of sessions that a node does not have: what each of them costs it. Every node reads every record, so this is
//! what a cluster's whole traffic costs each of its nodes, whatever share of the connections it has.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::crowd::{Crowd, Id, Watcher};
use crate::kafka::{Form, PARTITIONS, Producer};
use crate::message::marker::{self, Marker};
use crate::message::publisher::{Pace, Publisher, SENDER, Schedule, Sink};
use crate::message::workload::{NATIVE, OLD, PAYLOAD, padded};
use crate::node::{Kind, Node, Programs, brokers};
use crate::process;
use crate::report::{Figures, Named as _, Report, column, progress};
use crate::template::{Template, Values};
use crate::timing::Timing;

const TURN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);
/// The time between greeting and first record, for status frames to arrive.
const SETTLE: Duration = Duration::from_millis(500);
/// The server's thread that reads the log.
const BUS_THREAD: &str = "bus";

#[derive(Args, Clone)]
pub struct Options {
    #[command(flatten)]
    pub programs: Programs,
    #[arg(long, value_delimiter = ',', default_values = ["floor-kafka", "kafka", "kafka-old"])]
    pub arms: Vec<Arm>,
    /// Records a second; 0: as many as are accepted
    #[arg(long, value_delimiter = ',', default_values = ["0", "5000"])]
    pub rates: Vec<f64>,
    /// Sessions of the records
    #[arg(long, default_value_t = 10_000)]
    pub foreign: usize,
    /// Connections, two in a session: those of the first sessions show when everything has been read
    #[arg(long, default_value_t = 1_000)]
    pub sockets: usize,
    #[command(flatten)]
    pub timing: Timing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arm {
    /// The bare loop behind librdkafka
    FloorKafka,
    /// livechat-ws, native records
    Kafka,
    /// livechat-ws, records of the old form: only their JSON says whose they are
    KafkaOld,
}

impl Arm {
    fn kind(self) -> Kind {
        match self {
            Self::FloorKafka => Kind::FloorKafka,
            Self::Kafka | Self::KafkaOld => Kind::KAFKA,
        }
    }

    fn form(self) -> Form {
        match self {
            Self::FloorKafka | Self::Kafka => Form::Native,
            Self::KafkaOld => Form::Legacy,
        }
    }

    fn message(self) -> Result<Template> {
        match self {
            Self::FloorKafka | Self::Kafka => padded(NATIVE, PAYLOAD),
            Self::KafkaOld => padded(OLD, PAYLOAD + OLD.len() - NATIVE.len()),
        }
    }
}

/// The clients, which get only the fence: one record in each partition, after all others.
struct Listeners {
    greeted: usize,
    /// Which fence is waited for.
    fence: u64,
    /// How many of its records have arrived, over all clients.
    passed: usize,
    /// Markers of other records, which should not have been delivered.
    strays: usize,
}

/// Marker numbers from here on are fences: the publisher's are far below.
const FENCES: u64 = 9_000_000_000;

impl Watcher for Listeners {
    fn opened(&mut self, _id: Id, _now: Instant) {
        self.greeted += 1;
    }

    fn frame(&mut self, _id: Id, payload: &[u8], _now: Instant) {
        marker::find_all(payload, |marker| {
            if marker.number == FENCES + self.fence {
                self.passed += 1;
            } else {
                self.strays += 1;
            }
        });
    }
}

pub fn run(options: &Options) -> Result<Vec<Report>> {
    let columns = [
        column("cpu_us", "CPU, us per record", 3),
        column("bus_cpu_us", "of it the bus's thread", 3),
        column("records_per_s", "records a second", 0),
        column("behind_ms", "read after the last was acknowledged, ms", 0),
        column("sent_percent", "sent, % of due", 0),
    ];
    let mut reports = Vec::new();
    for &rate in &options.rates {
        let pace = if rate > 0.0 {
            Pace::Rate(rate)
        } else {
            Pace::UnderWay(u64::MAX)
        };
        let how = if rate > 0.0 {
            format!("{rate} a second")
        } else {
            "as many as are taken".into()
        };
        let mut report = Report::new(format!("Foreign records, {how}"), &columns);
        for round in 0..options.timing.rounds {
            for &arm in &options.arms {
                let figures = measure(options, arm, pace)
                    .with_context(|| format!("foreign records, {how}, {}", arm.name()))?;
                progress(&format!(
                    "foreign, {how}, round {}: {} {:.3} us per record, {:.0} records a second",
                    round + 1,
                    arm.name(),
                    figures["cpu_us"],
                    figures["records_per_s"]
                ));
                report.add(&arm.name(), figures);
            }
        }
        reports.push(report);
    }
    Ok(reports)
}

fn measure(options: &Options, arm: Arm, pace: Pace) -> Result<Figures> {
    let node = Node::start(&options.programs, arm.kind(), &[])?;
    let topics = node.topics.as_ref().context("no topics")?;
    let mut crowd = Crowd::new()?;
    let mut listeners = Listeners {
        greeted: 0,
        fence: 0,
        passed: 0,
        strays: 0,
    };
    connect(options, &node, &mut crowd, &mut listeners)?;
    let fences = Producer::new(&brokers()?, &topics.messages, Form::Native)?;
    let mut publish = |seconds: f64, listeners: &mut Listeners| -> Result<Published> {
        let records = Producer::new(&brokers()?, &topics.messages, arm.form())?;
        let sessions = (0..options.foreign).map(foreign_session).collect();
        let started = Instant::now();
        let schedule = Schedule::new(pace, sessions, arm.message()?, started);
        let publisher = Publisher::start(schedule, Sink::Kafka(records));
        let until = started + Duration::from_secs_f64(seconds);
        while Instant::now() < until && !publisher.has_failed() {
            crowd.turn(TURN, listeners)?;
        }
        let sent = publisher.finish_while(|| crowd.turn(TURN, listeners))?;
        let acknowledged = Instant::now();
        pass_fence(&fences, &mut crowd, listeners)?;
        Ok(Published {
            records: sent.iter().sum::<u64>() as f64,
            took: started.elapsed(),
            behind: acknowledged.elapsed(),
        })
    };
    publish(options.timing.warmup, &mut listeners)?;
    let pid = node.process.pid();
    let cpu = || -> Result<_> { Ok((node.process.cpu()?, process::cpu_of_threads(pid, BUS_THREAD)?)) };
    let before = cpu()?;
    let published = publish(options.timing.seconds, &mut listeners)?;
    let after = cpu()?;
    ensure!(
        listeners.strays == 0,
        "{} of the records were not foreign",
        listeners.strays
    );
    let each = |total: Duration| total.as_secs_f64() * 1e6 / published.records;
    let mut figures = Figures::from([
        ("cpu_us", each(after.0 - before.0)),
        ("records_per_s", published.records / published.took.as_secs_f64()),
        ("behind_ms", published.behind.as_secs_f64() * 1e3),
    ]);
    if let (Some(before), Some(after)) = (before.1, after.1) {
        figures.insert("bus_cpu_us", each(after - before));
    }
    if let Pace::Rate(rate) = pace {
        let due = rate * options.timing.seconds;
        figures.insert("sent_percent", (published.records / due * 100.0).min(100.0));
    }
    Ok(figures)
}

struct Published {
    records: f64,
    /// The time until everything was read.
    took: Duration,
    /// How much later that was than the log's acknowledgement.
    behind: Duration,
}

fn connect(options: &Options, node: &Node, crowd: &mut Crowd, listeners: &mut Listeners) -> Result<()> {
    ensure!(options.sockets >= 2, "the fence needs two sockets");
    let (started, mut opened) = (Instant::now(), 0);
    while listeners.greeted < options.sockets {
        ensure!(
            started.elapsed() < PATIENCE,
            "{} of {} clients are in",
            listeners.greeted,
            options.sockets
        );
        while opened < options.sockets && opened - listeners.greeted < 256 {
            let path = format!("/ws/{}/u{opened}/customer", own_session(opened / 2));
            crowd.open(node.addr, &path)?;
            opened += 1;
        }
        crowd.turn(TURN, listeners)?;
    }
    ensure!(
        crowd.settle(SETTLE, PATIENCE, listeners)?,
        "frames do not end before the first record"
    );
    Ok(())
}

/// Writes a record of a connected session after all others in each partition, and waits for all of them.
fn pass_fence(producer: &Producer, crowd: &mut Crowd, listeners: &mut Listeners) -> Result<()> {
    listeners.fence += 1;
    listeners.passed = 0;
    let session = own_session(0);
    let values = Values {
        session: &session,
        user: SENDER,
        number: 0,
        marker: &Marker {
            number: FENCES + listeners.fence,
            intended: 0,
        }
        .bytes(),
    };
    producer.send_everywhere(&session, padded(NATIVE, PAYLOAD)?.text(values).as_bytes())?;
    let started = Instant::now();
    while listeners.passed < 2 * PARTITIONS as usize {
        ensure!(
            started.elapsed() < PATIENCE,
            "{} of {} records of the fence have come",
            listeners.passed,
            2 * PARTITIONS
        );
        crowd.turn(TURN, listeners)?;
    }
    Ok(())
}

/// Names as long as those in production.
fn foreign_session(number: usize) -> String {
    format!("f0000000-0000-4000-8000-{number:012x}")
}

fn own_session(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners() -> Listeners {
        Listeners {
            greeted: 0,
            fence: 2,
            passed: 0,
            strays: 0,
        }
    }

    #[test]
    fn only_the_fence_that_is_waited_for_counts() {
        let mut listeners = listeners();
        for number in [FENCES + 2, FENCES + 1, 7] {
            let frame = Marker { number, intended: 0 }.bytes();
            listeners.frame(0, &frame, Instant::now());
        }
        listeners.frame(0, b"{\"type\":\"connection_established\"}", Instant::now());
        assert_eq!((listeners.passed, listeners.strays), (1, 2));
    }

    #[test]
    fn a_fence_fits_into_a_marker() {
        let number = FENCES + 1_000;
        let mut found = None;
        marker::find_all(&Marker { number, intended: 0 }.bytes(), |marker| {
            found = Some(marker.number);
        });
        assert_eq!(found, Some(number));
    }

    #[test]
    fn no_session_is_both_here_and_foreign() {
        let own: std::collections::HashSet<_> = (0..1_000).map(own_session).collect();
        assert!((0..10_000).all(|number| !own.contains(&foreign_session(number))));
        assert_eq!(own_session(1).len(), 36, "a UUID's length");
    }
}
