//! This node's name and lease in Redis, and whether Redis knows everything it should.
//!
//! After a loss of data, and after a pipeline without an answer, the node continues under another name. If Redis
//! executes something of the earlier pipeline after newer writes, it does so under the retired name, whose users are
//! removed like a dead node's: it can neither bring back users who have left nor remove users who have joined.
//!
//! Nothing here does I/O: the task passes in what Redis has answered, and acts on the [`Transition`]s.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::answers::Heartbeat;
use super::keys::node_of;
use super::sync_state::{Event, SyncState};
use super::timings::Timings;

/// We remove our users under so many retired names ourselves; under older ones the other nodes do.
const MAX_RETIRED_NAMES: usize = 4;

pub struct NodeLease {
    timings: Timings,
    /// `NODE_ID` and boot id and, from the second name on, a number.
    name: Arc<str>,
    /// Earlier names, which may still hold users in some sessions.
    retired_names: Vec<Arc<str>>,
    /// Whether Redis has answered under this name.
    is_confirmed: bool,
    /// Whether the last pipeline may still be executed later.
    is_uncertain: bool,
    /// When Redis first answered, and when it last did, under any name.
    first_answered: Option<Instant>,
    answered: Option<Instant>,
    /// What tells one Redis from another: its process, and its data.
    run_id: Option<String>,
    epoch: Option<String>,
    /// The names of other nodes that were last seen alive; in a recovery, also of those from before and since.
    peers: HashSet<String>,
    /// Whether there were no other nodes: just after a start some may not be back yet from an earlier loss.
    knows_peers: bool,
    state: SyncState,
    /// No node is declared dead before: others may be reconnecting, too.
    reap_after: Instant,
    /// Dead nodes that this one has claimed.
    dead: Vec<String>,
}

/// What Redis has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Everything.
    Emptied,
    /// Maybe the last seconds: it is another process.
    Restarted,
    /// Only our lease: this node was silent for too long.
    Lease,
}

/// What has to follow a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Everything is written again.
    Resync,
    /// The same under another name.
    Rename,
    /// See [`NodeLease::lost`].
    Lost(Loss),
}

