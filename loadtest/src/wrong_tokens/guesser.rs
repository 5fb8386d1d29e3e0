//! Sends handshakes with forged tokens at a rate, as a proxy passes them on, and counts the refusals.

use std::io::{BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use hdrhistogram::Histogram;

use crate::message::http::read_response;
use crate::message::run::Shape;
use crate::report::Figures;
use crate::tokens::forged;
use crate::ws;

/// Each has a connection, and waits for its answer before it sends again.
const THREADS: u32 = 4;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// So that the end is noticed, whatever the rate.
const NAP: Duration = Duration::from_millis(20);
const LONGEST_US: u64 = 60_000_000;
/// AUTH_FAILURES_PER_MINUTE, by default.
const FAILURES_PER_MINUTE: u64 = 30;

/// The addresses in X-Forwarded-For.
#[derive(Clone, Copy, Debug)]
pub enum From {
    Few(u32),
    /// Each time another one.
    Many,
}

#[derive(Clone, Copy)]
pub struct Plan {
    pub addr: SocketAddr,
    /// A second.
    pub rate: f64,
    pub from: From,
    /// Whether there is a token at all.
    pub is_forged: bool,
    /// Whether a connection is kept for the next request.
    pub is_kept: bool,
}

pub struct Guesser {
    threads: Vec<JoinHandle<Result<Refused>>>,
    stop: Arc<AtomicBool>,
    started: Instant,
}

/// How the tokens were refused.
pub struct Refused {
    unauthorized: u64,
    too_many: u64,
    took: Duration,
    latency_us: Histogram<u64>,
}

impl From {
    /// The address of a guess, by its number.
    fn address(self, number: u32) -> Ipv4Addr {
        let host = match self {
            Self::Few(addresses) => number % addresses,
            Self::Many => number % (1 << 24),
        };
        Ipv4Addr::from_bits((10 << 24) | host)
    }
}

impl Guesser {
    pub fn start(plan: Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let started = Instant::now();
        let threads = (0..THREADS)
            .map(|first| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || guess(plan, first, started, &stop))
            })
            .collect();
        Self {
            threads,
            stop,
            started,
        }
    }

    pub fn finish(mut self) -> Result<Refused> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Refused::new()?;
        for thread in std::mem::take(&mut self.threads) {
            let refused = thread.join().map_err(|_| anyhow!("a guesser panicked"))??;
            all.unauthorized += refused.unauthorized;
            all.too_many += refused.too_many;
            all.latency_us.add(&refused.latency_us)?;
        }
        all.took = self.started.elapsed();
        Ok(all)
    }
}

impl Drop for Guesser {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Sends each [`THREADS`]th one.
fn guess(plan: Plan, first: u32, started: Instant, stop: &AtomicBool) -> Result<Refused> {
    let mut refused = Refused::new()?;
    let mut random = fastrand::Rng::with_seed(first.into());
    let host = plan.addr.to_string();
    let session = Shape::session(0);
    let mut kept = None;
    for number in (first..).step_by(THREADS as usize) {
        let due = started + Duration::from_secs_f64(f64::from(number) / plan.rate);
        while !stop.load(Ordering::Relaxed) && Instant::now() < due {
            thread::sleep(NAP.min(due.saturating_duration_since(Instant::now())));
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let address = plan.from.address(number).to_string();
        let bearer = format!("Bearer {}", forged(&session, "u0", "customer", &mut random));
        let headers = [("X-Forwarded-For", address.as_str()), ("Authorization", &bearer)];
        let headers = if plan.is_forged {
            &headers[..]
        } else {
            &headers[..1]
        };
        let request = ws::handshake_with(&host, &format!("/ws/{session}/u0/customer"), headers);
        let sent = Instant::now();
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => connect(plan.addr)?,
        };
        connection.get_mut().write_all(&request)?;
        let (status, body) = read_response(&mut connection)?;
        match status {
            401 => refused.unauthorized += 1,
            429 => refused.too_many += 1,
            other => bail!("a handshake that should be refused is answered by {other}: {body}"),
        }
        refused
            .latency_us
            .saturating_record(sent.elapsed().as_micros() as u64);
        kept = plan.is_kept.then_some(connection);
    }
    Ok(refused)
}

fn connect(addr: SocketAddr) -> Result<BufReader<TcpStream>> {
    let socket = TcpStream::connect(addr)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(socket))
}

impl Refused {
    fn new() -> Result<Self> {
        Ok(Self {
            unauthorized: 0,
            too_many: 0,
            took: Duration::ZERO,
            latency_us: Histogram::new_with_max(LONGEST_US, 3)?,
        })
    }

    fn all(&self) -> u64 {
        self.unauthorized + self.too_many
    }

    /// Whether the limit for each address held: otherwise something else was measured.
    pub fn check(&self, from: From) -> Result<()> {
        ensure!(self.all() > 0, "no wrong token was sent");
        match from {
            From::Many => ensure!(
                self.too_many == 0,
                "{} of {} were answered by 429",
                self.too_many,
                self.all()
            ),
            From::Few(addresses) => {
                // Each begins a minute with its first failure.
                let minutes = self.took.as_secs() / 60 + 1;
                let most = u64::from(addresses) * FAILURES_PER_MINUTE * minutes;
                ensure!(
                    self.unauthorized <= most,
                    "{} of {} were answered by 401: more than {most}",
                    self.unauthorized,
                    self.all()
                );
            }
        }
        Ok(())
    }

    pub fn figures(&self) -> Figures {
        let percent = |count: u64| count as f64 * 100.0 / self.all() as f64;
        let ms = |quantile| self.latency_us.value_at_quantile(quantile) as f64 / 1e3;
        Figures::from([
            ("wrong_per_s", self.all() as f64 / self.took.as_secs_f64()),
            ("unauthorized_percent", percent(self.unauthorized)),
            ("too_many_percent", percent(self.too_many)),
            ("refusal_p50_ms", ms(0.5)),
            ("refusal_p99_ms", ms(0.99)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_few_or_always_another() {
        let few: std::collections::BTreeSet<_> = (0..1000).map(|n| From::Few(4).address(n)).collect();
        assert_eq!(few.len(), 4);
        let many: std::collections::BTreeSet<_> = (0..1000).map(|n| From::Many.address(n)).collect();
        assert_eq!(many.len(), 1000);
        assert_eq!(From::Many.address(257), Ipv4Addr::new(10, 0, 1, 1));
    }

    #[test]
    fn what_was_not_limited_is_no_measurement_of_few() {
        let refused = |unauthorized, too_many| Refused {
            unauthorized,
            too_many,
            took: Duration::from_secs(10),
            ..Refused::new().unwrap()
        };
        refused(120, 9_000).check(From::Few(4)).unwrap();
        refused(121, 9_000).check(From::Few(4)).unwrap_err();
        refused(9_000, 0).check(From::Many).unwrap();
        refused(9_000, 1).check(From::Many).unwrap_err();
        refused(0, 0).check(From::Many).unwrap_err();
        assert_eq!(refused(300, 700).figures()["too_many_percent"], 70.0);
    }
}
