//! Storm and trickle for several flush windows: the basis of PRESENCE_FLUSH's default.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::storm::Contestant;
use super::{Arm, Common, storm, trickle};
use crate::report::{Named as _, Report, column, progress};
use crate::tokens::Signature;

#[derive(Args, Clone)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    trickle: trickle::Options,
    #[arg(long, default_value_t = 10_000)]
    joins: usize,
    #[arg(long, default_value_t = 5_000)]
    sessions: usize,
    /// Values of PRESENCE_FLUSH, in milliseconds
    #[arg(long, value_delimiter = ',', default_values_t = [2, 5, 10, 20])]
    windows: Vec<u64>,
    #[arg(long, default_value = "redis")]
    arm: Arm,
}

pub(super) fn run(options: &Options) -> Result<Vec<Report>> {
    let title = format!(
        "Flush window ({}): {} joins in {} sessions at once; {} joins and leaves a second in {} sessions for {} s",
        options.arm.name(),
        options.joins,
        options.sessions,
        options.trickle.rate,
        options.trickle.watched,
        options.trickle.seconds
    );
    let columns = [
        column("cpu_us_per_connect", "storm: CPU, us per connect", 1),
        column("redis_reads", "Redis reads", 0),
        column("redis_cpu_us_per_connect", "Redis CPU, us", 1),
        column("seconds", "seconds", 2),
        column("trickle_cpu_us", "steady: CPU, us per join and leave", 1),
        column("trickle_reads", "Redis reads", 0),
        column("trickle_redis_cpu_us", "Redis CPU, us", 1),
        column("connect_p50_ms", "until greeted p50, ms", 2),
        column("status_p50_ms", "until the watcher knows p50, ms", 2),
        column("status_p99_ms", "p99, ms", 2),
    ];
    let mut report = Report::new(title, &columns);
    for round in 0..options.common.rounds {
        for &window in &options.windows {
            let storm_options = storm::Options {
                common: options.common.clone(),
                joins: options.joins,
                sessions: options.sessions,
                flush: window,
                arms: None,
                tokens: vec![Signature::Off],
                other_server: None,
            };
            let contestant = Contestant::new(&options.common, options.arm);
            let mut figures = storm::measure(&storm_options, &contestant, round as u64)?;
            figures.extend(trickle::measure(
                &options.common,
                &options.trickle,
                options.arm,
                Duration::from_millis(window),
            )?);
            progress(&format!(
                "flush round {}: {window} ms: {:.1} us per connect at once, {:.1} us per join and leave, {:.1} ms until known",
                round + 1,
                figures["cpu_us_per_connect"],
                figures["trickle_cpu_us"],
                figures["status_p50_ms"]
            ));
            report.add(&format!("{window} ms"), figures);
        }
    }
    Ok(vec![report])
}
