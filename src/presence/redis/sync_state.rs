//! Whether Redis knows everything it should: the states and all transitions between them.
//!
//! | state | this node | next state |
//! | --- | --- | --- |
//! | `Synced` | writes changes | `Resyncing`, if it has to write everything again |
//! | `Resyncing` | writes everything it holds | `Synced` |
//! | `Recovering`, `Rebuilding` | writes everything, the first time since the loss | `Waiting` |
//! | `Recovering`, `Waiting` | has written everything and waits for others | `Synced` at the end, or `Rewriting` |
//! | `Recovering`, `Rewriting` | has to write everything once more | `Waiting`, or `Resyncing` at the end |
//!
//! Lost data leads from every state to `Rebuilding`. A recovery ends when all nodes that were alive before the loss
//! have written everything, or have had the time to ([`RecoveryBarrier::is_over`]), counted from when this node had. If
//! this node has to write once more, that time still counts (`written`), unless it has another name: Redis has nothing
//! under that one yet.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::keys::{node_of, number_of};
use super::timings::Timings;

type Names = HashSet<String>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncState {
    /// Redis has everything this node holds, and is believed.
    Synced,
    /// Everything this node holds is written again.
    Resyncing,
    /// Redis has lost data of all nodes: it is not believed until they have written everything again.
    Recovering(RecoveryBarrier),
}

/// What a recovery waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryBarrier {
    /// Nodes that were alive before and have not written everything again, each with the number of its last name: a node
    /// that is back has a later one. (Under an earlier one something from before the loss was executed late.)
    missing: HashMap<String, u32>,
    /// Whether those are all.
    knows_all: bool,
    /// Some of them are writing.
    is_some_writing: bool,
    progress: Progress,
}

/// How far this node is in a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It writes everything. Its users seem new to Redis, but are not.
    Rebuilding,
    /// It writes everything once more. `written`: when it had, if it still counts.
    Rewriting { written: Option<Instant> },
    /// It has written everything.
    Waiting { written: Instant },
}

pub enum Event<'a> {
    /// Redis may lack something that this node holds.
    ResyncRequired,
    /// This node continues under another name, and has written nothing under it.
    Renamed,
    /// Redis has lost data. The names of the other nodes that were alive before; after another loss during a recovery,
    /// also those that they have had since. `knows_all`: whether there were no others.
    DataLost { peers: &'a Names, knows_all: bool },
    /// Redis names the nodes that are alive and have written everything, and those that are alive and have not.
    NodesSeen {
        done: &'a [String],
        writing: &'a [String],
    },
    /// This node has written everything it holds.
    AllWritten { now: Instant },
    /// Time passes.
    Tick { now: Instant },
}

impl SyncState {
    pub fn is_synced(&self) -> bool {
        *self == Self::Synced
    }

    pub fn must_write_all(&self) -> bool {
        match self {
            Self::Synced => false,
            Self::Resyncing => true,
            Self::Recovering(barrier) => !matches!(barrier.progress, Progress::Waiting { .. }),
        }
    }

    pub fn is_recovering(&self) -> bool {
        matches!(self, Self::Recovering(_))
    }

    /// Whether users who seem new to Redis are not.
    pub fn is_rebuilding(&self) -> bool {
        matches!(self, Self::Recovering(barrier) if barrier.progress == Progress::Rebuilding)
    }

    #[must_use]
    pub fn after(self, event: Event<'_>, timings: &Timings) -> Self {
        match (self, event) {
            (Self::Recovering(barrier), event) => barrier.after(event, timings),
            (_, Event::DataLost { peers, knows_all }) => {
                let mut missing = HashMap::new();
                add_nodes(&mut missing, peers);
                Self::Recovering(RecoveryBarrier::new(missing, knows_all))
            }
            (_, Event::ResyncRequired | Event::Renamed) => Self::Resyncing,
            (_, Event::AllWritten { .. }) => Self::Synced,
            (state, Event::NodesSeen { .. } | Event::Tick { .. }) => state,
        }
    }
}

