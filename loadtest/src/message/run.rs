//! One round: connect, warm up, measure, and wait for all messages.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::publisher::{Pace, Publisher, Schedule, Sink};
use super::readers::Readers;
use super::slow::{self, SlowReader};
use crate::crowd::Crowd;
use crate::process;
use crate::report::Figures;
use crate::template::{Template, Values};
use crate::tokens::Issuer;

const TURN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);
/// After this long without any message, the missing ones count as lost.
const QUIET: Duration = Duration::from_secs(3);
/// The time between greeting and first message, for status frames to arrive.
const SETTLE: Duration = Duration::from_millis(500);

/// Who connects where, and for how long messages flow.
pub struct Shape {
    pub sockets: usize,
    pub sessions: usize,
    pub pace: Pace,
    pub warmup: Duration,
    pub steady: Duration,
    pub in_flight: usize,
    /// One more client in the first session, which reads too slowly.
    pub has_slow_reader: bool,
}

/// The server that the clients connect to.
pub struct Target {
    pub addr: SocketAddr,
    /// The process whose time counts; none for a server elsewhere.
    pub pid: Option<u32>,
    pub path: Template,
    /// Signs a token for each client, a customer, if the server asks for tokens.
    pub issuer: Option<Issuer>,
    /// Frames that a client sends once connected, for servers that need them.
    pub hello: Vec<Template>,
}

/// How messages get there.
pub enum Publish {
    /// From a thread of their own.
    By(Sink),
    /// As a frame of the first client of each session.
    BySocket,
}

impl Shape {
    pub fn session(number: usize) -> String {
        format!("s{number}")
    }
}

/// Connects, publishes and measures. Everything should arrive exactly once; otherwise the deviations are counted.
pub fn measure(shape: &Shape, target: &Target, publish: Publish, message: &Template) -> Result<Figures> {
    ensure!(
        (1..=shape.sockets).contains(&shape.sessions),
        "each session needs a socket"
    );
    let mut crowd = Crowd::new()?;
    let mut readers = Readers::new((0..shape.sockets).map(|id| id % shape.sessions).collect())?;
    connect(shape, target, &mut crowd, &mut readers)?;
    let (slow, publish) = hinder(shape, target, publish, &mut crowd, &mut readers)?;
    let sessions = (0..shape.sessions).map(Shape::session).collect();
    let mut schedule = Schedule::new(shape.pace, sessions, message.clone(), readers.epoch);
    let (mut publisher, mut own) = match publish {
        Publish::By(sink) => (Some(Publisher::start(schedule, sink)), None),
        Publish::BySocket => {
            ensure!(
                matches!(shape.pace, Pace::Rate(_)),
                "messages from the clients' own sockets need a rate"
            );
            schedule.restart();
            (None, Some(schedule))
        }
    };

    let each = (shape.sockets / shape.sessions) as u64;
    let started = Instant::now();
    let begin = started + shape.warmup;
    let end = begin + shape.steady;
    // Without a clock a message is late by as much as there is under way: no figure of the server's.
    if matches!(shape.pace, Pace::Rate(_)) {
        let from = (begin - readers.epoch).as_nanos() as u64;
        readers.measured = from..from + shape.steady.as_nanos() as u64;
    }
    let cpu = || target.pid.map(process::cpu_of).transpose();
    let mut turn = |crowd: &mut Crowd, readers: &mut Readers, until: Instant| -> Result<()> {
        while Instant::now() < until {
            let mut wait = TURN.min(until.saturating_duration_since(Instant::now()));
            if let Some(schedule) = &mut own {
                while schedule.due() <= Instant::now() {
                    let (session, _, frame) = schedule.take();
                    crowd.send(session, frame)?;
                }
                wait = wait.min(schedule.due().saturating_duration_since(Instant::now()));
            }
            crowd.turn(wait, readers)?;
            if let Some(publisher) = &publisher {
                publisher.note_done(readers.delivered / each);
                if publisher.has_failed() {
                    return Ok(());
                }
            }
        }
        Ok(())
    };
    turn(&mut crowd, &mut readers, begin)?;
    let before = (cpu()?, readers.delivered, Instant::now());
    turn(&mut crowd, &mut readers, end)?;
    let after = (cpu()?, readers.delivered, Instant::now());
    let rss = target.pid.map(process::rss_of).transpose()?;

    let sent = match publisher.take() {
        Some(publisher) => publisher.finish_while(|| crowd.turn(TURN, &mut readers))?,
        None => own.as_ref().map(Schedule::sent).unwrap_or_default(),
    };
    let draining = Instant::now();
    while readers.missing(&sent) > 0 && draining.elapsed() < PATIENCE {
        if crowd.settle(TURN, QUIET, &mut readers)? && readers.missing(&sent) > 0 {
            // A pause, or the end?
            if crowd.settle(QUIET, PATIENCE, &mut readers)? {
                break;
            }
        }
    }
    if let Some(slow) = slow {
        ensure!(
            slow.finish(),
            "the slow reader was sent away: nothing was slow for the others"
        );
    }
    let delivered = (after.1 - before.1) as f64;
    if delivered == 0.0 {
        bail!("no message arrived: {} were sent", sent.iter().sum::<u64>());
    }
    let mut figures = Figures::from([
        ("deliveries_per_s", delivered / (after.2 - before.2).as_secs_f64()),
        ("lost", (readers.sequences.lost + readers.missing(&sent)) as f64),
        ("doubled", readers.sequences.doubled as f64),
    ]);
    if let (Some(before), Some(after)) = (before.0, after.0) {
        figures.insert("cpu_us", (after - before).as_secs_f64() * 1e6 / delivered);
    }
    if let Pace::Rate(rate) = shape.pace {
        // A publisher that could not keep up has not sent all that was due: then latency is of the earlier ones.
        let due = rate * (shape.warmup + shape.steady).as_secs_f64();
        figures.insert(
            "sent_percent",
            (sent.iter().sum::<u64>() as f64 / due * 100.0).min(100.0),
        );
    }
    if !readers.latency_us.is_empty() {
        for (name, quantile) in [("p50_ms", 0.5), ("p99_ms", 0.99), ("max_ms", 1.0)] {
            figures.insert(name, readers.latency_ms(quantile));
        }
    }
    if let Some(rss) = rss {
        figures.insert("rss_mib", rss as f64 / 1024.0 / 1024.0);
    }
    Ok(figures)
}

