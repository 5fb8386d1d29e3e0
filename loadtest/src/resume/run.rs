//! One round: greetings of one node; on another one connects, sends, and then the storm of those who come back.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::others::{self, Others};
use super::visitors::{Shape, Visitors};
use super::{Options, Source};
use crate::crowd::Crowd;
use crate::kafka::{Form, PARTITIONS, Producer, Topics};
use crate::message::marker::Marker;
use crate::message::publisher::{Pace, Publisher, SENDER, Schedule, Sink};
use crate::message::workload::{NATIVE, PAYLOAD, padded};
use crate::node::{Node, Programs, brokers};
use crate::process::{free_port, get};
use crate::report::Figures;
use crate::template::Values;

const TURN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);
/// After this long, those who have not got everything are given up.
const STORM_PATIENCE: Duration = Duration::from_secs(30);
/// PRESENCE_GRACE is 2 s: then those who have left are gone, and a connect is a join again.
const GONE: Duration = Duration::from_secs(3);
/// A batch of 20 frames has as many heads, of this length.
const HEAD: usize = 4;
/// How many sends are measured, for each client that comes back.
const SENDS: usize = 4;

/// The second node and what is connected to it.
struct Scene<'a> {
    options: &'a Options,
    shape: Shape,
    node: Node,
    admin: SocketAddr,
    records: Producer,
    others: Others,
    publisher: Publisher,
    crowd: Crowd,
    signals: u64,
    /// When clients connected without `since`, while that was measured.
    connects: Vec<Range<Instant>>,
}

/// CPU time of the node in some time.
#[derive(Clone, Copy)]
struct Window {
    cpu: Duration,
    took: Duration,
    started: Instant,
}

impl Window {
    /// What is above the traffic's CPU time, which is measured before and after.
    fn above(self, before: Self, after: Self) -> f64 {
        let rate = (before.cpu + after.cpu).as_secs_f64() / (before.took + after.took).as_secs_f64();
        self.cpu.as_secs_f64() - rate * self.took.as_secs_f64()
    }
}

pub fn measure(options: &Options, programs: &Programs, source: Source) -> Result<Figures> {
    let shape = Shape {
        clients: options.clients(source),
        sessions: options.sessions(source),
        messages: options.messages,
    };
    let topics = Topics::create(&brokers()?)?;
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut settings = vec![
        ("NODE_ID", "loadtest-2".to_owned()),
        ("ADMIN_ADDR", admin.to_string()),
    ];
    if source == Source::Log {
        settings.push(("RECENT_LOG_BYTES", "0".into()));
    }
    let node = Node::start_on(programs, &topics, &settings)?;
    let cursors = cursors(options, programs, &topics, shape)?;

    let others = Others::start(node.addr, options.others, options.other_sessions)?;
    let sessions: Vec<_> = (0..options.other_sessions).map(others::session).collect();
    let schedule = Schedule::new(
        Pace::Rate(options.rate),
        sessions,
        padded(NATIVE, PAYLOAD)?,
        others.epoch,
    );
    let traffic = Producer::new(&brokers()?, &topics.messages, Form::Native)?;
    let mut scene = Scene {
        options,
        shape,
        admin,
        records: Producer::new(&brokers()?, &topics.messages, Form::Native)?,
        publisher: Publisher::start(schedule, Sink::Kafka(traffic)),
        others,
        node,
        crowd: Crowd::new()?,
        signals: 0,
        connects: Vec::new(),
    };
    let started = Instant::now();
    let mut figures = Figures::new();
    // Once unmeasured: whatever is done only the first time counts for neither.
    scene.visit()?;
    scene.connects.clear();
    scene.leave()?;
    let first = scene.connect()?;
    let send = scene.send()?;
    scene.write_missed()?;
    let storm = scene.storm(&cursors, &mut figures)?;
    scene.leave()?;
    // Before and after, in case the node becomes faster or slower.
    let connect = (first + scene.connect()?) / 2.0;
    figures.insert("cpu_us_per_connect", connect);
    figures.insert("cpu_us_per_send", send);
    figures.insert("cpu_us_reference", connect + send);
    figures.insert("cpu_ratio", figures["cpu_us_per_resume"] / (connect + send));

    let sent = scene
        .publisher
        .finish_while(|| scene.crowd.turn(TURN, &mut Visitors::new(shape)))?;
    let due = options.rate * started.elapsed().as_secs_f64();
    figures.insert(
        "sent_percent",
        (sent.iter().sum::<u64>() as f64 / due * 100.0).min(100.0),
    );
    let heard = scene.others.finish(&sent)?;
    let times = [
        (
            vec![storm.before],
            ["p50_before_ms", "p99_before_ms", "max_before_ms"],
        ),
        (vec![storm.during], ["p50_ms", "p99_ms", "max_ms"]),
        (
            scene.connects,
            ["p50_connects_ms", "p99_connects_ms", "max_connects_ms"],
        ),
    ];
    for (during, names) in times {
        figures.extend(
            names
                .into_iter()
                .zip(heard.latency_ms(&during, [0.5, 0.99, 1.0])?),
        );
    }
    figures.insert("p99_ratio", figures["p99_ms"] / figures["p99_before_ms"]);
    figures.insert("lost", (storm.missing + heard.sequences.lost) as f64);
    figures.insert("doubled", (storm.doubled + heard.sequences.doubled) as f64);
    if source == Source::Log {
        ensure!(
            figures["from_log"] == shape.clients as f64,
            "only {} resumes were from the log",
            figures["from_log"]
        );
    }
    Ok(figures)
}

