//! How this node stands with Redis: its name there, its lease, and whether Redis knows all that it should.
//!
//! After a loss, and after a pipeline without an answer, the node goes on under another name. What Redis still reads
//! of the earlier pipeline, after newer writes, is then of a name that is taken back like a dead node's, and can
//! neither bring back who has left nor remove who has come.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisError, RedisResult, Value};
use tokio::time::Instant;

use super::answers::read_heartbeat;
use super::pipeline::{MAX_RETRY, Pipeline};
use super::store::CONNECT_PATIENCE;
use super::{Times, keys};
use crate::bus::Status;

/// Names of our own that we still take back ourselves; of more, the other nodes do, as of any dead one.
const MAX_FORMER: usize = 4;

pub struct Standing {
    /// `NODE_ID` and boot id and, from the second name on, a number.
    pub name: Arc<str>,
    /// Our names before, with sessions that may still be under them.
    pub former: Vec<Arc<str>>,
    /// Whether Redis has answered under this name, and when it last did under any.
    is_confirmed: bool,
    /// Whether what was sent last may still be executed later.
    pub is_uncertain: bool,
    answered: Option<Instant>,
    /// What tells one Redis from another: the process, and what it holds.
    run_id: Option<String>,
    epoch: Option<String>,
    /// The names of other nodes that were last seen alive.
    peers: HashSet<String>,
    hold: Option<Hold>,
    /// Redis has lost something: who is written again seems new to it, and is not.
    pub is_rebuilding: bool,
    /// Nobody is declared dead before: others may just be coming back, too.
    reap_after: Instant,
    /// Dead nodes that are ours to take back.
    pub dead: Vec<String>,
}

/// Redis has lost something: what it says is not shown until all nodes have written again.
struct Hold {
    /// Nodes that were there and have not written all again, with their names before: who is back has another. And
    /// whether some of them are about to.
    missing: HashMap<String, HashSet<String>>,
    is_some_writing: bool,
    /// When this node had written all that it holds.
    written: Option<Instant>,
}

/// What Redis has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Everything.
    Emptied,
    /// Maybe the last seconds: it is another process.
    Restarted,
    /// Only us: we were silent for too long.
    Lease,
}

impl Standing {
    pub fn new(name: Arc<str>) -> Self {
        Self {
            name,
            former: Vec::new(),
            is_confirmed: false,
            is_uncertain: false,
            answered: None,
            run_id: None,
            epoch: None,
            peers: HashSet::new(),
            hold: None,
            is_rebuilding: false,
            reap_after: Instant::now(),
            dead: Vec::new(),
        }
    }

    pub fn is_holding(&self) -> bool {
        self.hold.is_some()
    }

    /// This node has written all that it holds.
    pub fn wrote_all(&mut self) {
        self.is_rebuilding = false;
        if let Some(hold) = &mut self.hold {
            hold.written.get_or_insert_with(Instant::now);
        }
    }

    /// Ends the hold when the other nodes are back, or have had the time to be. Whether it ended now.
    pub fn end_hold(&mut self, times: Times) -> bool {
        let is_over = |hold: &Hold| {
            let since = hold.written.map(|at| at.elapsed()).unwrap_or_default();
            let all_are_back = hold.missing.is_empty() && since >= times.heartbeat + times.window;
            let patience = if hold.is_some_writing {
                times.ttl
            } else {
                return_time(times)
            };
            all_are_back || since >= patience
        };
        self.hold.take_if(|hold| is_over(hold)).is_some()
    }

    fn note_nodes(&mut self, done: Vec<String>, writing: Vec<String>) {
        let own = base(&self.name).to_owned();
        let is_other = |name: &String| base(name) != own;
        if let Some(hold) = &mut self.hold {
            let has_new = |names: &[String], node: &str, known: &HashSet<String>| {
                let mut of_node = names.iter().filter(|name| base(name) == node);
                of_node.any(|name| !known.contains(name))
            };
            hold.is_some_writing = false;
            hold.missing.retain(|node, known| {
                let is_writing = has_new(&writing, node, known);
                hold.is_some_writing |= is_writing;
                is_writing || !has_new(&done, node, known)
            });
        } else {
            self.peers = done.into_iter().chain(writing).filter(is_other).collect();
        }
    }

