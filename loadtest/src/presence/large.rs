//! Many joins in one session: the frames that each member gets.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::{Arm, Common, STATUS_FRAME, start, us_each};
use crate::crowd::{Crowd, Id, Watcher};
use crate::report::{Figures, Named as _, Report, column, progress};

/// Large sessions get a frame a second: after a longer pause, everything has been announced.
const QUIET: Duration = Duration::from_millis(1500);
const TURN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Args, Clone)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    #[arg(long, default_value_t = 2_000)]
    joins: usize,
    /// PRESENCE_FLUSH, in milliseconds
    #[arg(long, default_value_t = 10)]
    flush: u64,
    /// What is compared; by default embedded and redis
    #[arg(long, value_delimiter = ',')]
    arms: Option<Vec<Arm>>,
}

#[derive(Default)]
struct Members {
    greeted: usize,
    frames: Vec<u32>,
    bytes: Vec<u64>,
    largest: usize,
}

impl Watcher for Members {
    fn frame(&mut self, id: Id, payload: &[u8], _now: Instant) {
        if payload.starts_with(STATUS_FRAME) {
            self.frames[id] += 1;
            self.bytes[id] += payload.len() as u64;
            self.largest = self.largest.max(payload.len());
        } else {
            self.greeted += 1;
        }
    }
}

pub(super) fn run(options: &Options) -> Result<Vec<Report>> {
    let columns = [
        column("frames_per_client", "status frames per client", 1),
        column("most_frames", "most", 0),
        column("bytes_per_client", "status bytes per client", 0),
        column("most_bytes", "most", 0),
        column("largest_frame", "largest frame, bytes", 0),
        column("total_mib", "status frames in all, MiB", 1),
        column("join_seconds", "seconds until all are in", 2),
        column("seconds", "seconds until all was told", 1),
        column("cpu_us_per_connect", "CPU, us per connect", 1),
        column("redis_reads", "Redis reads", 0),
        column("redis_cpu_us_per_connect", "Redis CPU, us per connect", 1),
    ];
    let arms = options
        .arms
        .clone()
        .unwrap_or_else(|| vec![Arm::Embedded, Arm::Redis]);
    let mut report = Report::new(format!("{} joins in one session", options.joins), &columns);
    for round in 0..options.common.rounds {
        for &arm in &arms {
            let figures = measure(options, arm)?;
            progress(&format!(
                "large round {}: {} {:.0} bytes per client",
                round + 1,
                arm.name(),
                figures["bytes_per_client"]
            ));
            report.add(&arm.name(), figures);
        }
    }
    Ok(vec![report])
}

fn measure(options: &Options, arm: Arm) -> Result<Figures> {
    let node = start(&options.common, arm, Duration::from_millis(options.flush))?;
    let mut crowd = Crowd::new()?;
    let mut members = Members {
        frames: vec![0; options.joins],
        bytes: vec![0; options.joins],
        ..Members::default()
    };
    let (before, started) = (node.cost()?, Instant::now());
    let mut opened = 0;
    while members.greeted < options.joins {
        ensure!(
            started.elapsed() < PATIENCE,
            "{} of {} clients were greeted",
            members.greeted,
            options.joins
        );
        while opened < options.joins && opened - members.greeted < options.common.in_flight {
            crowd.open(node.addr, &format!("/ws/crowd/u{opened}/customer"))?;
            opened += 1;
        }
        crowd.turn(TURN, &mut members)?;
    }
    let joined = started.elapsed();
    ensure!(crowd.settle(QUIET, PATIENCE, &mut members)?, "frames do not end");
    let cost = node.cost()?.since(before);
    let told = started.elapsed() - QUIET;
    let most = |values: &[u64]| values.iter().max().copied().unwrap_or(0) as f64;
    let frames: Vec<u64> = members.frames.iter().map(|&frames| frames.into()).collect();
    let (all_frames, all_bytes) = (
        frames.iter().sum::<u64>() as f64,
        members.bytes.iter().sum::<u64>() as f64,
    );
    let count = options.joins as f64;
    let mut figures = Figures::from([
        ("frames_per_client", all_frames / count),
        ("most_frames", most(&frames)),
        ("bytes_per_client", all_bytes / count),
        ("most_bytes", most(&members.bytes)),
        ("largest_frame", members.largest as f64),
        ("total_mib", all_bytes / 1024.0 / 1024.0),
        ("join_seconds", joined.as_secs_f64()),
        ("seconds", told.as_secs_f64()),
        ("cpu_us_per_connect", us_each(cost.cpu, options.joins)),
    ]);
    if let Some(redis) = cost.redis {
        figures.insert("redis_reads", redis.reads as f64);
        figures.insert("redis_cpu_us_per_connect", us_each(redis.cpu, options.joins));
    }
    Ok(figures)
}
