//! Connection limits: per process, per address and per user of a session.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;

use super::per_user::{PerUser, Taken};
use crate::address::counted;
use crate::config;
use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::writer::ConnectionWriter;

/// Which limit a connection would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    Process,
    Address,
    /// This user's connections replace each other too often: retry after this time.
    User(Duration),
}

/// Counts of admitted connections. A count of zero leaves no entry.
pub struct Limits {
    max_connections: usize,
    max_per_ip: usize,
    connections: AtomicUsize,
    per_ip: DashMap<IpAddr, usize>,
    per_user: PerUser,
}

/// A place for one connection, given back on drop.
pub struct Ticket {
    limits: Arc<Limits>,
    /// What it counts for besides the process; boxed, since most servers set no such limits.
    counted: Option<Box<Counted>>,
}

#[derive(Default)]
struct Counted {
    ip: Option<IpAddr>,
    user: Option<Taken>,
}

impl Limits {
    pub fn new(limits: &config::Limits) -> Self {
        Self {
            max_connections: limits.max_connections,
            max_per_ip: limits.max_connections_per_ip,
            connections: AtomicUsize::new(0),
            per_ip: DashMap::new(),
            per_user: PerUser::new(limits.max_connections_per_user),
        }
    }

    /// The open WebSocket connections, including those that are being upgraded.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn admit(
        self: &Arc<Self>,
        ip: IpAddr,
        (session_id, user_id, user_type): (&SessionId, &UserId, UserType),
    ) -> Result<Ticket, Exceeded> {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.max_connections {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(Exceeded::Process);
        }
        // From here on the ticket returns what was taken.
        let mut ticket = Ticket {
            limits: Arc::clone(self),
            counted: None,
        };
        if self.max_per_ip > 0 {
            let ip = counted(ip);
            if !take(&self.per_ip, ip, self.max_per_ip) {
                return Err(Exceeded::Address);
            }
            ticket.counted.get_or_insert_default().ip = Some(ip);
        }
        if self.per_user.is_limited() {
            let who = (session_id.clone(), user_id.clone(), user_type);
            let taken = self.per_user.admit(who, Instant::now()).map_err(Exceeded::User)?;
            ticket.counted.get_or_insert_default().user = Some(taken);
        }
        Ok(ticket)
    }
}

impl Ticket {
    /// Notes that the connection has joined its session: beyond MAX_CONNECTIONS_PER_USER the user's oldest is closed.
    pub fn arrived(&self, writer: &Arc<ConnectionWriter>) {
        if let Some(taken) = self.counted.as_ref().and_then(|counted| counted.user.as_ref()) {
            self.limits.per_user.arrive(taken, writer, Instant::now());
        }
    }
}

fn take<K: std::hash::Hash + Eq>(counts: &DashMap<K, usize>, key: K, max: usize) -> bool {
    let mut count = counts.entry(key).or_insert(0);
    let has_room = *count < max;
    *count += usize::from(has_room);
    has_room
}

fn release<K: std::hash::Hash + Eq>(counts: &DashMap<K, usize>, key: &K) {
    counts.remove_if_mut(key, |_, count| {
        *count -= 1;
        *count == 0
    });
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.limits.connections.fetch_sub(1, Ordering::Relaxed);
        let Some(counted) = &self.counted else { return };
        if let Some(ip) = &counted.ip {
            release(&self.limits.per_ip, ip);
        }
        if let Some(taken) = &counted.user {
            self.limits.per_user.leave(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max: usize, per_ip: usize, per_user: usize) -> Arc<Limits> {
        Arc::new(Limits {
            max_connections: max,
            max_per_ip: per_ip,
            connections: AtomicUsize::new(0),
            per_ip: DashMap::new(),
            per_user: PerUser::new(per_user),
        })
    }

    #[test]
    fn places_are_returned() {
        let limits = limits(3, 2, 5);
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let session_id = SessionId::parse("s").unwrap();
        let admit = |ip, user_id| {
            let user_id = UserId::parse(user_id).unwrap();
            limits.admit(ip, (&session_id, &user_id, UserType::Agent))
        };
        let first = admit(a, "u1").ok().unwrap();
        let second = admit(a, "u2").ok().unwrap();
        assert_eq!(admit(a, "u3").err(), Some(Exceeded::Address));
        let third = admit(b, "u3").ok().unwrap();
        assert_eq!(admit(b, "u4").err(), Some(Exceeded::Process));
        drop((first, second, third));
        assert_eq!(limits.connections(), 0);
        assert!(limits.per_ip.is_empty() && limits.per_user.is_empty());
    }
}