/// The clients' first visit, to a node that is gone before anything is measured.
fn cursors(options: &Options, programs: &Programs, topics: &Topics, shape: Shape) -> Result<Vec<String>> {
    let settings = [("NODE_ID", "loadtest-1".to_owned())];
    let node = Node::start_on(programs, topics, &settings)?;
    let (mut crowd, mut visitors) = (Crowd::new()?, Visitors::new(shape));
    visitors.connect(&mut crowd, node.addr, None, options.in_flight)?;
    visitors.cursors()
}

/// When the others' latency counts, and what those who came back have not got or got again.
struct Storm {
    before: Range<Instant>,
    during: Range<Instant>,
    missing: u64,
    doubled: u64,
}

impl Scene<'_> {
    /// CPU time, in microseconds, of a client that connects without `since`.
    fn connect(&mut self) -> Result<f64> {
        let before = self.calm()?;
        let connects = self.window(Self::visit)?;
        self.leave()?;
        let after = self.calm()?;
        Ok(connects.above(before, after) * 1e6 / self.shape.clients as f64)
    }

    /// CPU time, in microseconds, of one send of as many bytes as a client has missed.
    fn send(&mut self) -> Result<f64> {
        let before = self.calm()?;
        let mut sends = 0;
        let sending = self.window(|scene| {
            sends = scene.send_whole()?;
            Ok(())
        })?;
        let after = self.calm()?;
        Ok(sending.above(before, after) * 1e6 / sends as f64)
    }

    fn visit(&mut self) -> Result<()> {
        let started = Instant::now();
        let mut visitors = Visitors::new(self.shape);
        visitors.connect(&mut self.crowd, self.node.addr, None, self.options.in_flight)?;
        self.connects.push(started..Instant::now());
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        self.crowd.drop_all();
        let started = Instant::now();
        while self.node.connections()? > self.options.others as u64 {
            ensure!(started.elapsed() < PATIENCE, "clients do not end");
            thread::sleep(TURN);
        }
        thread::sleep(GONE);
        Ok(())
    }

    /// One message to all others that is as long as all that a client has missed, again and again: each is delivered
    /// before the next one is written, so that each is a send of its own.
    fn send_whole(&mut self) -> Result<usize> {
        let length = self.shape.messages as usize * (PAYLOAD + HEAD) - HEAD;
        let payload = signal(length);
        let rounds = (SENDS * self.shape.clients).div_ceil(self.options.others);
        for _ in 0..rounds {
            for session in 0..self.options.other_sessions {
                self.records.send(&others::session(session), session, &payload)?;
            }
            self.signals += self.options.others as u64;
            self.others.wait_for_signals(self.signals)?;
        }
        Ok(rounds * self.options.others)
    }

    /// Writes what is missed, and waits until the node has read it.
    fn write_missed(&mut self) -> Result<()> {
        let template = padded(NATIVE, PAYLOAD)?;
        let mut payload = Vec::new();
        for number in 0..self.shape.messages {
            for session in 0..self.shape.sessions {
                let name = Shape::session(session);
                let number = session as u64 * self.shape.messages + number;
                payload.clear();
                template.render(
                    &mut payload,
                    Values {
                        session: &name,
                        user: SENDER,
                        number,
                        marker: &Marker { number, intended: 0 }.bytes(),
                    },
                );
                self.records.send(&name, session, &payload)?;
            }
        }
        self.records.flush()?;
        // A record in each partition, after all of them.
        self.records.send_everywhere(&others::session(0), &signal(0))?;
        let listeners = self.options.others.div_ceil(self.options.other_sessions);
        self.signals += PARTITIONS as u64 * listeners as u64;
        self.others.wait_for_signals(self.signals)
    }

    fn storm(&mut self, cursors: &[String], figures: &mut Figures) -> Result<Storm> {
        let rss_before = self.node.process.rss()?;
        let before = self.calm()?;
        let mut visitors = Visitors::new(self.shape);
        let (mut last_connect, mut took) = (None, Duration::ZERO);
        let window = self.window(|scene| {
            let (crowd, addr) = (&mut scene.crowd, scene.node.addr);
            let last = visitors.connect(crowd, addr, Some(cursors), scene.options.in_flight)?;
            last_connect = Some(last);
            while visitors.answered < scene.shape.clients && last.elapsed() < STORM_PATIENCE {
                crowd.turn(TURN, &mut visitors)?;
            }
            took = last.elapsed();
            Ok(())
        })?;
        // What comes twice may come late.
        let after = self.window(|scene| {
            let end = Instant::now() + scene.length();
            while Instant::now() < end {
                scene.crowd.turn(TURN, &mut visitors)?;
            }
            Ok(())
        })?;
        ensure!(
            visitors.whole == self.shape.clients && visitors.complaint.is_none(),
            "{} of {} clients are whole, {} were answered within {:.1} s; {} messages are missing, {} were doubled; {}",
            visitors.whole,
            self.shape.clients,
            visitors.answered,
            took.as_secs_f64(),
            visitors.missing(),
            visitors.doubled,
            visitors.complaint.unwrap_or_default()
        );
        let (last_connect, last_whole) = last_connect
            .zip(visitors.last_whole)
            .context("nobody came back")?;
        let us = window.above(before, after) * 1e6 / self.shape.clients as f64;
        let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
        figures.extend([
            ("cpu_us_per_resume", us),
            ("whole", visitors.whole as f64),
            ("whole_s", (last_whole - last_connect).as_secs_f64()),
            ("storm_s", (last_whole - window.started).as_secs_f64()),
            ("rss_before_mib", mib(rss_before)),
            ("rss_mib", mib(self.node.process.rss()?)),
            ("rss_peak_mib", mib(self.node.process.peak_rss()?)),
        ]);
        let metrics = get(self.admin, "/metrics")?.1;
        let recovered = |source| {
            counter(
                &metrics,
                "livechat_resumes_total{",
                &["outcome=\"recovered\"", source],
            )
        };
        figures.extend([
            ("from_memory", recovered("source=\"memory\"")?),
            ("from_log", recovered("source=\"log\"")?),
            (
                "passes",
                counter(&metrics, "livechat_log_read_seconds_count", &[])?,
            ),
        ]);
        Ok(Storm {
            before: before.started..before.started + before.took,
            during: window.started..last_whole,
            missing: visitors.missing(),
            doubled: visitors.doubled,
        })
    }

    fn length(&self) -> Duration {
        Duration::from_secs_f64(self.options.seconds)
    }

    /// The traffic of the others alone.
    fn calm(&mut self) -> Result<Window> {
        self.window(|_| Ok(()))
    }

    /// Measures some work, with what follows from it.
    fn window(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<Window> {
        let (started, before) = (Instant::now(), self.node.process.cpu()?);
        work(self)?;
        thread::sleep(self.length().saturating_sub(started.elapsed()));
        ensure!(!self.others.have_failed(), "the others were disconnected");
        ensure!(!self.publisher.has_failed(), "the publisher has failed");
        Ok(Window {
            cpu: self.node.process.cpu()? - before,
            took: started.elapsed(),
            started,
        })
    }
}

