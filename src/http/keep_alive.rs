//! How long a connection may stay plain HTTP. The time depends on what it is waiting for; when descriptors run out, the
//! address with the most connections loses one ([`places`](super::places)).

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::headers::has_token;
use super::places::{Evicted, Kind, Place, Places};

/// How long a head may take: the first one from when the connection was accepted, later ones from their first byte.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a response may make no progress: a peer that doesn't read would keep its place for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer a connection is kept than announced, so that a request sent at the last moment still arrives.
const LATE: Duration = Duration::from_millis(1_500);
/// Announces how long a connection is kept. The header is old, but clients with connection pools read it.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// How many connections of the public listeners may be idle at once: each holds some 20 KiB of hyper's buffers. Beyond
/// that, the address with the most connections loses one.
const MOST_IDLE: usize = 2_048;

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first byte of its first request.
    Fresh,
    /// The rest of a head.
    Head,
    /// A response, or its reader.
    Answer,
    /// Its next request.
    Idle,
}

impl Phase {
    fn kind(self) -> Kind {
        match self {
            Self::Fresh | Self::Head => Kind::Head,
            Self::Answer => Kind::Answer,
            Self::Idle => Kind::Idle,
        }
    }
}

/// The timeouts of one connection.
pub struct Pace {
    pool: Arc<Pool>,
    /// The address it counts for.
    address: IpAddr,
    /// Wakes its task.
    waker: Waker,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    since: Instant,
    place: Place,
}

impl Pace {
    /// The waker is called when the connection has to close for another.
    pub fn new(pool: &Arc<Pool>, address: IpAddr, began: Instant, waker: Waker) -> Self {
        let phase = Phase::Fresh;
        let place = pool.places.lock().enter(address, phase.kind(), waker.clone());
        Self {
            pool: Arc::clone(pool),
            address,
            waker,
            state: Mutex::new(State {
                phase,
                since: began,
                place,
            }),
        }
    }

    /// When the connection times out; `None`: it must close now, because its descriptor is needed.
    pub fn deadline(&self) -> Option<Instant> {
        let state = self.state.lock();
        let patience = match state.phase {
            Phase::Fresh | Phase::Head => HEAD_TIMEOUT,
            Phase::Answer => ANSWER_TIMEOUT,
            Phase::Idle => self.pool.kept,
        };
        let has_place = self.pool.places.lock().has(self.address, state.place);
        has_place.then_some(state.since + patience)
    }

    /// Waits until the connection has to close for another.
    pub async fn evicted(&self) {
        poll_fn(|_| match self.deadline() {
            Some(_) => Poll::Pending,
            None => Poll::Ready(()),
        })
        .await;
    }

    /// Whether every request so far is answered: then the connection may be closed.
    pub fn is_between_requests(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Fresh | Phase::Idle)
    }

    /// A head has begun, and is not complete.
    pub fn head_begun(&self) {
        let mut state = self.state.lock();
        match state.phase {
            // The first head's timeout and place date from when the connection was accepted.
            Phase::Fresh => state.phase = Phase::Head,
            Phase::Idle => self.begin(&mut state, Phase::Head),
            Phase::Head | Phase::Answer => {}
        }
    }

    /// A head is complete, or a response makes progress.
    pub fn answering(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Answer {
            state.since = Instant::now();
        } else {
            self.begin(&mut state, Phase::Answer);
        }
    }

    /// Every request is answered; the next head may have begun.
    pub fn answered(&self, next_has_begun: bool) {
        let mut state = self.state.lock();
        if state.phase == Phase::Answer {
            let next = if next_has_begun { Phase::Head } else { Phase::Idle };
            self.begin(&mut state, next);
        }
    }

    /// Enters a phase. A connection that was to close stays open for a request that arrived meanwhile.
    fn begin(&self, state: &mut State, phase: Phase) {
        (state.phase, state.since) = (phase, Instant::now());
        let mut places = self.pool.places.lock();
        places.leave(self.address, state.place);
        state.place = places.enter(self.address, phase.kind(), self.waker.clone());
        if phase == Phase::Idle && places.idle() > MOST_IDLE {
            let one_too_many = places.evict(Kind::Idle);
            drop(places);
            wake(one_too_many);
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        let place = self.state.get_mut().place;
        self.pool.places.lock().leave(self.address, place);
    }
}

/// The connections of one kind of listener.
pub struct Pool {
    /// `HTTP_KEEP_ALIVE`, and how long an idle connection is really kept.
    keep_alive: Duration,
    kept: Duration,
    /// `Keep-Alive: timeout=…`; `None` if that is less than a second.
    announced: Option<HeaderValue>,
    places: Mutex<Places>,
}

impl Pool {
    pub fn new(keep_alive: Duration) -> Self {
        let seconds = Some(keep_alive.as_secs()).filter(|&seconds| seconds > 0);
        Self {
            keep_alive,
            kept: keep_alive + LATE,
            announced: seconds.and_then(|seconds| format!("timeout={seconds}").parse().ok()),
            places: Mutex::default(),
        }
    }

