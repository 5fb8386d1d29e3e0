//! The plain HTTP sockets of one kind of listener, by client address. When descriptors run out, the address with the
//! most sockets loses one: no client can take every place by opening silent sockets.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

/// How long a response may take before its socket may be evicted: one that takes longer is waiting for its reader.
const SLOW_ANSWER: Duration = Duration::from_secs(2);

/// What a socket is waiting for. Of one address, the kinds that come first here are evicted first, and of one kind the
/// socket that has waited longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Its next request.
    Idle,
    /// The rest of a head.
    Head,
    /// A response, or its reader.
    Answer,
}

/// A socket's place; lower numbers are older.
pub type Place = (Kind, u64);

/// An evicted socket.
#[derive(Debug, PartialEq, Eq)]
pub struct Evicted {
    pub address: IpAddr,
    pub kind: Kind,
    /// How many sockets its address held.
    pub held: usize,
}

struct Waiting {
    since: Instant,
    waker: Waker,
}

#[derive(Default)]
pub struct Places {
    next: u64,
    held: usize,
    idle: usize,
    addresses: HashMap<IpAddr, BTreeMap<Place, Waiting>>,
}

impl Places {
    /// Takes a place; the waker is called when it is evicted.
    pub fn enter(&mut self, address: IpAddr, kind: Kind, waker: Waker) -> Place {
        let place = (kind, self.next);
        self.next += 1;
        self.held += 1;
        self.idle += usize::from(kind == Kind::Idle);
        let since = Instant::now();
        let waiting = Waiting { since, waker };
        self.addresses.entry(address).or_default().insert(place, waiting);
        place
    }

    pub fn has(&self, address: IpAddr, place: Place) -> bool {
        let of_address = self.addresses.get(&address);
        of_address.is_some_and(|places| places.contains_key(&place))
    }

    /// Leaves a place, unless it was evicted; returns its waker.
    pub fn leave(&mut self, address: IpAddr, place: Place) -> Option<Waker> {
        let places = self.addresses.get_mut(&address)?;
        let removed = places.remove(&place)?;
        if places.is_empty() {
            self.addresses.remove(&address);
        }
        self.held -= 1;
        self.idle -= usize::from(place.0 == Kind::Idle);
        Some(removed.waker)
    }

    /// How many places are taken.
    pub fn count(&self) -> usize {
        self.held
    }

    /// How many are idle.
    pub fn idle(&self) -> usize {
        self.idle
    }

    /// Evicts a place of a kind up to `last` from the address that holds the most; the caller wakes its owner.
    pub fn evict(&mut self, last: Kind) -> Option<(Evicted, Waker)> {
        let firsts = self.addresses.iter().filter_map(|(address, places)| {
            let (&place, waiting) = places.first_key_value()?;
            let may_go =
                place.0 <= last && (place.0 < Kind::Answer || waiting.since.elapsed() >= SLOW_ANSWER);
            may_go.then_some((places.len(), Reverse(place.1), *address, place))
        });
        let (held, _, address, place) = firsts.max()?;
        let waker = self.leave(address, place)?;
        let kind = place.0;
        Some((Evicted { address, kind, held }, waker))
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.idle == 0 && self.held == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn evict(places: &mut Places) -> Option<(IpAddr, Kind, usize)> {
        let (evicted, _) = places.evict(Kind::Answer)?;
        Some((evicted.address, evicted.kind, evicted.held))
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_with_the_most_sockets_loses_one() {
        let mut places = Places::default();
        let mut enter = |last, kind| places.enter(ip(last), kind, Waker::noop().clone());
        let quiet = enter(1, Kind::Idle);
        let asking = enter(2, Kind::Head);
        let silent = [(); 3].map(|()| enter(3, Kind::Head));
        assert_eq!(evict(&mut places), Some((ip(3), Kind::Head, 3)));
        assert!(
            !places.has(ip(3), silent[0]) && places.has(ip(3), silent[1]),
            "its oldest"
        );
        assert_eq!(evict(&mut places), Some((ip(3), Kind::Head, 2)));
        // If every address has one, the oldest is evicted.
        assert!(places.has(ip(1), quiet));
        assert_eq!(evict(&mut places), Some((ip(1), Kind::Idle, 1)));
        assert_eq!(evict(&mut places), Some((ip(2), Kind::Head, 1)));
        assert!(!places.has(ip(2), asking));
        assert_eq!(evict(&mut places), Some((ip(3), Kind::Head, 1)));
        assert!(places.is_empty() && evict(&mut places).is_none());
        places.leave(ip(3), silent[0]);
        assert!(places.is_empty(), "it was evicted already");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_sockets_are_evicted_before_heads_and_only_slow_responses() {
        let mut places = Places::default();
        for kind in [Kind::Answer, Kind::Head, Kind::Idle] {
            places.enter(ip(1), kind, Waker::noop().clone());
        }
        assert_eq!(evict(&mut places), Some((ip(1), Kind::Idle, 3)));
        assert!(places.evict(Kind::Idle).is_none());
        assert_eq!(evict(&mut places), Some((ip(1), Kind::Head, 2)));
        assert_eq!(evict(&mut places), None, "it is being answered");
        tokio::time::advance(SLOW_ANSWER).await;
        assert_eq!(evict(&mut places), Some((ip(1), Kind::Answer, 1)));
    }
}
