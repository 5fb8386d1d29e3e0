//! The size of a cluster: nodes, network and memory, computed from costs that the other commands measure.
//!
//! - [`model`]: a node's share of the work, and how many nodes suffice
//! - [`partitions`]: which partition a session is in, and which node has it
//! - [`churn`]: nodes that die and come back
//!
//! Two ways to read the log are compared. *Everything*: each node reads every record, as livechat-ws does. *Affine*:
//! connections go to nodes by their session's partition, and a node reads the partitions of the sessions that it has.

pub mod churn;
pub mod model;
pub mod partitions;

use anyhow::{Result, ensure};
use clap::Args;

use churn::{Churn, Outcome};
use model::{Cost, Costs, Demand, Hardware, Model, Part, Usage, read_by_chance};
use partitions::{Assignment, Load, Sizes, loads};

use crate::report::{Column, Figures, Report, column};

/// An upper bound of nodes.
const MOST_NODES: usize = 4_096;
/// Sizes for which nodes are computed, as multiples of the requested size.
const FACTORS: [f64; 7] = [0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0];
const MB: f64 = 1e6;

#[derive(Args, Clone)]
pub struct Options {
    #[arg(long, default_value_t = 1_000_000.0)]
    pub connections: f64,
    #[arg(long, default_value_t = 500_000.0)]
    pub sessions: f64,
    /// Deliveries a second
    #[arg(long, default_value_t = 1_000_000.0)]
    pub deliveries: f64,
    /// Deliveries of a message; by default the connections of a session
    #[arg(long)]
    pub fan_out: Option<f64>,
    /// Records of sessions without any connection, for each of the others
    #[arg(long, default_value_t = 0.1)]
    pub unheard: f64,
    /// Typing records for each message
    #[arg(long, default_value_t = 0.5)]
    pub typing: f64,
    /// Connects a second, and as many leaves
    #[arg(long, default_value_t = 2_000.0)]
    pub connects: f64,
    /// CPU for each delivery, us, without reading its record
    #[arg(long, default_value_t = 7.8)]
    pub delivery_us: f64,
    /// CPU for each record that is read, us; and what of it is the bus's thread
    #[arg(long, default_value_t = 0.79)]
    pub record_us: f64,
    #[arg(long, default_value_t = 0.55)]
    pub record_bus_us: f64,
    /// The same for typing and status records
    #[arg(long, default_value_t = 0.96)]
    pub side_us: f64,
    #[arg(long, default_value_t = 0.73)]
    pub side_bus_us: f64,
    /// The same for each fetch
    #[arg(long, default_value_t = 50.0)]
    pub fetch_us: f64,
    #[arg(long, default_value_t = 9.4)]
    pub fetch_bus_us: f64,
    /// Fetches a second from a broker by a bus thread, at most
    #[arg(long, default_value_t = 1_100.0)]
    pub fetches: f64,
    /// CPU for each connect, us
    #[arg(long, default_value_t = 77.0)]
    pub connect_us: f64,
    /// Memory of a connection, KiB
    #[arg(long, default_value_t = 1.9)]
    pub connection_kib: f64,
    /// Memory of a node without connections, MiB
    #[arg(long, default_value_t = 20.0)]
    pub base_mib: f64,
    /// Cores of a node
    #[arg(long, default_value_t = 4.0)]
    pub cores: f64,
    /// Threads of a node that read and deliver, each a part of the partitions; livechat-ws has one
    #[arg(long, default_value_t = 1.0)]
    pub bus_threads: f64,
    /// The share of cores, bus threads and network that may be used
    #[arg(long, default_value_t = 0.6)]
    pub utilisation: f64,
    /// The network of a node or a broker, bytes a second each way
    #[arg(long, default_value_t = 1.25e9)]
    pub nic: f64,
    /// Length of a frame's payload
    #[arg(long, default_value_t = 280.0)]
    pub payload: f64,
    /// A record's overhead in a fetch: key, header, framing
    #[arg(long, default_value_t = 70.0)]
    pub record_overhead: f64,
    /// A frame's overhead on the wire: headers of WebSocket, TCP, IP and Ethernet
    #[arg(long, default_value_t = 70.0)]
    pub frame_overhead: f64,
    #[arg(long, default_value_t = 6.0)]
    pub brokers: f64,
    #[arg(long, default_value_t = 512)]
    pub partitions: usize,
    /// How heavy the tail of the sessions' sizes is: smaller is heavier
    #[arg(long, default_value_t = 1.5)]
    pub tail: f64,
    /// How many times the connections of the smallest sessions the largest have
    #[arg(long, default_value_t = 1_000.0)]
    pub largest: f64,
    /// A node gets at most this many times its share of the partitions
    #[arg(long, default_value_t = 1.1)]
    pub bound: f64,
    /// How many nodes die, one after the other
    #[arg(long, default_value_t = 20)]
    pub losses: usize,
    /// How long each is down, in mean lifetimes of a connection
    #[arg(long, default_value_t = 0.2)]
    pub away: f64,
    /// Time between a node's return and the next death
    #[arg(long, default_value_t = 3.0)]
    pub between: f64,
    /// The share of the bus threads that foreign records may take before they count as the limit
    #[arg(long, default_value_t = 0.25)]
    pub foreign_share: f64,
    /// Cluster sizes to show, in addition to the smallest sufficient ones
    #[arg(long, value_delimiter = ',', default_values = ["32", "64", "128"])]
    pub nodes: Vec<usize>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

const NODE_COLUMNS: [Column; 10] = [
    column("bus_percent", "bus threads, %", 1),
    column("foreign_percent", "of it foreign, %", 1),
    column("cpu_cores", "CPU, cores", 2),
    column("memory_mib", "memory, MiB", 0),
    column("in_mb_s", "in, MB/s", 1),
    column("out_mb_s", "out, MB/s", 1),
    column("readers", "nodes that read a record", 2),
    column("egress_mb_s", "Kafka's egress, MB/s", 0),
    column("egress_nics", "in brokers' NICs", 1),
    column("fits", "fits", 0),
];

const SIZE_COLUMNS: [Column; 7] = [
    column("connections", "connections", 0),
    column("records_per_s", "records a second", 0),
    column("read_percent", "read, % of bus threads, everything", 1),
    column("everything_nodes", "nodes, everything", 0),
    column("affine_nodes", "nodes, affine", 0),
    column("everything_egress_mb_s", "Kafka's egress, MB/s, everything", 0),
    column("affine_egress_mb_s", "affine", 0),
];

const CHURN_COLUMNS: [Column; 7] = [
    column("steady", "busiest node / mean", 2),
    column("worst", "at worst", 2),
    column("worst_read", "records read at worst / mean", 2),
    column("readers", "nodes that read a record", 3),
    column("moved", "moved by a loss, nodes' parts", 2),
    column("takeover", "most connections one node takes over", 0),
    column("takeover_cpu_s", "their CPU, s", 2),
];

impl Options {
    fn model(&self) -> Model {
        Model {
            costs: Costs {
                delivery_us: self.delivery_us,
                record: Cost {
                    us: self.record_us,
                    bus_us: self.record_bus_us,
                },
                side: Cost {
                    us: self.side_us,
                    bus_us: self.side_bus_us,
                },
                fetch: Cost {
                    us: self.fetch_us,
                    bus_us: self.fetch_bus_us,
                },
                fetches: self.fetches,
                connect_us: self.connect_us,
                connection_kib: self.connection_kib,
                base_mib: self.base_mib,
            },
            demand: Demand {
                connections: self.connections,
                sessions: self.sessions,
                deliveries: self.deliveries,
                fan_out: self.fan_out.unwrap_or(self.connections / self.sessions),
                unheard: self.unheard,
                typing: self.typing,
                connects: self.connects,
                payload: self.payload,
                record_overhead: self.record_overhead,
                frame_overhead: self.frame_overhead,
            },
            hardware: Hardware {
                cores: self.cores,
                bus_threads: self.bus_threads,
                utilisation: self.utilisation,
                nic: self.nic,
                brokers: self.brokers,
                partitions: self.partitions,
            },
        }
    }