impl RecoveryBarrier {
    fn new(missing: HashMap<String, u32>, knows_all: bool) -> Self {
        Self {
            missing,
            knows_all,
            is_some_writing: false,
            progress: Progress::Rebuilding,
        }
    }

    fn after(mut self, event: Event<'_>, timings: &Timings) -> SyncState {
        self.progress = match (self.progress, event) {
            // The nodes that were back are not any more.
            (_, Event::DataLost { peers, knows_all }) => {
                add_nodes(&mut self.missing, peers);
                return SyncState::Recovering(Self::new(self.missing, self.knows_all && knows_all));
            }
            (Progress::Waiting { written }, Event::ResyncRequired) => {
                let written = Some(written);
                Progress::Rewriting { written }
            }
            (Progress::Waiting { .. } | Progress::Rewriting { .. }, Event::Renamed) => {
                Progress::Rewriting { written: None }
            }
            (Progress::Rebuilding | Progress::Rewriting { written: None }, Event::AllWritten { now }) => {
                Progress::Waiting { written: now }
            }
            (
                Progress::Rewriting {
                    written: Some(written),
                },
                Event::AllWritten { .. },
            ) => Progress::Waiting { written },
            (Progress::Waiting { written }, Event::Tick { now }) if self.is_over(now - written, timings) => {
                return SyncState::Synced;
            }
            (
                Progress::Rewriting {
                    written: Some(written),
                },
                Event::Tick { now },
            ) if self.is_over(now - written, timings) => return SyncState::Resyncing,
            (progress, Event::NodesSeen { done, writing }) => {
                self.update_missing(done, writing);
                progress
            }
            (
                progress,
                Event::ResyncRequired | Event::Renamed | Event::AllWritten { .. } | Event::Tick { .. },
            ) => progress,
        };
        SyncState::Recovering(self)
    }

    /// Whether the other nodes are back, or have had the time to be, since this one had written everything.
    fn is_over(&self, since_written: Duration, timings: &Timings) -> bool {
        let all_are_back =
            self.knows_all && self.missing.is_empty() && since_written >= timings.heartbeat + timings.window;
        let timeout = match self.is_some_writing {
            true => timings.ttl,
            false => timings.reconnect(),
        };
        all_are_back || since_written >= timeout
    }

    fn update_missing(&mut self, done: &[String], writing: &[String]) {
        let has_later = |names: &[String], node: &str, last: u32| {
            let mut of_node = names.iter().filter(|name| node_of(name) == node);
            of_node.any(|name| number_of(name) > last)
        };
        self.is_some_writing = false;
        self.missing.retain(|node, last| {
            let is_writing = has_later(writing, node, *last);
            self.is_some_writing |= is_writing;
            is_writing || !has_later(done, node, *last)
        });
    }
}

