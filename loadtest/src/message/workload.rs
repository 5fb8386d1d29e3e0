//! Workloads A, B and C, over the bare loop and the server.

use std::thread;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};

use super::publisher::{Pace, SENDER, Sink};
use super::run::{Publish, Shape, Target, measure};
use super::{marker, slow};
use crate::kafka::{Form, Producer};
use crate::node::{Kind, Node, Programs, brokers};
use crate::report::{Column, Figures, Named as _, Report, column, progress};
use crate::template::{Template, Values};
use crate::timing::Timing;

/// A frame's payload, about that of a short chat message.
pub const PAYLOAD: usize = 280;
/// Where a client connects.
pub const CUSTOMER: &str = "/ws/{session}/{user}/customer";
/// Enough that there is always more to fetch.
pub const UNDER_WAY: u64 = 20_000;

pub const COLUMNS: [Column; 9] = [
    column("cpu_us", "CPU, us per delivery", 3),
    column("deliveries_per_s", "deliveries a second", 0),
    column("p50_ms", "p50, ms", 2),
    column("p99_ms", "p99, ms", 2),
    column("max_ms", "max, ms", 1),
    column("rss_mib", "RSS, MiB", 1),
    column("sent_percent", "sent, % of due", 0),
    column("lost", "lost", 0),
    column("doubled", "doubled", 0),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// 1,000 sockets in 10 sessions, 200 messages a second
    A,
    /// 2,000 sockets in 1,000 sessions, 5,000 messages a second
    B,
    /// As A, but as many messages as are accepted
    C,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arm {
    /// The bare loop, one `send` per socket and message
    Floor,
    /// The bare loop, one `send` per socket for all messages that came together
    FloorBatched,
    /// The same behind librdkafka
    FloorKafka,
    /// livechat-ws with Kafka, native records, one `send` per socket
    Kafka,
    /// The same with many sends in one submission of io_uring
    KafkaUring,
    /// The same with presence in Redis
    KafkaRedis,
    /// livechat-ws with Kafka, records of the old form
    KafkaOld,
    /// livechat-ws with Kafka, and one more client that reads too slowly
    KafkaSlow,
    /// livechat-ws alone, messages over clients' sockets
    Embedded,
}

#[derive(Args, Clone)]
pub struct Options {
    #[command(flatten)]
    pub programs: Programs,
    #[arg(long = "workload", value_delimiter = ',', default_values = ["a", "b", "c"])]
    pub workloads: Vec<Workload>,
    /// What is compared; by default the bare loops and Kafka
    #[arg(long, value_delimiter = ',')]
    pub arms: Option<Vec<Arm>>,
    /// Another binary of the server, measured in turn with the first in all its arms
    #[arg(long, value_name = "FILE")]
    pub other_server: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub timing: Timing,
    /// All arms of a round at the same time: what stalls the broker or the machine then stalls them alike. For latency,
    /// on a machine that has room for all of them
    #[arg(long)]
    pub together: bool,
    /// In C, how many messages may be in flight: the more, the larger the batches
    #[arg(long, default_value_t = UNDER_WAY)]
    pub under_way: u64,
}

impl Arm {
    fn kind(self) -> Kind {
        match self {
            Self::Floor => Kind::Floor { is_batched: false },
            Self::FloorBatched => Kind::Floor { is_batched: true },
            Self::FloorKafka => Kind::FloorKafka,
            Self::Kafka | Self::KafkaUring | Self::KafkaOld | Self::KafkaSlow => Kind::KAFKA,
            Self::KafkaRedis => Kind::KAFKA_REDIS,
            Self::Embedded => Kind::EMBEDDED,
        }
    }

    /// Variables of the server's.
    fn settings(self) -> Vec<(&'static str, String)> {
        let fanout_io = if self == Self::KafkaUring { "uring" } else { "send" };
        let mut settings = vec![("FANOUT_IO", fanout_io.to_owned())];
        if self == Self::KafkaSlow {
            settings.extend(slow::SETTINGS.map(|(name, value)| (name, value.to_owned())));
        }
        settings
    }

    fn message(self) -> Result<Template> {
        match self {
            Self::KafkaOld => padded(OLD, PAYLOAD + OLD.len() - NATIVE.len()),
            Self::Embedded => by_socket(),
            _ => padded(NATIVE, PAYLOAD),
        }
    }

    fn publish(self, node: &Node) -> Result<Publish> {
        let form = match self {
            Self::Floor | Self::FloorBatched => return Ok(Publish::By(Sink::feed(node.addr)?)),
            Self::Embedded => return Ok(Publish::BySocket),
            Self::KafkaOld => Form::Legacy,
            Self::FloorKafka | Self::Kafka | Self::KafkaUring | Self::KafkaRedis | Self::KafkaSlow => {
                Form::Native
            }
        };
        let topics = node.topics.as_ref().context("no topics")?;
        Ok(Publish::By(Sink::Kafka(Producer::new(
            &brokers()?,
            &topics.messages,
            form,
        )?)))
    }
}

impl Workload {
    fn arms(self) -> Vec<Arm> {
        match self {
            Self::A => vec![
                Arm::Floor,
                Arm::FloorKafka,
                Arm::Kafka,
                Arm::KafkaUring,
                Arm::KafkaOld,
                Arm::KafkaRedis,
                Arm::KafkaSlow,
            ],
            Self::B => vec![Arm::Floor, Arm::FloorKafka, Arm::Kafka, Arm::KafkaUring],
            Self::C => vec![Arm::FloorBatched, Arm::FloorKafka, Arm::Kafka, Arm::KafkaUring],
        }
    }

    fn shape(self, arm: Arm, options: &Options) -> Shape {
        let (sockets, sessions, pace) = match self {
            Self::A => (1_000, 10, Pace::Rate(200.0)),
            Self::B => (2_000, 1_000, Pace::Rate(5_000.0)),
            Self::C => (1_000, 10, Pace::UnderWay(options.under_way)),
        };
        Shape {
            sockets,
            sessions,
            pace,
            warmup: options.timing.warmup(),
            steady: options.timing.measured(),
            in_flight: 256,
            has_slow_reader: arm == Arm::KafkaSlow,
        }
    }

    pub fn title(self) -> String {
        let help = self
            .to_possible_value()
            .and_then(|value| Some(value.get_help()?.to_string()));
        format!("{self:?}: {}", help.unwrap_or_default())
    }
}

pub fn run(options: &Options) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    for &workload in &options.workloads {
        let contestants = contestants(workload, options);
        let mut title = workload.title();
        if options.together {
            title = title.replacen(':', " together:", 1);
        }
        let mut report = Report::new(title, &COLUMNS);
        for round in 0..options.timing.rounds {
            let mut add = |contestant: &Contestant, figures| {
                progress(&line(workload, round, &contestant.name, &figures));
                report.add(&contestant.name, figures);
            };
            if options.together {
                for (contestant, figures) in
                    contestants.iter().zip(together(workload, &contestants, options)?)
                {
                    add(contestant, figures);
                }
            } else {
                for contestant in &contestants {
                    let node = contestant.start(workload)?;
                    add(contestant, contestant.measure(workload, &node, options)?);
                }
            }
        }
        reports.push(report);
    }
    Ok(reports)
}

