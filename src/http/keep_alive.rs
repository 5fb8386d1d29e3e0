//! How long a connection may speak plain HTTP: what it waits for decides, and an idle one gives way when descriptors
//! run out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a head may take: the first from the connection's beginning, others from their first byte.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may make no progress: a peer that doesn't read would hold its place for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// What says how long a connection is kept; of old, but clients with pools read it.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// How many connections of the public listeners may be idle at once: each holds some 20 KiB of hyper's buffers. The
/// longest idle ends for the next.
const MOST_IDLE: usize = 2_048;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first byte of its first request.
    Fresh,
    /// The rest of a head.
    Head,
    /// An answer, or its reader.
    Answer,
    /// Its next request; the number is its place among the idle ones.
    Idle(u64),
}

/// One connection's clock.
pub struct Pace {
    idle: Arc<Idle>,
    state: Mutex<(Phase, Instant)>,
}

impl Pace {
    pub fn new(idle: &Arc<Idle>, began: Instant) -> Self {
        Self {
            idle: Arc::clone(idle),
            state: Mutex::new((Phase::Fresh, began)),
        }
    }

    /// When the connection ends unless something happens; `None`: now, for its descriptor is needed.
    pub fn deadline(&self) -> Option<Instant> {
        let (phase, since) = *self.state.lock();
        let patience = match phase {
            Phase::Fresh | Phase::Head => HEAD_TIMEOUT,
            Phase::Answer => ANSWER_TIMEOUT,
            Phase::Idle(place) if self.idle.has(place) => self.idle.keep_alive,
            Phase::Idle(_) => return None,
        };
        Some(since + patience)
    }

    /// Whether no request has begun that is not answered: then the connection may end.
    pub fn is_between_requests(&self) -> bool {
        matches!(self.state.lock().0, Phase::Fresh | Phase::Idle(_))
    }

    /// Bytes of a head have come, and not its end.
    pub fn head_begun(&self) {
        let mut state = self.state.lock();
        match state.0 {
            // The first head's time began with the connection.
            Phase::Fresh => state.0 = Phase::Head,
            Phase::Idle(place) => {
                self.idle.leave(place);
                *state = (Phase::Head, Instant::now());
            }
            Phase::Head | Phase::Answer => {}
        }
    }

    /// A whole head has come, or an answer makes progress.
    pub fn answering(&self) {
        let mut state = self.state.lock();
        if let Phase::Idle(place) = state.0 {
            self.idle.leave(place);
        }
        *state = (Phase::Answer, Instant::now());
    }

    /// Everything is answered; the next head may have begun. The waker is called when the connection has to give way.
    pub fn answered(&self, next_has_begun: bool, waker: &Waker) {
        let mut state = self.state.lock();
        if state.0 == Phase::Answer {
            let phase = if next_has_begun {
                Phase::Head
            } else {
                Phase::Idle(self.idle.enter(waker.clone()))
            };
            *state = (phase, Instant::now());
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        if let Phase::Idle(place) = self.state.get_mut().0 {
            self.idle.leave(place);
        }
    }
}

/// The idle connections, the longest idle first.
pub struct Idle {
    keep_alive: Duration,
    /// `Keep-Alive: timeout=…`; `None` where that is less than a second.
    announced: Option<HeaderValue>,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    next: u64,
    waiting: BTreeMap<u64, Waker>,
}

impl Idle {
    pub fn new(keep_alive: Duration) -> Self {
        let seconds = Some(keep_alive.as_secs()).filter(|&seconds| seconds > 0);
        Self {
            keep_alive,
            announced: seconds.and_then(|seconds| format!("timeout={seconds}").parse().ok()),
            places: Mutex::default(),
        }
    }

    /// Says in an answer how long its connection waits for the next request, or that it does not.
    pub fn announce(&self, keeps: bool, answer: &mut HeaderMap) {
        if !keeps || self.keep_alive.is_zero() {
            answer.append(CONNECTION, HeaderValue::from_static("close"));
        } else if let Some(timeout) = &self.announced
            && !answer.contains_key(CONNECTION)
        {
            answer.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
            answer.insert(KEEP_ALIVE, timeout.clone());
        }
    }

    fn enter(&self, waker: Waker) -> u64 {
        let mut places = self.places.lock();
        let place = places.next;
        places.next += 1;
        places.waiting.insert(place, waker);
        let one_too_many = if places.waiting.len() > MOST_IDLE {
            places.waiting.pop_first()
        } else {
            None
        };
        drop(places);
        wake(one_too_many);
        place
    }

    fn has(&self, place: u64) -> bool {
        self.places.lock().waiting.contains_key(&place)
    }

    fn leave(&self, place: u64) {
        self.places.lock().waiting.remove(&place);
    }

    /// Makes the longest idle connection end; false where none is idle.
    pub fn evict(&self) -> bool {
        let longest = self.places.lock().waiting.pop_first();
        wake(longest)
    }
}

/// Outside of the lock: what is woken asks for its place.
fn wake(evicted: Option<(u64, Waker)>) -> bool {
    evicted.map(|(_, waker)| waker.wake()).is_some()
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
        pace.answered(false, Waker::noop());
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_time() {
        let pool = Arc::new(Idle::new(KEEP_ALIVE));
        let pace = Pace::new(&pool, Instant::now());
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
        pace.answered(false, Waker::noop());
        assert_eq!(after(&pace), KEEP_ALIVE);
        assert!(pace.is_between_requests());
        tokio::time::advance(Duration::from_secs(70)).await;
        pace.head_begun();
        assert_eq!(
            after(&pace),
            HEAD_TIMEOUT,
            "a head has all its time after any pause"
        );
        tokio::time::advance(Duration::from_secs(3)).await;
        pace.head_begun();
        assert_eq!(after(&pace), Duration::from_secs(7), "a byte buys no time");
        pace.answering();
        pace.answered(true, Waker::noop());
        assert_eq!(after(&pace), HEAD_TIMEOUT);
        assert!(pool.places.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn the_longest_idle_gives_way() {
        let pool = Arc::new(Idle::new(KEEP_ALIVE));
        assert!(!pool.evict(), "none is idle yet");
        let mut paces: Vec<_> = (0..3).map(|_| Pace::new(&pool, Instant::now())).collect();
        paces.iter().for_each(idle);
        // The first asks again, and is the last then; the third goes by itself.
        idle(&paces[0]);
        paces.pop();
        let evicted = |pace: &Pace| pace.deadline().is_none();
        assert!(pool.evict() && evicted(&paces[1]) && !evicted(&paces[0]));
        assert!(pool.evict() && evicted(&paces[0]));
        assert!(!pool.evict());
        // A request that came in that moment is answered.
        idle(&paces[1]);
        assert!(!evicted(&paces[1]));
        drop(paces);
        assert!(pool.places.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn there_are_not_too_many() {
        let pool = Arc::new(Idle::new(KEEP_ALIVE));
        let paces: Vec<_> = (0..=MOST_IDLE)
            .map(|_| Pace::new(&pool, Instant::now()))
            .collect();
        paces.iter().for_each(idle);
        assert_eq!(paces[0].deadline(), None);
        assert_eq!(pool.places.lock().waiting.len(), MOST_IDLE);
    }
}
