//! Nodes that die and return: the effect on the distribution of connections and of partitions read.
//!
//! Connections are a quantity here, not individuals. Of each partition's, a part ends in each step and as many come
//! anew, to the node that owns the partition then; those of a node that died come to the new owner at once. A node
//! reads a partition as long as it has a session of it, so after a node has come back, another goes on reading what it
//! had taken over until the last of those sessions ends.

use super::partitions::{Assignment, Load};

/// Steps per mean lifetime of a connection.
const STEPS: f64 = 10.0;

#[derive(Clone, Copy)]
pub struct Churn {
    pub nodes: usize,
    pub assignment: Assignment,
    /// How many nodes die, one after the other.
    pub losses: usize,
    /// How long each is away, and how long all are there before the next dies, in mean stays of a connection.
    pub away: f64,
    pub between: f64,
    /// Sessions in all.
    pub sessions: f64,
    pub seed: u64,
}

/// Loads are multiples of the mean, over all nodes, one that is away too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// The busiest node's connections, with all nodes alive and nothing moved yet.
    pub steady: f64,
    /// The same, the worst of all times.
    pub worst: f64,
    /// The worst node's records: of all that it reads, and of those for sessions that it has.
    pub worst_read: f64,
    /// How many nodes read a record, on average.
    pub readers: f64,
    /// The share of the partitions that a loss moves to another node, on average.
    pub moved: f64,
    /// The most connections that one node is given at once when another dies, of all there are.
    pub worst_takeover: f64,
}

/// A node's share of a partition's connections.
struct Holding {
    node: usize,
    share: f64,
}

struct Cluster<'a> {
    churn: Churn,
    loads: &'a [Load],
    alive: Vec<bool>,
    owners: Vec<usize>,
    holdings: Vec<Vec<Holding>>,
}

pub fn simulate(churn: Churn, loads: &[Load]) -> Outcome {
    let mut random = fastrand::Rng::with_seed(churn.seed);
    let mut cluster = Cluster::new(churn, loads);
    let mut outcome = Outcome::default();
    let mut readers = Vec::new();
    outcome.steady = cluster.look(&mut outcome, &mut readers);
    for _ in 0..churn.losses {
        let lost = random.usize(..churn.nodes);
        let moved = cluster.set_alive(lost, false);
        outcome.moved += moved / churn.losses as f64;
        outcome.worst_takeover = outcome.worst_takeover.max(cluster.take_over(lost));
        cluster.pass(churn.away, &mut outcome, &mut readers);
        cluster.set_alive(lost, true);
        cluster.pass(churn.between, &mut outcome, &mut readers);
    }
    outcome.readers = readers.iter().sum::<f64>() / readers.len() as f64;
    outcome
}

impl<'a> Cluster<'a> {
    fn new(churn: Churn, loads: &'a [Load]) -> Self {
        let alive = vec![true; churn.nodes];
        let owners = churn.assignment.owners(loads.len(), &alive);
        let holdings = owners.iter().map(|&node| vec![Holding { node, share: 1.0 }]);
        Self {
            churn,
            loads,
            holdings: holdings.collect(),
            alive,
            owners,
        }
    }

    /// Returns the share of the partitions that have another owner now.
    fn set_alive(&mut self, node: usize, is_alive: bool) -> f64 {
        self.alive[node] = is_alive;
        let owners = self.churn.assignment.owners(self.loads.len(), &self.alive);
        let moved = owners.iter().zip(&self.owners).filter(|(new, old)| new != old);
        let moved = moved.count() as f64 / owners.len() as f64;
        self.owners = owners;
        moved
    }

    /// The connections of a node that died go where new ones go. Gives the most that one node gets.
    fn take_over(&mut self, lost: usize) -> f64 {
        let mut taken = vec![0.0; self.churn.nodes];
        for (at, holdings) in self.holdings.iter_mut().enumerate() {
            let Some(position) = holdings.iter().position(|holding| holding.node == lost) else {
                continue;
            };
            let share = holdings.swap_remove(position).share;
            taken[self.owners[at]] += self.loads[at].connections * share;
            give(holdings, self.owners[at], share);
        }
        taken.into_iter().fold(0.0, f64::max)
    }

    /// This many mean lifetimes.
    fn pass(&mut self, stays: f64, outcome: &mut Outcome, readers: &mut Vec<f64>) {
        self.look(outcome, readers);
        for _ in 0..(stays * STEPS).ceil() as usize {
            self.step();
            self.look(outcome, readers);
        }
    }

