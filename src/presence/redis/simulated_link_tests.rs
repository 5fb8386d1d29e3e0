//! What is between a node of the simulation and Redis: requests are lost, delayed and repeated.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::simulated_redis::{Answer, Redis, Request, Session};

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does not reach Redis.
    LostRequest,
    /// As before: its connection was broken by a restart of Redis.
    Broken,
    /// It is executed, and its answer is lost.
    LostAnswer,
    /// It is executed later, when the node has given up on it.
    Delayed(u64),
    /// It is executed twice, and its answer is lost. (Twice at once: on a TCP connection nothing is repeated later.)
    Repeated,
    /// Redis is emptied in the middle of it.
    FlushedWithin,
}

/// No answer.
#[derive(Debug)]
pub struct Failed;

/// What a node is connected to.
pub struct Link<'a> {
    pub redis: &'a mut Redis,
    pub faults: &'a mut VecDeque<Fault>,
    pub delayed: &'a mut Vec<(Instant, Request)>,
    /// Sessions with a status record in this round.
    pub published: &'a mut BTreeSet<Session>,
}

impl Link<'_> {
    pub fn send(&mut self, request: &Request) -> Result<Answer, Failed> {
        let fault = self.faults.pop_front();
        match fault {
            None => Ok(self.redis.execute(request, false)),
            Some(Fault::FlushedWithin) => Ok(self.redis.execute(request, true)),
            Some(Fault::LostRequest | Fault::Broken) => Err(Failed),
            Some(Fault::LostAnswer) => {
                self.redis.execute(request, false);
                Err(Failed)
            }
            Some(Fault::Delayed(ms)) => {
                let due = Instant::now() + Duration::from_millis(ms);
                self.delayed.push((due, request.clone()));
                Err(Failed)
            }
            Some(Fault::Repeated) => {
                self.redis.execute(request, false);
                self.redis.execute(request, false);
                Err(Failed)
            }
        }
    }

    /// For what is not a pipeline of its own: only its request can be lost.
    pub fn reach(&mut self) -> Result<&mut Redis, Failed> {
        match self.faults.front() {
            Some(Fault::LostRequest | Fault::Broken) => {
                self.faults.pop_front();
                Err(Failed)
            }
            _ => Ok(&mut *self.redis),
        }
    }
}
