//! Many joins in many sessions as fast as the machine allows, then all leave at once.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::{Arm, Common, STATUS_FRAME, us_each};
use crate::crowd::{Crowd, Id, Watcher};
use crate::node::{Node, Programs};
use crate::report::{Figures, Named as _, Report, column, progress};
use crate::tokens::{Issuer, Signature};

/// The longest window that the server accepts: between two flushes there is no presence.
const NO_FLUSH: Duration = Duration::from_secs(1);
/// How much of it is used for joins, and when the last of them must be complete.
const WAVE: Duration = Duration::from_millis(600);
const WAVE_END: Duration = Duration::from_millis(950);
/// How often waves that took too long are repeated.
const RETRIES: usize = 3;
const TURN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args, Clone)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 10_000)]
    pub joins: usize,
    #[arg(long, default_value_t = 5_000)]
    pub sessions: usize,
    /// PRESENCE_FLUSH, in milliseconds
    #[arg(long, default_value_t = 10)]
    pub flush: u64,
    /// What is compared; by default everything possible here
    #[arg(long, value_delimiter = ',')]
    pub arms: Option<Vec<Arm>>,
    /// How the clients' tokens are signed; every arm of the server is measured with each of these
    #[arg(long, value_delimiter = ',', default_value = "off")]
    pub tokens: Vec<Signature>,
    /// Another binary of the server, measured in turn with the first in all its arms
    #[arg(long, value_name = "FILE")]
    pub other_server: Option<PathBuf>,
}

/// An arm by one server's binary, with or without tokens.
pub(super) struct Contestant {
    name: String,
    arm: Arm,
    programs: Programs,
    tokens: Signature,
}

/// A client's path, and its token.
type Visit = (String, Option<String>);

impl Contestant {
    pub(super) fn new(common: &Common, arm: Arm) -> Self {
        Self {
            name: arm.name(),
            arm,
            programs: common.programs.clone(),
            tokens: Signature::Off,
        }
    }

    fn all(options: &Options, arms: &[Arm]) -> Vec<Self> {
        let mut all = Vec::new();
        for &arm in arms {
            let plain = || Self::new(&options.common, arm);
            // The bare loop knows no tokens.
            if arm == Arm::Floor {
                all.push(plain());
                continue;
            }
            for &tokens in &options.tokens {
                let name = name_of(arm, tokens);
                let other = options.other_server.as_ref().map(|server| {
                    let mut other = plain();
                    other.programs.server.clone_from(server);
                    other.name = format!("{name}, other");
                    Self { tokens, ..other }
                });
                all.push(Self {
                    name,
                    tokens,
                    ..plain()
                });
                all.extend(other);
            }
        }
        all
    }

    fn start(&self, window: Duration, issuer: Option<&Issuer>) -> Result<Node> {
        let mut settings = vec![("PRESENCE_FLUSH", format!("{}ms", window.as_millis()))];
        settings.extend(issuer.map(Issuer::setting));
        Node::start(&self.programs, self.arm.kind(), &settings)
    }
}

fn name_of(arm: Arm, tokens: Signature) -> String {
    match tokens {
        Signature::Off => arm.name(),
        signed => format!("{}, {}", arm.name(), signed.name()),
    }
}

#[derive(Default)]
struct Joiners {
    greeted: usize,
    /// Whether each client was shown its session's status.
    has_status: Vec<bool>,
    with_status: usize,
    status_frames: u64,
    status_bytes: u64,
}

impl Watcher for Joiners {
    fn frame(&mut self, id: Id, payload: &[u8], _now: Instant) {
        if payload.starts_with(STATUS_FRAME) {
            self.status_frames += 1;
            self.status_bytes += payload.len() as u64;
            if !std::mem::replace(&mut self.has_status[id], true) {
                self.with_status += 1;
            }
        } else {
            self.greeted += 1;
        }
    }
}