    fn step(&mut self) {
        let stays = (-1.0 / STEPS).exp();
        for (at, holdings) in self.holdings.iter_mut().enumerate() {
            let owner = self.owners[at];
            let sessions = self.loads[at].sessions * self.churn.sessions;
            let mut ended = 0.0;
            holdings.retain_mut(|holding| {
                let before = holding.share;
                holding.share *= stays;
                // Less than a session: the last one has ended.
                if holding.node != owner && holding.share * sessions < 1.0 {
                    holding.share = 0.0;
                }
                ended += before - holding.share;
                holding.share > 0.0
            });
            give(holdings, owner, ended);
        }
    }

    /// Notes new maxima; returns the busiest node's connections.
    fn look(&self, outcome: &mut Outcome, readers: &mut Vec<f64>) -> f64 {
        let nodes = self.churn.nodes;
        let (mut connections, mut read) = (vec![0.0; nodes], vec![0.0; nodes]);
        for (load, holdings) in self.loads.iter().zip(&self.holdings) {
            for holding in holdings {
                connections[holding.node] += load.connections * holding.share;
                read[holding.node] += load.sessions;
            }
        }
        let worst = |of: &[f64]| of.iter().copied().fold(0.0, f64::max) * nodes as f64;
        outcome.worst = outcome.worst.max(worst(&connections));
        outcome.worst_read = outcome.worst_read.max(worst(&read));
        readers.push(read.iter().sum());
        worst(&connections)
    }
}

fn give(holdings: &mut Vec<Holding>, node: usize, share: f64) {
    match holdings.iter_mut().find(|holding| holding.node == node) {
        Some(holding) => holding.share += share,
        None => holdings.push(Holding { node, share }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All partitions alike.
    fn even(partitions: usize) -> Vec<Load> {
        let share = 1.0 / partitions as f64;
        vec![
            Load {
                connections: share,
                sessions: share
            };
            partitions
        ]
    }

    fn churn(nodes: usize) -> Churn {
        Churn {
            nodes,
            assignment: Assignment::Bounded(1.0),
            losses: 10,
            away: 0.2,
            between: 3.0,
            sessions: 100_000.0,
            seed: 1,
        }
    }

    #[test]
    fn without_losses_nothing_moves_and_each_record_is_read_once() {
        let still = Churn {
            losses: 0,
            ..churn(16)
        };
        let outcome = simulate(still, &even(256));
        assert!((outcome.steady - 1.0).abs() < 1e-9, "{outcome:?}");
        assert!((outcome.worst - 1.0).abs() < 1e-9 && (outcome.readers - 1.0).abs() < 1e-9);
        assert_eq!((outcome.moved, outcome.worst_takeover), (0.0, 0.0));
    }

    #[test]
    fn connections_are_conserved_whatever_happens() {
        let loads = even(256);
        let mut cluster = Cluster::new(churn(16), &loads);
        let (mut outcome, mut readers) = (Outcome::default(), Vec::new());
        for lost in [3, 7, 3] {
            cluster.set_alive(lost, false);
            cluster.take_over(lost);
            cluster.pass(0.5, &mut outcome, &mut readers);
            for holdings in &cluster.holdings {
                let total: f64 = holdings.iter().map(|holding| holding.share).sum();
                assert!((total - 1.0).abs() < 1e-9);
                assert!(holdings.iter().all(|holding| holding.node != lost));
            }
            cluster.set_alive(lost, true);
            cluster.pass(2.0, &mut outcome, &mut readers);
        }
    }

    #[test]
    fn a_loss_moves_about_a_node_and_is_forgotten_in_time() {
        let outcome = simulate(churn(16), &even(256));
        assert!((1.0..3.0).contains(&(outcome.moved * 16.0)), "{outcome:?}");
        assert!((1.0..2.0).contains(&outcome.readers), "{outcome:?}");
        assert!(outcome.worst > 1.0 && outcome.worst < 1.5, "{outcome:?}");
        let loads = even(256);
        let mut cluster = Cluster::new(churn(16), &loads);
        cluster.set_alive(3, false);
        cluster.take_over(3);
        cluster.set_alive(3, true);
        // 390 sessions in a partition: e^-6 of them is less than one.
        cluster.pass(7.0, &mut Outcome::default(), &mut Vec::new());
        assert!(cluster.holdings.iter().all(|holdings| holdings.len() == 1));
    }

    #[test]
    fn the_same_seed_gives_the_same() {
        let (loads, of) = (even(128), |seed| Churn { seed, ..churn(12) });
        let text = |seed| format!("{:?}", simulate(of(seed), &loads));
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