    fn loads(&self, sessions: f64) -> Vec<Load> {
        let sizes = Sizes {
            tail: self.tail,
            largest: self.largest,
        };
        let mut random = fastrand::Rng::with_seed(self.seed);
        loads(sessions as usize, self.partitions, sizes, &mut random)
    }

    fn churn(&self, nodes: usize, sessions: f64, assignment: Assignment, loads: &[Load]) -> Outcome {
        let churn = Churn {
            nodes,
            assignment,
            losses: self.losses,
            away: self.away,
            between: self.between,
            sessions,
            seed: self.seed,
        };
        churn::simulate(churn, loads)
    }

    /// The busiest node's share if connections follow partitions.
    fn affine(&self, nodes: usize, sessions: f64, loads: &[Load]) -> Part {
        let outcome = self.churn(nodes, sessions, Assignment::Bounded(self.bound), loads);
        Part::affine(nodes, &outcome)
    }

    /// The fewest nodes that suffice, and the busiest node's usage: reading everything, and affine.
    fn fewest(&self, model: &Model, loads: &[Load]) -> [Option<(usize, Usage)>; 2] {
        let affine = |nodes| self.affine(nodes, model.demand.sessions, loads);
        [
            model.fewest(MOST_NODES, Part::everything),
            model.fewest(self.partitions, affine),
        ]
    }
}

pub fn run(options: &Options) -> Result<Vec<Report>> {
    ensure!(
        options.sessions >= 1.0 && options.partitions >= 2 && options.bound >= 1.0,
        "there must be a session, two partitions and a bound of at least 1"
    );
    let smallest = options.nodes.iter().all(|nodes| *nodes >= 2);
    ensure!(smallest, "a cluster has two nodes at least");
    let model = options.model();
    let loads = options.loads(options.sessions);
    let affine = |nodes| options.affine(nodes, options.sessions, &loads);
    let fewest = options
        .fewest(&model, &loads)
        .map(|fewest| fewest.map(|(nodes, _)| nodes));

    let mut counts: Vec<usize> = options.nodes.clone();
    counts.extend(fewest.into_iter().flatten());
    counts.sort_unstable();
    counts.dedup();

    Ok(vec![
        nodes(&model, &counts, fewest, affine),
        sizes(options, &model),
        moves(options, &counts, &loads),
    ])
}

/// The busiest node's work, for each number of nodes.
fn nodes(
    model: &Model,
    counts: &[usize],
    fewest: [Option<usize>; 2],
    affine: impl Fn(usize) -> Part,
) -> Report {
    let demand = &model.demand;
    let title = format!(
        "The busiest node: {} connections, {} deliveries and {} records a second",
        demand.connections,
        demand.deliveries,
        (demand.records() + demand.side_records()).round()
    );
    let mut report = Report::computed(title, &NODE_COLUMNS);
    for (mode, part) in [
        ("everything", &Part::everything as &dyn Fn(usize) -> Part),
        ("affine", &affine),
    ] {
        for &count in counts {
            report.add(&format!("{mode}, {count}"), figures(model, &part(count)));
        }
    }
    let [everything, affine] =
        fewest.map(|nodes| nodes.map_or("no number of nodes".into(), |nodes| format!("{nodes} nodes")));
    report.note(format!(
        "The fewest that fit, one of them away: {everything} that read everything, {affine} that are affine."
    ));
    report
}

fn figures(model: &Model, part: &Part) -> Figures {
    let usage = model.usage(part);
    let room = model.hardware.nic * model.hardware.utilisation;
    Figures::from([
        ("bus_percent", usage.bus * 100.0),
        ("foreign_percent", usage.foreign * 100.0),
        ("cpu_cores", usage.cpu),
        ("memory_mib", usage.memory_mib),
        ("in_mb_s", usage.bytes_in / MB),
        ("out_mb_s", usage.bytes_out / MB),
        ("readers", part.readers),
        ("egress_mb_s", usage.egress / MB),
        ("egress_nics", usage.egress / room),
        ("fits", f64::from(u8::from(model.fits(&usage)))),
    ])
}

/// The fewest nodes for clusters of several sizes.
fn sizes(options: &Options, model: &Model) -> Report {
    let mut report = Report::computed("The fewest nodes, by size", &SIZE_COLUMNS);
    for factor in FACTORS {
        let demand = model.demand.times(factor);
        let model = Model {
            demand,
            ..options.model()
        };
        let loads = options.loads(demand.sessions);
        let mut figures = Figures::from([
            ("connections", demand.connections),
            ("records_per_s", demand.records() + demand.side_records()),
            (
                "read_percent",
                options.foreign_share / model.reading_limit(options.foreign_share) * 100.0,
            ),
        ]);
        let columns = [
            ("everything_nodes", "everything_egress_mb_s"),
            ("affine_nodes", "affine_egress_mb_s"),
        ];
        for ((nodes, egress), fewest) in columns.into_iter().zip(options.fewest(&model, &loads)) {
            if let Some((count, usage)) = fewest {
                figures.insert(nodes, count as f64);
                figures.insert(egress, usage.egress / MB);
            }
        }
        report.add(&format!("{factor} times"), figures);
    }
    let limit = |factor: f64| {
        let demand = model.demand.times(factor);
        format!(
            "{:.2} times that size: {:.0} records and {:.0} deliveries a second",
            factor,
            demand.records() + demand.side_records(),
            demand.deliveries
        )
    };
    report.note(format!(
        "Reading everything takes {:.0} % of each node's bus threads at {}.",
        options.foreign_share * 100.0,
        limit(model.reading_limit(options.foreign_share))
    ));
    report.note(format!(
        "No number of nodes that read everything does more than {}.",
        limit(model.ceiling())
    ));
    report
}

/// The effect of dying nodes, for both assignments.
fn moves(options: &Options, counts: &[usize], loads: &[Load]) -> Report {
    let title = format!(
        "{} partitions, {} nodes die and come back",
        options.partitions, options.losses
    );
    let mut report = Report::computed(title, &CHURN_COLUMNS);
    for (name, assignment) in [
        ("rendezvous", Assignment::Rendezvous),
        ("bounded", Assignment::Bounded(options.bound)),
    ] {
        for &count in counts.iter().filter(|count| **count <= options.partitions) {
            let outcome = options.churn(count, options.sessions, assignment, loads);
            let takeover = outcome.worst_takeover * options.connections;
            report.add(
                &format!("{name}, {count}"),
                Figures::from([
                    ("steady", outcome.steady),
                    ("worst", outcome.worst),
                    ("worst_read", outcome.worst_read),
                    ("readers", outcome.readers),
                    ("moved", outcome.moved * count as f64),
                    ("takeover", takeover),
                    ("takeover_cpu_s", takeover * options.connect_us / 1e6),
                ]),
            );
        }
    }
    let chance = counts.first().map_or(0.0, |count| {
        read_by_chance(*count as f64, options.sessions, options.partitions as f64)
    });
    report.note(format!(
        "Were connections spread by their session rather than by its partition, each of {} nodes would read {:.2} % of the partitions.",
        counts.first().unwrap_or(&0),
        chance * 100.0
    ));
    report
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    /// A tenth of the connections, with twice the deliveries of all: more records than a node can read.
    fn reports(seed: &str) -> Vec<Report> {
        let args = [
            "scale",
            "--sessions",
            "50000",
            "--connections",
            "100000",
            "--deliveries",
            "2000000",
            "--seed",
            seed,
            "--nodes",
            "64",
        ];
        run(&Cli::parse_from(args).options).unwrap()
    }

    #[test]
    fn one_seed_prints_the_same_and_another_does_not() {
        let text = |seed| reports(seed).iter().map(Report::table).collect::<String>();
        assert_eq!(text("1"), text("1"));
        assert_ne!(text("1"), text("2"));
    }

    #[test]
    fn where_reading_everything_never_fits_reading_a_part_does() {
        let reports = reports("1");
        assert!(
            reports[0].notes[0].contains("no number of nodes that read everything"),
            "{:?}",
            reports[0].notes
        );
        let fits = |arm: &str| reports[0].median(arm, "fits");
        assert_eq!(
            (fits("everything, 64"), fits("affine, 64")),
            (Some(0.0), Some(1.0))
        );
        let readers = reports[0].median("affine, 64", "readers").unwrap();
        assert!((1.0..2.0).contains(&readers), "{readers}");
        assert_eq!(reports[1].median("1 times", "everything_nodes"), None);
    }
}