pub(super) fn run(options: &Options) -> Result<Vec<Report>> {
    let arms = options.arms.clone().unwrap_or_else(Arm::default_set);
    let title = format!(
        "E: connect storm, {} joins in {} sessions, PRESENCE_FLUSH {} ms",
        options.joins, options.sessions, options.flush
    );
    let columns = [
        column("cpu_us_per_connect", "CPU, us per connect", 1),
        column("seconds", "seconds", 2),
        column("redis_reads", "Redis reads", 0),
        column("redis_commands", "Redis commands", 0),
        column("redis_cpu_us_per_connect", "Redis CPU, us per connect", 1),
        column("status_frames_per_client", "status frames per client", 2),
        column("status_bytes_per_client", "status bytes per client", 0),
        column("cpu_us_per_leave", "CPU, us per leave", 1),
        column("redis_reads_leaving", "Redis reads, leaving", 0),
    ];
    let mut report = Report::new(title, &columns);
    let contestants = Contestant::all(options, &arms);
    for round in 0..options.common.rounds {
        for contestant in &contestants {
            let mut figures = measure(options, contestant, round as u64);
            // A hiccup of the machine must not discard everything measured so far.
            for _ in 0..if contestant.arm == Arm::None { RETRIES } else { 0 } {
                if let Err(error) = &figures {
                    progress(&format!("again: {error}"));
                    figures = measure(options, contestant, round as u64);
                }
            }
            let figures = figures?;
            progress(&format!(
                "storm round {}: {} {:.1} us per connect",
                round + 1,
                contestant.name,
                figures["cpu_us_per_connect"]
            ));
            report.add(&contestant.name, figures);
        }
    }
    note_tokens(&mut report, &arms, &options.tokens);
    for arm in arms.iter().filter(|arm| !matches!(arm, Arm::Floor | Arm::None)) {
        for base in [Arm::None, Arm::Embedded] {
            let cost = |arm: Arm| report.median(&arm.name(), "cpu_us_per_connect");
            if let (Some(with), Some(without)) = (cost(*arm), cost(base))
                && *arm != base
            {
                report.note(format!(
                    "{} costs {:.1} us per connect more than {}",
                    arm.name(),
                    with - without,
                    base.name()
                ));
            }
        }
    }
    report.note("CPU is user and system time of the server's process until every client has its status and all is quiet.");
    Ok(vec![report])
}

/// What tokens add, round by round.
fn note_tokens(report: &mut Report, arms: &[Arm], tokens: &[Signature]) {
    for &arm in arms {
        for &signed in tokens.iter().filter(|&&tokens| tokens != Signature::Off) {
            let (with, without) = (name_of(arm, signed), name_of(arm, Signature::Off));
            let cost = |name: &str| report.median(name, "cpu_us_per_connect");
            if let (Some(dearer), Some(cost), Some(ratio)) = (
                cost(&with),
                cost(&without),
                report.ratio(&with, &without, "cpu_us_per_connect"),
            ) {
                report.note(format!(
                    "{with} costs {:.1} us per connect more than {without}: {ratio:.2} times as much",
                    dearer - cost
                ));
            }
        }
    }
}