fn add_nodes(nodes: &mut HashMap<String, u32>, names: &Names) {
    for name in names {
        let last = nodes.entry(node_of(name).to_owned()).or_default();
        *last = number_of(name).max(*last);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::presence::redis::timings;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn peers(of: &[&str]) -> Names {
        names(of).into_iter().collect()
    }

    fn timings() -> Timings {
        timings::testing(Duration::from_secs(60))
    }

    fn lost(peers: &Names) -> Event<'_> {
        let knows_all = true;
        Event::DataLost { peers, knows_all }
    }

    #[test]
    fn a_resync_ends_when_everything_is_written() {
        let (timings, now) = (timings(), Instant::now());
        let state = SyncState::Synced.after(Event::ResyncRequired, &timings);
        assert_eq!(state, SyncState::Resyncing);
        let state = state.after(Event::Tick { now }, &timings);
        assert_eq!(state, SyncState::Resyncing);
        assert_eq!(
            state.after(Event::AllWritten { now }, &timings),
            SyncState::Synced
        );
    }

    #[test]
    fn a_recovery_ends_when_all_nodes_have_written_or_have_had_the_time_to() {
        let (timings, start) = (timings(), Instant::now());
        let tick =
            |state: SyncState, after: Duration| state.after(Event::Tick { now: start + after }, &timings);
        let seen = |state: SyncState, done: &[&str], writing: &[&str]| {
            let (done, writing) = (names(done), names(writing));
            let (done, writing) = (&done[..], &writing[..]);
            state.after(Event::NodesSeen { done, writing }, &timings)
        };
        let before = &peers(&["b+2", "c+3.4"]);
        let after_loss = || SyncState::Synced.after(lost(before), &timings);
        let state = tick(after_loss(), Duration::from_secs(100));
        assert!(state.is_recovering(), "this node has not written");
        let state = state.after(Event::AllWritten { now: start }, &timings);
        let state = seen(state, &["b+2", "c+3.4"], &[]);
        let state = tick(state, Duration::from_secs(2));
        assert!(state.is_recovering(), "old names are no sign of life");
        let state = seen(state, &["b+2", "c+3.3"], &[]);
        let state = tick(state, Duration::from_secs(2));
        assert!(state.is_recovering(), "nor are names from before those");
        let state = seen(state, &["b+2.1", "c+3.4"], &["c+3.5"]);
        let state = tick(state, 2 * timings.reconnect());
        assert!(state.is_recovering(), "one is about to write");
        let state = seen(state, &["b+2.1", "c+3.5"], &[]);
        assert_eq!(tick(state, Duration::from_secs(2)), SyncState::Synced);

        let state = after_loss().after(Event::AllWritten { now: start }, &timings);
        let state = tick(state, timings.reconnect());
        assert_eq!(state, SyncState::Synced, "they may be dead");
    }

    #[test]
    fn nodes_that_are_not_known_have_the_time_to_return() {
        let (timings, start) = (timings(), Instant::now());
        let nobody = &peers(&[]);
        let with_unknown = |state: SyncState| {
            let knows_all = false;
            let event = Event::DataLost {
                peers: nobody,
                knows_all,
            };
            state.after(event, &timings)
        };
        let is_over = |state: SyncState, after: Duration| {
            let state = state.after(Event::AllWritten { now: start }, &timings);
            let now = start + after;
            !state.after(Event::Tick { now }, &timings).is_recovering()
        };
        let at_once = timings.heartbeat + timings.window;
        let known = SyncState::Synced.after(lost(nobody), &timings);
        assert!(is_over(known.clone(), at_once));
        let cases = [
            with_unknown(SyncState::Synced),
            with_unknown(known),
            with_unknown(SyncState::Synced).after(lost(nobody), &timings),
        ];
        for state in cases {
            assert!(!is_over(state.clone(), at_once), "{state:?}");
            assert!(is_over(state, timings.reconnect()));
        }
    }

    #[test]
    fn after_another_loss_the_nodes_from_before_the_first_are_waited_for() {
        let (timings, now) = (timings(), Instant::now());
        let before = peers(&["b+2"]);
        let state = SyncState::Synced.after(lost(&before), &timings);
        let state = state.after(Event::AllWritten { now }, &timings);
        let nobody = peers(&[]);
        let again = state.after(lost(&nobody), &timings);
        assert!(again.is_rebuilding());
        let again = again.after(Event::AllWritten { now }, &timings);
        let now = now + timings.heartbeat + timings.window;
        assert!(again.after(Event::Tick { now }, &timings).is_recovering());
    }

    #[test]
    fn after_another_loss_nodes_that_were_back_are_waited_for_again() {
        let (timings, start) = (timings(), Instant::now());
        let written = |state: SyncState, peers: &Names| {
            let state = state.after(lost(peers), &timings);
            state.after(Event::AllWritten { now: start }, &timings)
        };
        let seen = |state: SyncState, name: &str| {
            let (done, writing) = (&names(&[name])[..], &[][..]);
            let state = state.after(Event::NodesSeen { done, writing }, &timings);
            let now = start + timings.heartbeat + timings.window;
            state.clone().after(Event::Tick { now }, &timings).is_recovering()
        };
        let state = written(SyncState::Synced, &peers(&["b+2"]));
        let state = state.after(
            Event::NodesSeen {
                done: &names(&["b+2.1"]),
                writing: &[],
            },
            &timings,
        );
        let state = written(state, &peers(&["b+2", "b+2.1"]));
        assert!(seen(state.clone(), "b+2.1"), "it is not back under its old name");
        assert!(!seen(state, "b+2.2"));
    }

    /// What happens to a node, and how long after the event before.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Resync,
        Rename,
        Lose,
        /// There may be a node that is not known.
        LoseEarly,
        PeerWrites,
        PeerIsBack,
        PeerIsAway,
        Write,
        Tick,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => Just(Step::Resync),
            1 => Just(Step::Rename),
            1 => Just(Step::Lose),
            1 => Just(Step::LoseEarly),
            1 => Just(Step::PeerWrites),
            1 => Just(Step::PeerIsBack),
            1 => Just(Step::PeerIsAway),
            3 => Just(Step::Write),
            3 => Just(Step::Tick),
        ]
    }

    proptest! {
        /// The rules, stated by what has happened and not by states: a resync lasts until everything is written, a
        /// recovery until, in addition, the peer is back or has had the time to be.
        #[test]
        fn states_follow_from_what_has_happened(steps in prop::collection::vec((step(), 0u64..9_000), 1..80)) {
            let timings = timings();
            let known = peers(&["b+2"]);
            let (mut state, mut now) = (SyncState::Resyncing, Instant::now());
            let (mut must_write, mut is_new_to_redis, mut is_recovering) = (true, false, false);
            let (mut is_peer_missing, mut is_peer_writing, mut is_other_missing) = (false, false, false);
            let mut written = None;
            for (step, ms) in steps {
                now += Duration::from_millis(ms);
                let (mut done, mut writing) = (Vec::new(), Vec::new());
                match step {
                    Step::PeerIsBack => done = names(&["a+1", "b+2.1"]),
                    Step::PeerWrites => writing = names(&["b+2.1"]),
                    _ => done = names(&["b+2"]),
                }
                let event = match step {
                    Step::Resync => Event::ResyncRequired,
                    Step::Rename => Event::Renamed,
                    Step::Lose => lost(&known),
                    Step::LoseEarly => Event::DataLost { peers: &known, knows_all: false },
                    Step::PeerWrites | Step::PeerIsBack | Step::PeerIsAway => {
                        Event::NodesSeen { done: &done, writing: &writing }
                    }
                    Step::Write => Event::AllWritten { now },
                    Step::Tick => Event::Tick { now },
                };
                state = state.after(event, &timings);
                match step {
                    Step::Resync => must_write = true,
                    Step::Rename => (must_write, written) = (true, None),
                    Step::Lose | Step::LoseEarly => {
                        is_peer_missing = true;
                        is_other_missing |= matches!(step, Step::LoseEarly);
                        (must_write, is_new_to_redis, is_recovering) = (true, true, true);
                        (is_peer_writing, written) = (false, None);
                    }
                    Step::PeerWrites => is_peer_writing = is_peer_missing,
                    Step::PeerIsBack => (is_peer_missing, is_peer_writing) = (false, false),
                    Step::PeerIsAway => is_peer_writing = false,
                    Step::Write => {
                        (must_write, is_new_to_redis) = (false, false);
                        written = written.or(Some(now));
                    }
                    Step::Tick => {
                        let since = written.map(|written| now - written).unwrap_or_default();
                        let least = timings.heartbeat + timings.window;
                        let most = if is_peer_writing { timings.ttl } else { timings.reconnect() };
                        let is_over = !is_peer_missing && !is_other_missing && since >= least || since >= most;
                        if is_recovering && is_over {
                            (is_recovering, is_peer_missing, is_peer_writing) = (false, false, false);
                        }
                    }
                }
                if !is_recovering {
                    written = None;
                    (is_peer_missing, is_peer_writing, is_other_missing) = (false, false, false);
                }
                prop_assert_eq!(state.must_write_all(), must_write);
                prop_assert_eq!(state.is_rebuilding(), is_new_to_redis);
                prop_assert_eq!(state.is_recovering(), is_recovering);
            }
        }
    }
}