impl NodeLease {
    pub fn new(name: Arc<str>, timings: Timings) -> Self {
        Self {
            timings,
            name,
            retired_names: Vec::new(),
            is_confirmed: false,
            is_uncertain: false,
            first_answered: None,
            answered: None,
            run_id: None,
            epoch: None,
            peers: HashSet::new(),
            knows_peers: false,
            // Everything that is here already has to be written.
            state: SyncState::Resyncing,
            reap_after: Instant::now(),
            dead: Vec::new(),
        }
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub fn retired_names(&self) -> &[Arc<str>] {
        &self.retired_names
    }

    /// The epoch that Redis had when it last answered; empty if unknown.
    pub fn epoch(&self) -> &str {
        self.epoch.as_deref().unwrap_or_default()
    }

    pub fn is_retired(&self, name: &str) -> bool {
        self.retired_names.iter().any(|retired| **retired == *name)
    }

    pub fn forget_retired(&mut self, name: &str) {
        self.retired_names.retain(|retired| **retired != *name);
    }

    pub fn take_dead(&mut self) -> Vec<String> {
        std::mem::take(&mut self.dead)
    }

    /// Whether nodes that don't answer may be declared dead.
    pub fn may_reap(&self) -> bool {
        Instant::now() >= self.reap_after
    }

    pub fn state(&self) -> &SyncState {
        &self.state
    }

    fn apply(&mut self, event: Event<'_>) {
        let state = std::mem::replace(&mut self.state, SyncState::Resyncing);
        self.state = state.after(event, &self.timings);
    }

    /// Whether Redis has not answered for so long that other nodes may have removed our users.
    pub fn may_be_reaped(&self) -> bool {
        self.answered
            .is_some_and(|answered| answered.elapsed() >= self.timings.lease)
    }

    /// There is a new connection, to a server process with this id, if it is known.
    pub fn connected(&mut self, run_id: Option<String>) -> Transition {
        let is_another = match (&self.run_id, &run_id) {
            (Some(known), Some(found)) => known != found,
            _ => false,
        };
        self.run_id = run_id.or(self.run_id.take());
        // Leases that ended while Redis slept don't mean that anybody has died.
        let pause = match self.may_be_reaped() {
            true => self.timings.ttl,
            false => self.timings.reconnect(),
        };
        self.reap_after = self.reap_after.max(Instant::now() + pause);
        if is_another {
            // Whether it is empty as well makes no difference any more.
            self.epoch = None;
            Transition::Lost(Loss::Restarted)
        } else if self.is_uncertain {
            Transition::Rename
        } else {
            Transition::Resync
        }
    }

    /// Redis has not answered a pipeline, which may still be executed.
    pub fn unanswered(&mut self) {
        self.is_uncertain = true;
    }

    /// A pipeline was answered: its heartbeat, and the epoch at its end. With a loss the other answers mean nothing.
    pub fn answered(&mut self, heartbeat: Heartbeat, epoch: Option<String>) -> Option<Loss> {
        let known = self.epoch.replace(heartbeat.epoch.clone());
        let is_emptied =
            known.is_some_and(|known| known != heartbeat.epoch) || epoch != Some(heartbeat.epoch);
        let was_confirmed = std::mem::replace(&mut self.is_confirmed, true);
        let is_first = self.answered.replace(Instant::now()).is_none();
        self.first_answered = self.first_answered.or(self.answered);
        self.dead = heartbeat.dead;
        if is_emptied && !is_first {
            return Some(Loss::Emptied);
        }
        if was_confirmed && !heartbeat.is_lease_valid {
            return Some(Loss::Lease);
        }
        self.note_nodes(heartbeat.done, heartbeat.writing);
        None
    }

    /// Redis has lost us, or more. What follows is a new name, and everything is written again.
    pub fn lost(&mut self, loss: Loss) {
        self.reap_after = Instant::now() + self.timings.ttl;
        self.dead.clear();
        if loss != Loss::Lease {
            let peers = std::mem::take(&mut self.peers);
            let knows_all = self.knows_peers;
            self.apply(Event::DataLost {
                peers: &peers,
                knows_all,
            });
            self.peers = peers;
        }
    }

    /// Continues under another name.
    pub fn rename(&mut self, name: Arc<str>) {
        let retired = std::mem::replace(&mut self.name, name);
        // We know of nothing under a name that Redis never answered to. If there is something all the same, it is found
        // like that of any dead node.
        if std::mem::replace(&mut self.is_confirmed, false) {
            self.retired_names.push(retired);
            let surplus = self.retired_names.len().saturating_sub(MAX_RETIRED_NAMES);
            self.retired_names.drain(..surplus);
        }
        self.is_uncertain = false;
        self.apply(Event::Renamed);
    }

    /// Everything this node holds has to be written again.
    pub fn resync(&mut self) {
        self.apply(Event::ResyncRequired);
    }

    /// This node has written everything it holds.
    pub fn wrote_all(&mut self) {
        self.apply(Event::AllWritten { now: Instant::now() });
    }

    /// Ends the recovery when the other nodes are back, or have had the time to be. Returns whether it ended now.
    pub fn end_recovery(&mut self) -> bool {
        let was_recovering = self.state.is_recovering();
        self.apply(Event::Tick { now: Instant::now() });
        was_recovering && !self.state.is_recovering()
    }

    fn note_nodes(&mut self, done: Vec<String>, writing: Vec<String>) {
        if self.state.is_recovering() {
            let (done, writing) = (&done[..], &writing[..]);
            self.apply(Event::NodesSeen { done, writing });
        } else {
            self.peers.clear();
        }
        let first = self.first_answered;
        self.knows_peers |= first.is_some_and(|first| first.elapsed() >= self.timings.reconnect());
        let own = node_of(&self.name);
        let names = done.into_iter().chain(writing);
        self.peers.extend(names.filter(|name| node_of(name) != own));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::presence::redis::timings;

    fn heartbeat(epoch: &str, is_lease_valid: bool, done: &[&str]) -> Heartbeat {
        Heartbeat {
            is_lease_valid,
            epoch: epoch.to_owned(),
            dead: Vec::new(),
            done: done.iter().map(|&name| name.to_owned()).collect(),
            writing: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_loss_is_recognized_and_leads_to_another_name() {
        let timings = timings::testing(Duration::from_secs(60));
        let mut lease = NodeLease::new("a+1".into(), timings);
        let epoch = |epoch: &str| Some(epoch.to_owned());
        assert_eq!(lease.connected(Some("r1".into())), Transition::Resync);
        let first = lease.answered(heartbeat("e1", false, &["a+1", "b+2"]), epoch("e1"));
        assert_eq!(first, None, "a new node has lost nothing");
        assert_eq!(lease.peers, ["b+2".to_owned()].into());

        let silent = lease.answered(heartbeat("e1", false, &["a+1"]), epoch("e1"));
        assert_eq!(silent, Some(Loss::Lease));
        lease.lost(Loss::Lease);
        lease.rename("a+1.1".into());
        assert!(lease.is_retired("a+1") && !lease.state().is_recovering());

        assert_eq!(lease.connected(Some("r1".into())), Transition::Resync);
        lease.unanswered();
        assert_eq!(lease.connected(Some("r1".into())), Transition::Rename);
        lease.rename("a+1.2".into());
        assert!(
            !lease.is_retired("a+1.1"),
            "nothing is under a name without an answer"
        );

        let emptied = lease.answered(heartbeat("e2", false, &["a+1.2"]), epoch("e2"));
        assert_eq!(emptied, Some(Loss::Emptied));
        lease.lost(Loss::Emptied);
        assert!(lease.state().is_rebuilding());
        let restarted = lease.connected(Some("r2".into()));
        assert_eq!(restarted, Transition::Lost(Loss::Restarted));
        assert!(!lease.may_reap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_knows_all_others_when_they_have_had_the_time_to_return() {
        let timings = timings::testing(Duration::from_secs(60));
        let recovers_at_once = async |watched: Duration| {
            let mut lease = NodeLease::new("a+1".into(), timings);
            lease.connected(Some("r1".into()));
            for after in [Duration::ZERO, watched] {
                tokio::time::advance(after).await;
                let is_lease_valid = !after.is_zero();
                let loss = lease.answered(heartbeat("e1", is_lease_valid, &["a+1"]), Some("e1".to_owned()));
                assert_eq!(loss, None);
            }
            lease.lost(Loss::Emptied);
            lease.rename("a+1.1".into());
            lease.wrote_all();
            tokio::time::advance(timings.heartbeat + timings.window).await;
            lease.end_recovery()
        };
        assert!(!recovers_at_once(timings.reconnect() / 2).await);
        assert!(recovers_at_once(timings.reconnect()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_pipeline_without_an_answer_leads_to_another_name() {
        let timings = timings::testing(Duration::from_secs(60));
        let mut lease = NodeLease::new("a+1".into(), timings);
        assert_eq!(lease.connected(None), Transition::Resync);
        lease.unanswered();
        assert_eq!(lease.connected(None), Transition::Rename);
    }
}