    /// The nodes that were last seen, by what stays of their names.
    fn last_seen(&self) -> HashMap<String, HashSet<String>> {
        let mut seen = HashMap::<_, HashSet<_>>::new();
        for name in &self.peers {
            seen.entry(base(name).to_owned())
                .or_default()
                .insert(name.clone());
        }
        seen
    }
}

/// How long another node may need to find that Redis is back, and to connect.
fn return_time(times: Times) -> Duration {
    times
        .ttl
        .min(MAX_RETRY + 2 * CONNECT_PATIENCE + 2 * times.heartbeat)
}

/// A node's name without the number of its connection.
pub fn base(name: &str) -> &str {
    let boot = name.rfind('+').unwrap_or(0);
    name[boot..].find('.').map_or(name, |dot| &name[..boot + dot])
}

impl Pipeline {
    pub(super) async fn connect(&mut self) -> Result<(), RedisError> {
        // Until the first answer nobody knows what is in it.
        self.store.settle(true);
        let run_id = self.store.connect().await?;
        let standing = &mut self.standing;
        let is_another = match (&standing.run_id, &run_id) {
            (Some(known), Some(found)) => known != found,
            _ => false,
        };
        standing.run_id = run_id.or(standing.run_id.take());
        let pause = match standing.answered {
            // What a Redis that slept has missed is no sign of death.
            Some(answered) if answered.elapsed() >= self.times.lease => {
                // Others may have taken us back, and nobody else been left in some sessions.
                self.audience.expect_nothing();
                self.times.ttl
            }
            _ => return_time(self.times),
        };
        standing.reap_after = standing.reap_after.max(Instant::now() + pause);
        if is_another {
            // Whether it is empty, too, makes no difference any more.
            standing.epoch = None;
            self.lose(Loss::Restarted);
        } else if standing.is_uncertain && standing.answered.is_some() {
            self.begin_anew();
        } else {
            self.begin_resync();
        }
        Ok(())
    }

    /// A pipeline begins with our heartbeat: what is written has a lease, or else somebody to take it back.
    pub(super) fn begin(&self) -> redis::Pipeline {
        let mut pipeline = redis::pipe();
        let standing = &self.standing;
        // Whoever claims a node keeps it from the others, and has to take it back in the same round.
        let claim = if self.wants_dead {
            self.times.claim
        } else {
            Duration::ZERO
        };
        let claims_dead = Instant::now() >= standing.reap_after;
        let lease = self.times.lease;
        self.store.add_heartbeat(
            &mut pipeline,
            &standing.name,
            lease,
            (claim, claims_dead),
            self.is_resyncing,
            &standing.former,
        );
        pipeline
    }

    /// Sends a pipeline of [`Self::begin`]; the answers but for the heartbeat's. `None` when Redis has lost us, or
    /// more: then they mean nothing, and all is to be written again.
    pub(super) async fn send(
        &mut self,
        mut pipeline: redis::Pipeline,
        patience: Duration,
    ) -> Result<Option<Vec<RedisResult<Value>>>, RedisError> {
        // Asked at the end, too: it may be emptied between two commands.
        pipeline.cmd("GET").arg(keys::EPOCH);
        self.parts.metrics.redis_pipelines.inc();
        let mut answers = self.store.send(&mut pipeline, patience).await?;
        let epoch = answers.pop().unwrap_or(Ok(Value::Nil))?;
        let epoch: Option<String> = redis::from_redis_value(epoch)?;
        let heartbeat = read_heartbeat(answers.remove(0)?)?;
        let now = Instant::now();
        self.next_heartbeat = now + self.times.heartbeat;
        let standing = &mut self.standing;
        let known = standing.epoch.replace(heartbeat.epoch.clone());
        let is_emptied =
            known.is_some_and(|known| known != heartbeat.epoch) || epoch != Some(heartbeat.epoch);
        let was_confirmed = std::mem::replace(&mut standing.is_confirmed, true);
        let is_first = standing.answered.replace(now).is_none();
        standing.dead = heartbeat.dead;
        if is_emptied && !is_first {
            self.lose(Loss::Emptied);
            return Ok(None);
        }
        if was_confirmed && !heartbeat.is_held {
            self.lose(Loss::Lease);
            return Ok(None);
        }
        standing.note_nodes(heartbeat.done, heartbeat.writing);
        if !standing.is_holding() {
            self.store.settle(false);
        }
        Ok(Some(answers))
    }

