//! Workload F: clients that were connected to one node come back to another one, all at once, and each gets what it has
//! missed.
//!
//! - [`visitors`]: these clients, and what each of them got
//! - [`others`]: clients of that node that stay connected, for whom nothing should change
//! - [`run`]: one round

mod others;
mod run;
mod visitors;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::node::Programs;
use crate::report::{Column, Figures, Named as _, Report, column, progress};

const COST: [Column; 10] = [
    column("cpu_us_per_resume", "CPU, us per resume", 1),
    column("cpu_us_reference", "CPU, us per connect and send", 1),
    column("cpu_ratio", "ratio", 2),
    column("cpu_us_per_connect", "of it the connect", 1),
    column("cpu_us_per_send", "of it the send", 1),
    column("whole_s", "all whole after the last connect, s", 2),
    column("storm_s", "after the first connect, s", 2),
    column("whole", "whole", 0),
    column("lost", "messages lost", 0),
    column("doubled", "doubled", 0),
];

const OTHERS: [Column; 9] = [
    column("p50_before_ms", "p50 before, ms", 2),
    column("p50_ms", "p50 in the storm", 2),
    column("p99_before_ms", "p99 before", 2),
    column("p99_ms", "p99 in the storm", 2),
    column("p99_ratio", "ratio", 2),
    column("p99_connects_ms", "p99 while as many connect without since", 2),
    column("max_before_ms", "max before", 1),
    column("max_ms", "max in the storm", 1),
    column("sent_percent", "sent, % of due", 0),
];

const NODE: [Column; 6] = [
    column("rss_before_mib", "RSS before, MiB", 1),
    column("rss_mib", "RSS at the end, MiB", 1),
    column("rss_peak_mib", "RSS at most, MiB", 1),
    column("from_memory", "resumes from memory", 0),
    column("from_log", "resumes from the log", 0),
    column("passes", "passes over the log", 0),
];

/// Where the second node has what was missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// In its recent log
    Memory,
    /// Only in Kafka: RECENT_LOG_BYTES=0
    Log,
}

impl Source {
    fn title(self) -> &'static str {
        match self {
            Self::Memory => "F",
            Self::Log => "F from the log",
        }
    }

    /// As many as may wait for the log at once.
    fn clients(self) -> usize {
        match self {
            Self::Memory => 5_000,
            Self::Log => 1_000,
        }
    }
}

#[derive(Args, Clone)]
pub struct Options {
    #[command(flatten)]
    pub programs: Programs,
    /// Where the second node has what was missed
    #[arg(long, value_delimiter = ',', default_values = ["memory", "log"])]
    pub source: Vec<Source>,
    /// Clients that come back; by default 5,000, and 1,000 from the log
    #[arg(long)]
    pub clients: Option<usize>,
    /// Their sessions; by default half as many
    #[arg(long)]
    pub sessions: Option<usize>,
    /// Messages that each of these sessions is sent meanwhile
    #[arg(long, default_value_t = 20)]
    pub messages: u64,
    /// Clients that stay connected to the second node
    #[arg(long, default_value_t = 1_000)]
    pub others: usize,
    /// Their sessions
    #[arg(long, default_value_t = 10)]
    pub other_sessions: usize,
    /// Messages a second, over these sessions in turn
    #[arg(long, default_value_t = 200.0)]
    pub rate: f64,
    /// How many clients may be between connect and upgrade at a time
    #[arg(long, default_value_t = 256)]
    pub in_flight: usize,
    /// Another binary of the server, measured in turn with the first
    #[arg(long, value_name = "FILE")]
    pub other_server: Option<PathBuf>,
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Seconds of each part that is measured
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
}

impl Options {
    /// As in the whole suite.
    pub fn standard(programs: &Programs, rounds: usize) -> Self {
        Self {
            programs: programs.clone(),
            source: vec![Source::Memory, Source::Log],
            clients: None,
            sessions: None,
            messages: 20,
            others: 1_000,
            other_sessions: 10,
            rate: 200.0,
            in_flight: 256,
            other_server: None,
            rounds,
            seconds: 3.0,
        }
    }

    fn clients(&self, source: Source) -> usize {
        self.clients.unwrap_or(source.clients())
    }

    fn sessions(&self, source: Source) -> usize {
        self.sessions.unwrap_or(self.clients(source).div_ceil(2))
    }

    fn check(&self) -> Result<()> {
        for &source in &self.source {
            ensure!(
                (1..=self.clients(source)).contains(&self.sessions(source)),
                "each session needs a client"
            );
        }
        ensure!(
            (1..=self.others).contains(&self.other_sessions),
            "each session of the others needs a client"
        );
        ensure!(self.messages > 0, "nothing would be missed");
        Ok(())
    }
}

/// Measures it.
///
/// # Errors
///
/// Something could not be started, or a client did not get what it had missed.
pub fn run(options: &Options) -> Result<Vec<Report>> {
    options.check()?;
    let mut servers = vec![("kafka".to_owned(), options.programs.clone())];
    if let Some(server) = &options.other_server {
        servers.push(("kafka, other".to_owned(), options.programs.with_server(server)));
    }
    let mut reports = Vec::new();
    for &source in &options.source {
        let title = source.title();
        let what = format!(
            "{} clients of {} sessions come back for {} messages each",
            options.clients(source),
            options.sessions(source),
            options.messages
        );
        let mut cost = Report::new(format!("{title}: {what}"), &COST);
        let mut others = Report::new(
            format!(
                "{title}, the others: {} clients of {} sessions, {} messages a second",
                options.others, options.other_sessions, options.rate
            ),
            &OTHERS,
        );
        let mut node = Report::new(format!("{title}, the node"), &NODE);
        for round in 0..options.rounds {
            for (name, programs) in &servers {
                let figures = run::measure(options, programs, source)
                    .with_context(|| format!("F from {}, {name}", source.name()))?;
                progress(&line(source, round, name, &figures));
                cost.add(name, only(&COST, &figures));
                others.add(name, only(&OTHERS, &figures));
                node.add(name, only(&NODE, &figures));
            }
        }
        cost.note(
            "CPU of the node, less that of the same traffic without the clients that come back; a connect and a send \
             are those of as many clients without `since`, and of one message as long as all that were missed.",
        );
        reports.extend([cost, others, node]);
    }
    Ok(reports)
}

fn only(columns: &[Column], figures: &Figures) -> Figures {
    let figure = |column: &Column| Some((column.name, *figures.get(column.name)?));
    columns.iter().filter_map(figure).collect()
}

fn line(source: Source, round: usize, name: &str, figures: &Figures) -> String {
    format!(
        "F from {}, round {}: {name}: {:.1} us per resume, {:.2} times connect and send, whole after {:.2} s, others' \
         p99 {:.2} ms ({:.2} before), lost {}, doubled {}",
        source.name(),
        round + 1,
        figures["cpu_us_per_resume"],
        figures["cpu_ratio"],
        figures["whole_s"],
        figures["p99_ms"],
        figures["p99_before_ms"],
        figures["lost"],
        figures["doubled"]
    )
}
