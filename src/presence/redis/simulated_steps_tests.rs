//! What may happen in the simulation.

use proptest::prelude::*;

use super::simulated_link::Fault;
use super::simulated_redis::Session;

pub const NODES: usize = 3;
pub const SESSIONS: usize = 2;
/// Users who come and go; besides, each session has one user per node who stays as long as the node lives.
pub const GUESTS: usize = 3;

#[derive(Clone, Debug)]
pub enum Step {
    Wait {
        turns: usize,
    },
    Join {
        node: usize,
        session: Session,
        guest: usize,
    },
    Leave {
        node: usize,
        session: Session,
        guest: usize,
    },
    Disturb {
        node: usize,
        faults: Vec<Fault>,
    },
    EmptyRedis,
    RestartRedis,
    LoseKeys {
        node: usize,
    },
    Kill {
        node: usize,
    },
    Start {
        node: usize,
    },
    Sleep {
        node: usize,
        turns: usize,
    },
}

/// A random schedule.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || 0..NODES;
    let guest = || (0..NODES, 0..SESSIONS, 0..GUESTS);
    let fault = prop_oneof![
        Just(Fault::LostRequest),
        Just(Fault::LostAnswer),
        (1u64..10_000).prop_map(Fault::Delayed),
        Just(Fault::Repeated),
        Just(Fault::FlushedWithin),
    ];
    let faults = prop::collection::vec(fault, 1..6);
    let step = prop_oneof![
        8 => (1usize..16).prop_map(|turns| Step::Wait { turns }),
        6 => guest().prop_map(|(node, session, guest)| Step::Join { node, session, guest }),
        6 => guest().prop_map(|(node, session, guest)| Step::Leave { node, session, guest }),
        6 => (node(), faults).prop_map(|(node, faults)| Step::Disturb { node, faults }),
        2 => Just(Step::EmptyRedis),
        1 => Just(Step::RestartRedis),
        1 => node().prop_map(|node| Step::LoseKeys { node }),
        1 => node().prop_map(|node| Step::Kill { node }),
        2 => node().prop_map(|node| Step::Start { node }),
        1 => (node(), 1usize..40).prop_map(|(node, turns)| Step::Sleep { node, turns }),
    ];
    prop::collection::vec(step, 1..60)
}