/// An arm by one server's binary.
struct Contestant {
    name: String,
    arm: Arm,
    programs: Programs,
}

fn contestants(workload: Workload, options: &Options) -> Vec<Contestant> {
    let mut contestants = Vec::new();
    for arm in options.arms.clone().unwrap_or_else(|| workload.arms()) {
        let of = |name, programs| Contestant { name, arm, programs };
        contestants.push(of(arm.name(), options.programs.clone()));
        if let (Kind::Server { .. }, Some(other)) = (arm.kind(), &options.other_server) {
            let programs = options.programs.with_server(other);
            contestants.push(of(format!("{}, other", arm.name()), programs));
        }
    }
    contestants
}

/// All at the same time, each with clients and a publisher of its own.
fn together(workload: Workload, contestants: &[Contestant], options: &Options) -> Result<Vec<Figures>> {
    let nodes: Vec<_> = contestants
        .iter()
        .map(|contestant| contestant.start(workload))
        .collect::<Result<_>>()?;
    thread::scope(|scope| {
        let threads: Vec<_> = contestants
            .iter()
            .zip(&nodes)
            .map(|(contestant, node)| scope.spawn(move || contestant.measure(workload, node, options)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a round has panicked"))?)
            .collect()
    })
}

impl Contestant {
    fn start(&self, workload: Workload) -> Result<Node> {
        Node::start(&self.programs, self.arm.kind(), &self.arm.settings())
            .with_context(|| format!("workload {workload:?}, {}", self.name))
    }

    fn measure(&self, workload: Workload, node: &Node, options: &Options) -> Result<Figures> {
        let target = Target {
            addr: node.addr,
            pid: Some(node.process.pid()),
            path: Template::parse(CUSTOMER),
            issuer: None,
            hello: Vec::new(),
        };
        measure(
            &workload.shape(self.arm, options),
            &target,
            self.arm.publish(node)?,
            &self.arm.message()?,
        )
        .with_context(|| format!("workload {workload:?}, {}", self.name))
    }
}

pub fn line(workload: Workload, round: usize, name: &str, figures: &Figures) -> String {
    let mut text = format!("{workload:?} round {}: {name}:", round + 1);
    for (column, unit) in [
        ("cpu_us", "us per delivery"),
        ("deliveries_per_s", "deliveries a second"),
        ("p99_ms", "ms p99"),
    ] {
        if let Some(value) = figures.get(column) {
            text.push_str(&format!(" {value:.2} {unit},"));
        }
    }
    text.push_str(&format!(
        " lost {}, doubled {}",
        figures["lost"], figures["doubled"]
    ));
    text
}

pub const NATIVE: &str = r#"{"type":"new_message","success":true,"data":{"message_id":"018f4e3a-7c1e-7000-8000-000000000000","session_id":"{session}","sender_id":"{user}","sender_type":"customer","message":"{marker}{padding}","message_type":"text","attachments":[],"timestamp":"2026-01-01T00:00:00Z"}}"#;
pub const OLD: &str = r#"{"id":"018f4e3a-7c1e-7000-8000-000000000000","session_id":"{session}","sender_id":"{user}","sender_type":"customer","message":"{marker}{padding}","message_type":"text","attachments":[],"read_at":null,"created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}"#;
const SEND_MESSAGE: &str = r#"{"type":"send_message","data":{"message":"{marker}{padding}"}}"#;

/// A message that a client sends.
pub fn by_socket() -> Result<Template> {
    padded(SEND_MESSAGE, PAYLOAD + SEND_MESSAGE.len() - NATIVE.len())
}

/// A message of this length: the same text in each form, so that the frames that arrive are alike.
pub fn padded(text: &str, length: usize) -> Result<Template> {
    let values = Values {
        session: "s0",
        user: SENDER,
        number: 0,
        marker: &[b'0'; marker::LENGTH],
    };
    let bare = Template::parse(&text.replace("{padding}", "")).text(values).len();
    Template::with_marker(&text.replace("{padding}", &".".repeat(length.saturating_sub(bare))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_json_of_the_right_length_with_the_same_text() {
        let mut texts = Vec::new();
        for arm in [Arm::Kafka, Arm::KafkaOld, Arm::Embedded] {
            let values = Values {
                session: "s0",
                user: SENDER,
                number: 1,
                marker: &[b'0'; marker::LENGTH],
            };
            let text = arm.message().unwrap().text(values);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            let message = json["message"]
                .as_str()
                .or_else(|| json["data"]["message"].as_str());
            texts.push(message.unwrap().len());
            if arm == Arm::Kafka {
                assert_eq!(text.len(), PAYLOAD);
            }
        }
        assert!(texts.iter().all(|length| *length >= marker::LENGTH));
        assert_eq!(texts[0], texts[1], "native and old");
    }
}