/// A record that the others count, of about this length.
fn signal(length: usize) -> Vec<u8> {
    let padding = ".".repeat(length.saturating_sub(others::SIGNAL.len() + ",\"p\":\"\"}".len()));
    [others::SIGNAL, format!(",\"p\":\"{padding}\"}}").as_bytes()].concat()
}

/// A counter of the metrics page, by the start of its line and its labels.
fn counter(page: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let line = page
        .lines()
        .find(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
        .with_context(|| format!("no {name} among the metrics"))?;
    let value = line.rsplit(' ').next().and_then(|value| value.parse().ok());
    value.with_context(|| format!("not a counter: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_traffic_is_taken_off_at_its_rate() {
        let started = Instant::now();
        let window = |cpu, took| Window {
            cpu: Duration::from_millis(cpu),
            took: Duration::from_millis(took),
            started,
        };
        let above = window(900, 4_000).above(window(100, 1_000), window(200, 1_000));
        assert!((above - 0.3).abs() < 1e-9, "{above}");
    }

    #[test]
    fn a_signal_is_json_of_the_right_length() {
        for length in [0, 5_676] {
            let signal = signal(length);
            assert!(signal.starts_with(others::SIGNAL));
            let json: serde_json::Value = serde_json::from_slice(&signal).unwrap();
            assert_eq!(json["type"], "signal");
            assert!(length == 0 || signal.len() == length);
        }
    }

    #[test]
    fn counters_are_found_by_their_labels() {
        let page = "# TYPE a counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"2\",y=\"2\"} 4\n";
        assert_eq!(counter(page, "a_total{", &["y=\"2\"", "x=\"2\""]).unwrap(), 4.0);
        assert!(counter(page, "b_total", &[]).is_err());
    }
}
