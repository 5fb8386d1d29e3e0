//! The whole suite, and its ratios compared with the targets.

use std::fmt::Write as _;

use anyhow::Result;
use clap::Args;

use crate::message::workload::{self, Arm, Workload};
use crate::node::Programs;
use crate::report::Report;
use crate::timing::Timing;
use crate::{idle, presence, resume};

#[derive(Args, Clone)]
pub struct Options {
    #[command(flatten)]
    programs: Programs,
    /// How often each arm is measured; the arms alternate
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that are measured of each message workload
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

/// A limit for one arm's figure over another's.
struct Target {
    what: &'static str,
    /// Which report, by the start of its title.
    report: &'static str,
    arm: &'static str,
    base: &'static str,
    column: &'static str,
    most: f64,
}

const fn target(
    what: &'static str,
    report: &'static str,
    (arm, base): (&'static str, &'static str),
    column: &'static str,
    most: f64,
) -> Target {
    Target {
        what,
        report,
        arm,
        base,
        column,
        most,
    }
}

const TARGETS: [Target; 13] = [
    target(
        "A, CPU per delivery / Kafka floor",
        "A:",
        ("kafka", "floor-kafka"),
        "cpu_us",
        1.1,
    ),
    target(
        "B, CPU per delivery / Kafka floor",
        "B:",
        ("kafka", "floor-kafka"),
        "cpu_us",
        1.1,
    ),
    target(
        "C, CPU per delivery / Kafka floor",
        "C:",
        ("kafka", "floor-kafka"),
        "cpu_us",
        1.1,
    ),
    target(
        "A, CPU per delivery / bare loop",
        "A:",
        ("kafka", "floor"),
        "cpu_us",
        1.2,
    ),
    target(
        "B, CPU per delivery / bare loop",
        "B:",
        ("kafka", "floor"),
        "cpu_us",
        0.9,
    ),
    target(
        "C, CPU per delivery / bare loop, batched",
        "C:",
        ("kafka", "floor-batched"),
        "cpu_us",
        1.0,
    ),
    target(
        "A, by io_uring, CPU per delivery / bare loop",
        "A:",
        ("kafka-uring", "floor"),
        "cpu_us",
        1.0,
    ),
    target(
        "C, by io_uring, CPU per delivery / bare loop, batched",
        "C:",
        ("kafka-uring", "floor-batched"),
        "cpu_us",
        0.85,
    ),
    target(
        "A, latency p99 / Kafka floor",
        "A:",
        ("kafka", "floor-kafka"),
        "p99_ms",
        2.0,
    ),
    target(
        "A, the same, both at the same time",
        "A together:",
        ("kafka", "floor-kafka"),
        "p99_ms",
        2.0,
    ),
    target(
        "A, others' p99 with a slow reader / without",
        "A:",
        ("kafka-slow", "kafka"),
        "p99_ms",
        1.1,
    ),
    target(
        "A, records of the old form / native ones",
        "A:",
        ("kafka-old", "kafka"),
        "cpu_us",
        1.3,
    ),
    target(
        "E, CPU per connect without presence / bare loop",
        "E:",
        ("none", "floor"),
        "cpu_us_per_connect",
        2.0,
    ),
];

/// Limits of medians as they are.
const LIMITS: [(&str, &str, &str, &str, f64); 6] = [
    (
        "D, KiB per idle connection, embedded",
        "D:",
        "embedded",
        "rss_kib_per_connection",
        2.0,
    ),
    (
        "D, KiB per idle connection, Kafka and Redis",
        "D:",
        "kafka-redis",
        "rss_kib_per_connection",
        3.0,
    ),
    (
        "F, CPU per resume / a connect and a send",
        "F:",
        "kafka",
        "cpu_ratio",
        1.5,
    ),
    (
        "F, seconds from the last connect until all are whole",
        "F:",
        "kafka",
        "whole_s",
        5.0,
    ),
    (
        "F from the log, the same",
        "F from the log:",
        "kafka",
        "whole_s",
        5.0,
    ),
    (
        "F from the log, others' p99 in the storm / before",
        "F from the log, the others:",
        "kafka",
        "p99_ratio",
        1.2,
    ),
];

/// A to F.
pub fn run(options: &Options) -> Result<Vec<Report>> {
    let in_turn = workload::Options {
        programs: options.programs.clone(),
        workloads: vec![Workload::A, Workload::B, Workload::C],
        arms: None,
        other_server: None,
        timing: Timing {
            rounds: options.rounds,
            warmup: 2.0,
            seconds: options.seconds,
        },
        together: false,
        under_way: workload::UNDER_WAY,
    };
    let together = workload::Options {
        workloads: vec![Workload::A],
        arms: Some(vec![Arm::FloorKafka, Arm::Kafka]),
        together: true,
        ..in_turn.clone()
    };
    let mut reports = workload::run(&in_turn)?;
    reports.extend(workload::run(&together)?);
    reports.extend(idle::run(&idle::Options {
        programs: options.programs.clone(),
        connections: 10_000,
        sessions: 5_000,
        arms: None,
        other_server: None,
        rounds: options.rounds,
        seconds: 5,
    })?);
    reports.extend(presence::reconnect(&options.programs, options.rounds)?);
    reports.extend(resume::run(&resume::Options::standard(
        &options.programs,
        options.rounds,
    ))?);
    Ok(reports)
}

/// Messages that were lost or duplicated, in all rounds of all arms: there must be none.
pub fn faults(reports: &[Report]) -> Option<f64> {
    let faults = |report: &Report| Some(report.total("lost")? + report.total("doubled")?);
    reports
        .iter()
        .filter_map(faults)
        .reduce(|sum, faults| sum + faults)
}

/// Targets and what was measured; nothing where none of it was.
pub fn table(reports: &[Report]) -> String {
    let mut rows = String::new();
    let of = |title: &str| reports.iter().find(|report| report.title.starts_with(title));
    let mut row = |what: &str, value: Option<f64>, most: f64| {
        if let Some(value) = value {
            let verdict = if value <= most { "met" } else { "missed" };
            let _ = writeln!(rows, "| {what:<54} | {value:>8.2} | {most:>7.2} | {verdict:<6} |");
        }
    };
    for target in &TARGETS {
        let ratio = of(target.report).and_then(|report| report.ratio(target.arm, target.base, target.column));
        row(target.what, ratio, target.most);
    }
    for (what, report, arm, column, most) in LIMITS {
        row(
            what,
            of(report).and_then(|report| report.median(arm, column)),
            most,
        );
    }
    row("messages lost or doubled, of all rounds", faults(reports), 0.0);
    if rows.is_empty() {
        return rows;
    }
    let heading = format!(
        "| {:<54} | measured | at most |        |",
        "median of the ratios of each round"
    );
    format!(
        "\n{heading}\n| {} | -------- | ------- | ------ |\n{rows}",
        "-".repeat(54)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Figures, column};

    #[test]
    fn only_what_was_measured_is_judged() {
        let mut report = Report::new("A: x", &[column("cpu_us", "", 1)]);
        for (arm, value) in [("kafka", 10.0), ("floor-kafka", 10.0), ("floor", 5.0)] {
            report.add(arm, Figures::from([("cpu_us", value)]));
        }
        let table = table(&[report]);
        assert!(
            table.contains(
                "| A, CPU per delivery / Kafka floor                      |     1.00 |    1.10 | met    |"
            ),
            "{table}"
        );
        assert!(table.contains("|     2.00 |    1.20 | missed |"), "{table}");
        assert_eq!(table.lines().count(), 5, "{table}");
        assert_eq!(super::table(&[]), "");
    }
}