    fn lose(&mut self, loss: Loss) {
        tracing::warn!(?loss, "Redis has lost presence: it is written again");
        let now = Instant::now();
        let standing = &mut self.standing;
        standing.reap_after = now + self.times.ttl;
        standing.dead.clear();
        self.audience.expect_nothing();
        standing.is_rebuilding |= loss != Loss::Lease;
        if loss != Loss::Lease {
            let missing = match standing.hold.take() {
                Some(hold) => hold.missing,
                None => standing.last_seen(),
            };
            standing.hold = Some(Hold {
                missing,
                is_some_writing: false,
                written: None,
            });
            self.store.settle(true);
            self.audience.distrust();
        }
        self.begin_anew();
    }

    /// Goes on under another name and writes everything again.
    fn begin_anew(&mut self) {
        let name = self.store.next_name(&self.parts.node);
        let standing = &mut self.standing;
        let former = std::mem::replace(&mut standing.name, name);
        // Under one that Redis never answered to there is nothing that we know of; if there is all the same, it is
        // found like that of any dead node.
        if std::mem::replace(&mut standing.is_confirmed, false) {
            standing.former.push(former);
            let surplus = standing.former.len().saturating_sub(MAX_FORMER);
            standing.former.drain(..surplus);
        }
        standing.is_uncertain = false;
        if let Some(hold) = &mut standing.hold {
            hold.written = None;
        }
        self.next_heartbeat = Instant::now();
        self.begin_resync();
    }

    /// Whether other nodes can be told anything.
    pub(super) fn has_log(&self) -> bool {
        self.parts.bus.health().status == Status::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times() -> Times {
        super::super::tests::times(Duration::from_secs(60))
    }

    #[test]
    fn a_node_is_known_whatever_its_connection() {
        assert_eq!(base("host+9949663f105b"), "host+9949663f105b");
        assert_eq!(base("host+9949663f105b.12"), "host+9949663f105b");
        assert_eq!(base("a.b+c+9949663f105b.1"), "a.b+c+9949663f105b");
        assert_eq!(base("odd"), "odd");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_ends_when_all_have_written_and_at_last_without_them() {
        let mut standing = Standing::new("a+1.1".into());
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        standing.note_nodes(names(&["a+1.1", "b+2"]), names(&["c+3.4"]));
        assert_eq!(standing.peers, ["b+2", "c+3.4"].map(str::to_owned).into());
        let hold = |standing: &mut Standing| {
            standing.hold = Some(Hold {
                missing: standing.last_seen(),
                is_some_writing: false,
                written: None,
            });
        };
        hold(&mut standing);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert!(!standing.end_hold(times()), "this node has not written");
        standing.wrote_all();
        standing.note_nodes(names(&["b+2", "c+3.4"]), vec![]);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!standing.end_hold(times()), "old names are no sign of life");
        standing.note_nodes(names(&["b+2.1", "c+3.4"]), names(&["c+3.5"]));
        tokio::time::advance(return_time(times())).await;
        assert!(!standing.end_hold(times()), "one is about to write");
        standing.note_nodes(names(&["b+2.1", "c+3.5"]), vec![]);
        assert!(standing.end_hold(times()) && !standing.is_holding());

        hold(&mut standing);
        standing.wrote_all();
        tokio::time::advance(return_time(times())).await;
        assert!(standing.end_hold(times()), "they may be dead");
    }
}