/// One round of one arm. The order of sessions is shuffled in each round, and is the same for all arms.
pub(super) fn measure(options: &Options, contestant: &Contestant, round: u64) -> Result<Figures> {
    let arm = contestant.arm;
    let window = if arm == Arm::None {
        NO_FLUSH
    } else {
        Duration::from_millis(options.flush)
    };
    let issuer = Issuer::new(contestant.tokens)?;
    let node = contestant.start(window, issuer.as_ref())?;
    let mut visits = (0..options.joins)
        .map(|join| {
            let kind = if join < options.sessions {
                "customer"
            } else {
                "agent"
            };
            let (session, user) = (format!("s{}", join % options.sessions), format!("u{join}"));
            let token = issuer.as_ref().map(|issuer| issuer.token(&session, &user, kind));
            Ok((format!("/ws/{session}/{user}/{kind}"), token.transpose()?))
        })
        .collect::<Result<Vec<Visit>>>()?;
    fastrand::Rng::with_seed(round).shuffle(&mut visits);

    let mut crowd = Crowd::new()?;
    let mut joiners = Joiners {
        has_status: vec![false; options.joins],
        ..Joiners::default()
    };
    let (before, started) = (node.cost()?, Instant::now());
    let mut figures = Figures::new();
    if arm == Arm::None {
        let cpu = in_waves(options, &node, &visits, &mut crowd, &mut joiners)?;
        figures.insert("cpu_us_per_connect", us_each(cpu, options.joins));
        return Ok(figures);
    }
    let mut opened = 0;
    // The bare loop has no status to show.
    let is_in = |joiners: &Joiners| {
        if arm == Arm::Floor {
            joiners.greeted
        } else {
            joiners.with_status
        }
    };
    while is_in(&joiners) < options.joins {
        ensure!(
            started.elapsed() < PATIENCE,
            "{} of {} clients are in",
            is_in(&joiners),
            options.joins
        );
        while opened < visits.len() && opened - joiners.greeted < options.common.in_flight {
            let (path, token) = &visits[opened];
            crowd.open_with(node.addr, path, token.as_deref())?;
            opened += 1;
        }
        crowd.turn(TURN, &mut joiners)?;
    }
    figures.insert("seconds", started.elapsed().as_secs_f64());
    let quiet = Duration::from_millis(200) + 3 * window;
    ensure!(crowd.settle(quiet, PATIENCE, &mut joiners)?, "frames do not end");
    let cost = node.cost()?.since(before);
    figures.insert("cpu_us_per_connect", us_each(cost.cpu, options.joins));
    figures.insert(
        "status_frames_per_client",
        joiners.status_frames as f64 / options.joins as f64,
    );
    figures.insert(
        "status_bytes_per_client",
        joiners.status_bytes as f64 / options.joins as f64,
    );
    if let Some(redis) = cost.redis {
        figures.insert("redis_reads", redis.reads as f64);
        figures.insert("redis_commands", redis.commands as f64);
        figures.insert("redis_cpu_us_per_connect", us_each(redis.cpu, options.joins));
    }
    if arm == Arm::Floor {
        return Ok(figures);
    }
    let before = node.cost()?;
    crowd.drop_all();
    let started = Instant::now();
    while node.connections()? > 0 {
        ensure!(started.elapsed() < PATIENCE, "clients do not end");
        std::thread::sleep(TURN);
    }
    std::thread::sleep(quiet);
    let cost = node.cost()?.since(before);
    figures.insert("cpu_us_per_leave", us_each(cost.cpu, options.joins));
    if let Some(redis) = cost.redis {
        figures.insert("redis_reads_leaving", redis.reads as f64);
    }
    Ok(figures)
}

/// Joins in the time between two flushes only: the CPU of joins alone.
fn in_waves(
    options: &Options,
    node: &Node,
    visits: &[Visit],
    crowd: &mut Crowd,
    joiners: &mut Joiners,
) -> Result<Duration> {
    let (mut opened, mut total) = (0, Duration::ZERO);
    while opened < visits.len() {
        let (before, started) = (node.cost()?, Instant::now());
        while opened > joiners.greeted || (opened < visits.len() && started.elapsed() < WAVE) {
            while opened < visits.len()
                && opened - joiners.greeted < options.common.in_flight
                && started.elapsed() < WAVE
            {
                let (path, token) = &visits[opened];
                crowd.open_with(node.addr, path, token.as_deref())?;
                opened += 1;
            }
            crowd.turn(TURN, joiners)?;
        }
        total += node.cost()?.since(before).cpu;
        let took = started.elapsed();
        ensure!(
            took < WAVE_END,
            "a wave of joins took {took:?}: this machine is too busy to measure"
        );
        ensure!(
            crowd.settle(NO_FLUSH + WAVE, PATIENCE, joiners)?,
            "frames do not end"
        );
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_arm_of_the_server_is_measured_with_all_tokens_and_both_binaries() {
        let common = Common {
            programs: Programs {
                server: "first".into(),
                floor: None,
                env: Vec::new(),
                floor_set: Vec::new(),
            },
            rounds: 1,
            in_flight: 1,
        };
        let options = Options {
            common,
            joins: 1,
            sessions: 1,
            flush: 10,
            arms: None,
            tokens: vec![Signature::Off, Signature::Es256],
            other_server: Some("second".into()),
        };
        let all = Contestant::all(&options, &[Arm::Floor, Arm::None]);
        let seen: Vec<_> = all
            .iter()
            .map(|one| {
                (
                    one.name.as_str(),
                    one.tokens,
                    one.programs.server.to_string_lossy(),
                )
            })
            .collect();
        let expected = [
            ("floor", Signature::Off, "first"),
            ("none", Signature::Off, "first"),
            ("none, other", Signature::Off, "second"),
            ("none, es256", Signature::Es256, "first"),
            ("none, es256, other", Signature::Es256, "second"),
        ];
        assert_eq!(
            seen,
            expected.map(|(name, tokens, server)| (name, tokens, server.into()))
        );
    }
}
