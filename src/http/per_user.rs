//! `MAX_CONNECTIONS_PER_USER`: at the limit the newest connection replaces the user's oldest, so that a phone that lost
//! its network does not lock its user out.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use dashmap::DashMap;

use crate::protocol::code::CloseCode;
use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::writer::{BacklogPolicy, ConnectionWriter};

/// A user of a session in one role: the same id in another session or role may be somebody else, who must not be able to
/// close this one's connections.
pub type Who = (SessionId, UserId, UserType);

/// How many replacements a user may have per minute: clients that keep replacing each other are stopped.
const MAX_REPLACEMENTS: usize = 10;
const REPLACEMENTS_PER: Duration = Duration::from_secs(60);

/// The connections of each user of each session on this node, oldest first.
pub struct PerUser {
    /// 0: no limit, and nothing is kept.
    max: usize,
    users: DashMap<Who, Connections>,
}

#[derive(Default)]
struct Connections {
    seats: VecDeque<Seat>,
    /// When connections were replaced, within the last minute.
    replaced: VecDeque<Instant>,
}

/// A connection's place, with its writer once it has joined.
type Seat = Arc<OnceLock<Weak<ConnectionWriter>>>;

/// A place that is taken, until [`PerUser::leave`].
pub struct Taken {
    who: Who,
    seat: Seat,
}

impl PerUser {
    pub fn new(max: usize) -> Self {
        Self {
            max,
            users: DashMap::new(),
        }
    }

    pub fn is_limited(&self) -> bool {
        self.max > 0
    }

    /// Takes a place; no connection is closed before [`Self::arrive`].
    ///
    /// # Errors
    ///
    /// How long to wait: this user's connections replace each other too often.
    pub fn admit(&self, who: Who, now: Instant) -> Result<Taken, Duration> {
        let mut user = self.users.entry(who.clone()).or_default();
        if user.seats.len() >= self.max {
            user.replaced
                .retain(|at| now.saturating_duration_since(*at) < REPLACEMENTS_PER);
            // Connections that are being upgraded will replace one, too, unless they are refused after all or are plain
            // GETs.
            let arriving = user.seats.len() - self.max;
            if user.replaced.len() + arriving >= MAX_REPLACEMENTS {
                let first = user.replaced.front().copied().unwrap_or(now);
                return Err(REPLACEMENTS_PER.saturating_sub(now.saturating_duration_since(first)));
            }
        }
        let seat = Seat::default();
        user.seats.push_back(Arc::clone(&seat));
        Ok(Taken { who, seat })
    }

    /// The connection has joined its session: the oldest ones beyond the limit are closed.
    pub fn arrive(&self, taken: &Taken, writer: &Arc<ConnectionWriter>, now: Instant) {
        let mut replaced = Vec::new();
        let mut user = self.users.get_mut(&taken.who);
        let is_seat = |seat: &Seat| Arc::ptr_eq(seat, &taken.seat);
        if let Some(user) = user.as_mut().filter(|user| user.seats.iter().any(is_seat)) {
            let _ = taken.seat.set(Arc::downgrade(writer));
            // Only older ones: a newer one that is being upgraded may never arrive.
            while user.seats.len() > self.max && !is_seat(&user.seats[0]) {
                let oldest = user.seats.pop_front();
                user.replaced.push_back(now);
                replaced.extend(oldest.and_then(|seat| seat.get()?.upgrade()));
            }
        } else {
            // Replaced before it joined, perhaps by one that has left since.
            replaced.push(Arc::clone(writer));
        }
        drop(user);
        for writer in replaced {
            writer.close(
                CloseCode::Replaced,
                "replaced by a newer connection of this user",
                BacklogPolicy::Deliver,
            );
        }
    }