/// Lets the slow reader fall behind, where there is one, before anything is measured.
fn hinder(
    shape: &Shape,
    target: &Target,
    publish: Publish,
    crowd: &mut Crowd,
    readers: &mut Readers,
) -> Result<(Option<SlowReader>, Publish)> {
    let Publish::By(mut sink) = publish else {
        return Ok((None, publish));
    };
    if !shape.has_slow_reader {
        return Ok((None, Publish::By(sink)));
    }
    let session = Shape::session(0);
    let values = Values {
        session: &session,
        user: "slow",
        ..Values::default()
    };
    let slow = SlowReader::start(target.addr, &target.path.text(values))?;
    let message = [b'.'; slow::FLOOD_MESSAGE];
    for _ in 0..slow::FLOOD {
        sink.send(&session, 0, &message)?;
        crowd.turn(Duration::ZERO, readers)?;
    }
    sink.finish()?;
    ensure!(crowd.settle(SETTLE, PATIENCE, readers)?, "the flood does not end");
    Ok((Some(slow), Publish::By(sink)))
}

fn connect(shape: &Shape, target: &Target, crowd: &mut Crowd, readers: &mut Readers) -> Result<()> {
    let started = Instant::now();
    let (mut opened, mut welcomed) = (0, 0);
    while readers.greeted < shape.sockets || welcomed < shape.sockets {
        ensure!(
            started.elapsed() < PATIENCE,
            "{} of {} clients are in",
            readers.greeted,
            shape.sockets
        );
        let name = |id: usize| (Shape::session(id % shape.sessions), format!("u{id}"));
        while opened < shape.sockets && opened - readers.greeted < shape.in_flight {
            let (session, user) = name(opened);
            let values = Values {
                session: &session,
                user: &user,
                ..Values::default()
            };
            let token = target.issuer.as_ref();
            let token = token.map(|issuer| issuer.token(&session, &user, "customer"));
            crowd.open_with(
                target.addr,
                &target.path.text(values),
                token.transpose()?.as_deref(),
            )?;
            opened += 1;
        }
        crowd.turn(TURN, readers)?;
        // Clients are greeted in any order: hellos go out when all up to there are in.
        while welcomed < opened && crowd.is_open(welcomed) {
            let (session, user) = name(welcomed);
            for hello in &target.hello {
                let values = Values {
                    session: &session,
                    user: &user,
                    number: welcomed as u64 + 1,
                    ..Values::default()
                };
                crowd.send(welcomed, hello.text(values).as_bytes())?;
            }
            welcomed += 1;
        }
    }
    ensure!(
        crowd.settle(SETTLE, PATIENCE, readers)?,
        "frames do not end before the first message"
    );
    Ok(())
}
