//! Schedules that have failed, each with its cause.

use super::simulated_link::Fault;
use super::{Step, simulate};

/// A node starts right after a loss of data, and has not seen the node that is away when there is another loss: that
/// node's users, whom a pipeline of before the other loss has shown to its clients, have not left.
#[test]
fn a_node_that_has_just_started_does_not_know_who_is_missing_after_a_loss() {
    let node = 0;
    let slow = vec![Fault::Delayed(2251), Fault::LostRequest];
    let slower = vec![
        Fault::FlushedWithin,
        Fault::LostRequest,
        Fault::Delayed(2501),
        Fault::LostRequest,
    ];
    let faults = [slow, slower].concat();
    let lost = vec![Fault::LostRequest];
    simulate(vec![
        Step::Kill { node: 1 },
        Step::Disturb { node, faults },
        Step::EmptyRedis,
        Step::Start { node: 1 },
        Step::Sleep { node: 2, turns: 10 },
        Step::Wait { turns: 10 },
        Step::EmptyRedis,
        Step::Disturb { node, faults: lost },
        Step::Wait { turns: 6 },
    ]);
}

/// Node 1's last heartbeat from before a loss is executed after it, under a name that node 0 has not seen: node 1 has
/// not written its users again.
#[test]
fn a_heartbeat_from_before_a_loss_does_not_count_as_everything_written() {
    let node = 1;
    let mut away = vec![Fault::LostRequest; 4];
    away.insert(0, Fault::Delayed(750));
    simulate(vec![
        // Until the nodes know each other, and have just renewed their leases.
        Step::Wait { turns: 24 },
        // It has another name after a heartbeat without an answer. Node 0's next heartbeat is 1 s later.
        Step::Disturb {
            node,
            faults: vec![Fault::LostAnswer],
        },
        Step::Wait { turns: 2 },
        Step::Join {
            node,
            session: 0,
            guest: 0,
        },
        Step::Disturb { node, faults: away },
        Step::Wait { turns: 1 },
        Step::EmptyRedis,
        Step::Wait { turns: 20 },
    ]);
}

/// The first pipeline of a node is executed only when Redis has answered the node's next one, and a user has left in
/// between.
#[test]
fn the_first_pipeline_of_a_node_does_not_bring_back_a_user_who_has_left() {
    let node = 0;
    simulate(vec![
        Step::Kill { node },
        Step::Start { node },
        Step::Join {
            node,
            session: 0,
            guest: 0,
        },
        Step::Disturb {
            node,
            faults: vec![Fault::Delayed(1001)],
        },
        Step::Wait { turns: 1 },
        Step::Leave {
            node,
            session: 0,
            guest: 0,
        },
        Step::Wait { turns: 8 },
    ]);
}

/// Under one of node 1's retired names a heartbeat is executed late, after a loss that node 1 notices later than node 0:
/// node 1 has not written its users again.
#[test]
fn a_late_heartbeat_under_a_retired_name_does_not_count_as_everything_written() {
    let join = || Step::Join {
        node: 0,
        session: 0,
        guest: 0,
    };
    let disturb = |faults| Step::Disturb { node: 1, faults };
    simulate(vec![
        Step::Wait { turns: 10 },
        join(),
        disturb(vec![Fault::Delayed(4251)]),
        Step::Wait { turns: 3 },
        join(),
        Step::EmptyRedis,
        Step::Wait { turns: 15 },
        Step::EmptyRedis,
        disturb(vec![Fault::Repeated, Fault::LostRequest, Fault::LostRequest]),
        Step::Wait { turns: 7 },
    ]);
}

/// Node 0 is back after its lease has ended, and node 1 can't reach Redis until after the next loss: it does not know
/// that it has to wait for node 0. See `World::is_on_known_node`.
#[test]
fn a_node_that_came_back_unseen_is_not_waited_for() {
    let join = |node| Step::Join {
        node,
        session: 1,
        guest: 1,
    };
    let disturb = |node, times| Step::Disturb {
        node,
        faults: vec![Fault::LostRequest; times],
    };
    simulate(vec![
        Step::Wait { turns: 2 },
        join(1),
        join(0),
        Step::Kill { node: 2 },
        Step::RestartRedis,
        Step::Sleep { node: 0, turns: 34 },
        disturb(1, 1),
        Step::Wait { turns: 10 },
        disturb(0, 2),
        Step::Wait { turns: 31 },
        disturb(1, 4),
        Step::Wait { turns: 13 },
        Step::Sleep { node: 0, turns: 7 },
        Step::EmptyRedis,
        Step::Leave {
            node: 1,
            session: 1,
            guest: 1,
        },
        Step::Wait { turns: 6 },
    ]);
}