    /// Sets the headers that say how long the connection waits for the next request, or that it closes; returns whether
    /// it is kept.
    pub fn announce(&self, keeps: bool, answer: &mut HeaderMap) -> bool {
        let is_kept = keeps && !self.keep_alive.is_zero();
        if !is_kept {
            if !has_token(answer, &CONNECTION, "close") {
                answer.append(CONNECTION, HeaderValue::from_static("close"));
            }
        } else if let Some(timeout) = &self.announced
            && !answer.contains_key(CONNECTION)
        {
            answer.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
            answer.insert(KEEP_ALIVE, timeout.clone());
        }
        is_kept
    }

    /// How many connections there are.
    pub fn count(&self) -> usize {
        self.places.lock().count()
    }

    /// Closes a connection of the address that has the most; `None` if none can be closed.
    pub fn evict(&self) -> Option<Evicted> {
        let evicted = self.places.lock().evict(Kind::Answer);
        wake(evicted)
    }
}

/// Call it outside the lock: the woken task takes it to look up its place.
fn wake(evicted: Option<(Evicted, Waker)>) -> Option<Evicted> {
    let (evicted, waker) = evicted?;
    waker.wake();
    Some(evicted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP_ALIVE: Duration = Duration::from_secs(75);

    fn after(pace: &Pace) -> Duration {
        pace.deadline().expect("not evicted") - Instant::now()
    }

    fn idle(pace: &Pace) {
        pace.answering();
        pace.answered(false);
    }

    fn new(pool: &Arc<Pool>) -> Pace {
        Pace::new(
            pool,
            IpAddr::from([192, 0, 2, 1]),
            Instant::now(),
            Waker::noop().clone(),
        )
    }

    #[test]
    fn a_response_says_once_that_the_connection_closes() {
        let pool = Pool::new(KEEP_ALIVE);
        let announced = |keeps, own: Option<&'static str>| {
            let mut answer = HeaderMap::new();
            answer.extend(own.map(|own| (CONNECTION, HeaderValue::from_static(own))));
            pool.announce(keeps, &mut answer);
            let values = answer.get_all(CONNECTION).iter();
            values
                .map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(announced(true, None), ["keep-alive"]);
        assert_eq!(announced(false, None), ["close"]);
        assert_eq!(announced(false, Some("close")), ["close"]);
        assert_eq!(announced(false, Some("Upgrade")), ["Upgrade", "close"]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_time() {
        let pool = Arc::new(Pool::new(KEEP_ALIVE));
        let pace = new(&pool);
        tokio::time::advance(Duration::from_secs(4)).await;
        pace.head_begun();
        assert_eq!(
            after(&pace),
            Duration::from_secs(6),
            "the first head's time began earlier"
        );
        assert!(!pace.is_between_requests());
        pace.answering();
        assert_eq!(after(&pace), ANSWER_TIMEOUT);
        pace.answered(false);
        assert_eq!(after(&pace), KEEP_ALIVE + LATE, "longer than announced");
        assert!(pace.is_between_requests());
        tokio::time::advance(Duration::from_secs(70)).await;
        pace.head_begun();
        assert_eq!(
            after(&pace),
            HEAD_TIMEOUT,
            "after any pause a head has its full time"
        );
        tokio::time::advance(Duration::from_secs(3)).await;
        pace.head_begun();
        assert_eq!(
            after(&pace),
            Duration::from_secs(7),
            "another byte does not extend it"
        );
        pace.answering();
        pace.answered(true);
        assert_eq!(after(&pace), HEAD_TIMEOUT);
        drop(pace);
        assert!(pool.places.lock().is_empty());
    }

    #[tokio::test]
    async fn the_longest_idle_is_evicted() {
        let pool = Arc::new(Pool::new(KEEP_ALIVE));
        assert!(pool.evict().is_none(), "there is none");
        let mut paces: Vec<_> = (0..3).map(|_| new(&pool)).collect();
        paces.iter().for_each(idle);
        // The first sends another request and is now the most recent; the third closes by itself.
        idle(&paces[0]);
        paces.pop();
        let evicted = |pace: &Pace| pace.deadline().is_none();
        assert!(pool.evict().is_some() && evicted(&paces[1]) && !evicted(&paces[0]));
        assert!(pool.evict().is_some() && evicted(&paces[0]));
        assert!(pool.evict().is_none());
        // A request that arrives at that moment is answered.
        idle(&paces[1]);
        assert!(!evicted(&paces[1]));
        // Connections without a request yet are evicted once none is idle.
        let fresh = new(&pool);
        fresh.head_begun();
        assert!(pool.evict().is_some() && evicted(&paces[1]));
        assert!(pool.evict().is_some() && evicted(&fresh));
        fresh.answering();
        assert!(!evicted(&fresh), "its head was complete by then");
        drop(fresh);
        drop(paces);
        assert!(pool.places.lock().is_empty());
    }

    #[tokio::test]
    async fn idle_connections_are_limited() {
        let pool = Arc::new(Pool::new(KEEP_ALIVE));
        let paces: Vec<_> = (0..=MOST_IDLE).map(|_| new(&pool)).collect();
        paces.iter().for_each(idle);
        assert_eq!(paces[0].deadline(), None);
        assert_eq!(pool.places.lock().idle(), MOST_IDLE);
    }
}