    pub fn leave(&self, taken: &Taken) {
        self.users.remove_if_mut(&taken.who, |_, user| {
            user.seats.retain(|seat| !Arc::ptr_eq(seat, &taken.seat));
            user.seats.is_empty()
        });
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::testing;

    fn who(user: &str) -> Who {
        let (session, user) = (SessionId::parse("s").unwrap(), UserId::parse(user).unwrap());
        (session, user, UserType::Agent)
    }

    #[tokio::test]
    async fn the_oldest_is_closed_once_the_newest_has_joined() {
        let (limit, now) = (PerUser::new(2), Instant::now());
        let mut sockets = Vec::new();
        let mut open = Vec::new();
        for _ in 0..2 {
            let taken = limit.admit(who("u"), now).unwrap();
            let (member, socket) = testing::member("u").await;
            limit.arrive(&taken, &member.writer, now);
            open.push((taken, member));
            sockets.push(socket);
        }
        let never_joined = limit.admit(who("u"), now).unwrap();
        assert!(open[0].1.writer.is_open(), "none has replaced it yet");
        limit.leave(&never_joined);
        let newest = limit.admit(who("u"), now).unwrap();
        let (member, _socket) = testing::member("u").await;
        limit.arrive(&newest, &member.writer, now);
        let is_open = [&open[0].1, &open[1].1, &member].map(|member| member.writer.is_open());
        assert_eq!(is_open, [false, true, true]);
        for (taken, _) in &open {
            limit.leave(taken);
        }
        assert!(!limit.is_empty());
        limit.leave(&newest);
        assert!(limit.is_empty());
    }

    #[tokio::test]
    async fn a_connection_replaced_during_its_upgrade_is_closed_on_arrival() {
        let (limit, now) = (PerUser::new(1), Instant::now());
        let [slow, fast] = [(); 2].map(|()| limit.admit(who("u"), now).unwrap());
        let (fast_member, _fast) = testing::member("u").await;
        limit.arrive(&fast, &fast_member.writer, now);
        let (slow_member, _slow) = testing::member("u").await;
        limit.arrive(&slow, &slow_member.writer, now);
        assert!(fast_member.writer.is_open() && !slow_member.writer.is_open());
        // Also if the one that replaced it has left.
        let (limit, now) = (PerUser::new(1), Instant::now());
        let [slow, fast] = [(); 2].map(|()| limit.admit(who("u"), now).unwrap());
        let (member, _socket) = testing::member("u").await;
        limit.arrive(&fast, &member.writer, now);
        limit.leave(&fast);
        let (member, _socket) = testing::member("u").await;
        limit.arrive(&slow, &member.writer, now);
        assert!(!member.writer.is_open(), "it is not counted");
        // In the other order the older one stays: the newer one may never arrive.
        let (limit, now) = (PerUser::new(1), Instant::now());
        let [first, _second] = [(); 2].map(|()| limit.admit(who("u"), now).unwrap());
        let (member, _socket) = testing::member("u").await;
        limit.arrive(&first, &member.writer, now);
        assert!(member.writer.is_open());
    }

    #[tokio::test]
    async fn ten_replacements_a_minute() {
        let (limit, start) = (PerUser::new(1), Instant::now());
        let (second, mut taken, mut sockets) = (Duration::from_secs(1), Vec::new(), Vec::new());
        for n in 0..=10 {
            // A plain GET replaces nobody.
            limit.leave(&limit.admit(who("u"), start + n * second).unwrap());
            taken.push(limit.admit(who("u"), start + n * second).unwrap());
            let (member, socket) = testing::member("u").await;
            limit.arrive(&taken[taken.len() - 1], &member.writer, start + n * second);
            sockets.push((member, socket));
        }
        let refused = |after| limit.admit(who("u"), start + after).err();
        assert_eq!(refused(10 * second), Some(51 * second));
        assert!(limit.admit(who("v"), start).is_ok(), "another user");
        assert_eq!(refused(60 * second), Some(second));
        assert_eq!(refused(61 * second), None, "the first is a minute old");
        assert!(refused(61 * second).is_some(), "one is being upgraded");
        for taken in &taken {
            limit.leave(taken);
        }
    }

    #[tokio::test]
    async fn a_user_of_the_same_id_in_another_role_is_somebody_else() {
        let (limit, now) = (PerUser::new(1), Instant::now());
        let agent = limit.admit(who("42"), now).unwrap();
        let (member, _socket) = testing::member("42").await;
        limit.arrive(&agent, &member.writer, now);
        let (session, user, _) = who("42");
        let customer = limit.admit((session, user, UserType::Customer), now).unwrap();
        let (other, _other_socket) = testing::member("42").await;
        limit.arrive(&customer, &other.writer, now);
        assert!(member.writer.is_open() && other.writer.is_open());
    }

    #[test]
    fn connections_being_upgraded_count() {
        let (limit, now) = (PerUser::new(1), Instant::now());
        let arriving: Vec<_> = (0..20).map(|_| limit.admit(who("u"), now)).collect();
        assert_eq!(arriving.iter().filter(|admitted| admitted.is_ok()).count(), 11);
    }
}
