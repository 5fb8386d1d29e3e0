//! Steady joins and leaves in sessions with a watcher: their cost, and when the watcher learns of them.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;

use super::{Arm, Common, STATUS_FRAME, start, us_each};
use crate::crowd::{Crowd, Id, Watcher};
use crate::report::Figures;

const PATIENCE: Duration = Duration::from_secs(30);
/// The range of a histogram.
const LONGEST_US: u64 = 60_000_000;
/// How long a guest stays.
const STAY: Duration = Duration::from_millis(500);

#[derive(Args, Clone)]
pub struct Options {
    /// Sessions with steady joins and leaves, each with one client that stays and watches
    #[arg(long, default_value_t = 1_000)]
    pub watched: usize,
    /// Joins a second, with as many leaves
    #[arg(long, default_value_t = 200)]
    pub rate: u32,
    /// Seconds of it
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
}

struct Guest {
    session: usize,
    /// How the event names it in a status frame.
    event: String,
    /// When it was due to join, even if that was late: no coordinated omission.
    intended: Instant,
}

struct Stage {
    watchers: usize,
    greeted: usize,
    /// Guests whose join the watcher has not seen, by session.
    unheard: HashMap<usize, Vec<Guest>>,
    /// Guests by client, until they are greeted.
    unopened: HashMap<Id, Instant>,
    /// Who leaves next.
    stays: VecDeque<(Instant, Id)>,
    heard: usize,
    status_us: Histogram<u64>,
    connect_us: Histogram<u64>,
}

impl Watcher for Stage {
    fn frame(&mut self, id: Id, payload: &[u8], now: Instant) {
        if !payload.starts_with(STATUS_FRAME) {
            self.greeted += 1;
            if let Some(intended) = self.unopened.remove(&id) {
                self.connect_us
                    .saturating_record((now - intended).as_micros() as u64);
                self.stays.push_back((now + STAY, id));
            }
            return;
        }
        if id >= self.watchers {
            return;
        }
        let Some(guests) = self.unheard.get_mut(&id) else {
            return;
        };
        for guest in guests.extract_if(.., |guest| {
            memchr::memmem::find(payload, guest.event.as_bytes()).is_some()
        }) {
            debug_assert_eq!(guest.session, id);
            self.status_us
                .saturating_record((now - guest.intended).as_micros() as u64);
            self.heard += 1;
        }
    }
}

pub(super) fn measure(common: &Common, options: &Options, arm: Arm, window: Duration) -> Result<Figures> {
    let node = start(common, arm, window)?;
    let mut crowd = Crowd::new()?;
    let mut stage = Stage {
        watchers: options.watched,
        greeted: 0,
        unheard: HashMap::new(),
        unopened: HashMap::new(),
        stays: VecDeque::new(),
        heard: 0,
        status_us: Histogram::new_with_max(LONGEST_US, 3)?,
        connect_us: Histogram::new_with_max(LONGEST_US, 3)?,
    };
    for session in 0..options.watched {
        crowd.open(node.addr, &format!("/ws/s{session}/watcher/agent"))?;
        while session + 1 - stage.greeted >= common.in_flight {
            crowd.turn(Duration::from_millis(20), &mut stage)?;
        }
    }
    ensure!(
        crowd.settle(Duration::from_millis(300) + 3 * window, PATIENCE, &mut stage)?,
        "frames do not end"
    );
    ensure!(stage.greeted == options.watched, "not all watchers are in");

    let before = node.cost()?;
    let started = Instant::now();
    let arrivals = arrivals(options);
    let guests = arrivals.len();
    let mut next = 0;
    while stage.heard < guests || !stage.stays.is_empty() || !stage.unopened.is_empty() {
        ensure!(
            started.elapsed() < PATIENCE + Duration::from_secs(options.seconds),
            "{} of {guests} joins were heard of",
            stage.heard
        );
        let now = Instant::now();
        while next < guests && started + arrivals[next] <= now {
            let (session, intended) = (next % options.watched, started + arrivals[next]);
            let id = crowd.open(node.addr, &format!("/ws/s{session}/guest{next}/customer"))?;
            stage.unopened.insert(id, intended);
            // The type precedes the user in an event: this finds the join and not the leave.
            let event = format!("\"event_type\":\"user_connected\",\"event_user_id\":\"guest{next}\"");
            stage.unheard.entry(session).or_default().push(Guest {
                session,
                event,
                intended,
            });
            next += 1;
        }
        while let Some((_, id)) = stage.stays.pop_front_if(|(until, _)| *until <= now) {
            crowd.drop_client(id);
        }
        let due = arrivals.get(next).map(|at| started + *at);
        let due = due
            .into_iter()
            .chain(stage.stays.front().map(|(until, _)| *until))
            .min();
        let wait = due.map_or(Duration::from_millis(20), |due| {
            due.saturating_duration_since(Instant::now())
        });
        crowd.turn(wait, &mut stage)?;
    }
    // The last leaves.
    ensure!(
        crowd.settle(Duration::from_millis(300) + 3 * window, PATIENCE, &mut stage)?,
        "frames do not end"
    );
    let cost = node.cost()?.since(before);
    let mut figures = Figures::from([
        ("trickle_cpu_us", us_each(cost.cpu, guests)),
        (
            "connect_p50_ms",
            stage.connect_us.value_at_quantile(0.5) as f64 / 1e3,
        ),
        (
            "status_p50_ms",
            stage.status_us.value_at_quantile(0.5) as f64 / 1e3,
        ),
        (
            "status_p99_ms",
            stage.status_us.value_at_quantile(0.99) as f64 / 1e3,
        ),
    ]);
    if let Some(redis) = cost.redis {
        figures.insert("trickle_reads", redis.reads as f64);
        figures.insert("trickle_redis_cpu_us", us_each(redis.cpu, guests));
    }
    Ok(figures)
}

/// When guests come, from the start: at random, since regular comings would fall in or out of step with the windows.
/// The same in every run.
fn arrivals(options: &Options) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(1);
    let count = f64::from(options.rate) * options.seconds as f64;
    let mut times: Vec<_> = (0..count as usize)
        .map(|_| random.f64() * options.seconds as f64)
        .collect();
    times.sort_by(f64::total_cmp);
    times.into_iter().map(Duration::from_secs_f64).collect()
}
