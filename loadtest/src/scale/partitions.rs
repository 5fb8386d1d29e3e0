//! Sessions in partitions, as Kafka's Java client puts them there, and partitions on nodes, as a load balancer would.

use std::ops::AddAssign;

/// Kafka's murmur2 over a key.
pub fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition of a session's records.
pub fn partition_of(session: &str, partitions: usize) -> usize {
    (murmur2(session.as_bytes()) & 0x7fff_ffff) as usize % partitions
}

/// A partition's shares; each kind adds up to 1 over all partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Of the connections, and so of the deliveries.
    pub connections: f64,
    /// Of the sessions, and so of the records.
    pub sessions: f64,
}

impl AddAssign for Load {
    fn add_assign(&mut self, more: Self) {
        self.connections += more.connections;
        self.sessions += more.sessions;
    }
}

impl Load {
    pub fn times(self, share: f64) -> Self {
        Self {
            connections: self.connections * share,
            sessions: self.sessions * share,
        }
    }
}

/// How many connections sessions have, in multiples of the smallest: up to `largest`, and the more of the large ones
/// the smaller `tail` is (a Pareto distribution).
#[derive(Clone, Copy)]
pub struct Sizes {
    pub tail: f64,
    pub largest: f64,
}

impl Sizes {
    fn draw(self, random: &mut fastrand::Rng) -> f64 {
        let beyond = self.largest.powf(-self.tail);
        (1.0 - random.f64() * (1.0 - beyond)).powf(-1.0 / self.tail)
    }
}

/// Draws sessions, and adds up each partition's shares.
pub fn loads(sessions: usize, partitions: usize, sizes: Sizes, random: &mut fastrand::Rng) -> Vec<Load> {
    let mut loads = vec![Load::default(); partitions];
    let mut total = 0.0;
    for _ in 0..sessions {
        let size = sizes.draw(random);
        total += size;
        let load = Load {
            connections: size,
            sessions: 1.0,
        };
        loads[partition_of(&uuid(random), partitions)] += load;
    }
    for load in &mut loads {
        load.connections /= total;
        load.sessions /= sessions as f64;
    }
    loads
}

fn uuid(random: &mut fastrand::Rng) -> String {
    let bits = random.u128(..);
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        (bits >> 96) as u32,
        (bits >> 80) as u16,
        (bits >> 64) & 0xfff,
        (bits >> 52) & 0xfff,
        bits & 0xffff_ffff_ffff
    )
}

/// Which node gets the connections of a partition's sessions: from the names of the nodes that are there alone, so that
/// every load balancer has the same answer without asking anyone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Assignment {
    /// Each partition to the node for which the hash of both is highest.
    Rendezvous,
    /// The same, but no node gets more than this many times its share: further partitions go to their next best node.
    Bounded(f64),
}

impl Assignment {
    /// The node of each partition; `alive` lists the available nodes by number.
    pub fn owners(self, partitions: usize, alive: &[bool]) -> Vec<usize> {
        let nodes: Vec<usize> = (0..alive.len()).filter(|node| alive[*node]).collect();
        let part = partitions as f64 / nodes.len() as f64;
        let most = match self {
            Self::Rendezvous => partitions,
            Self::Bounded(factor) => (part * factor).ceil() as usize,
        };
        let mut held = vec![0; alive.len()];
        let owner = |partition: usize| {
            let free = nodes.iter().copied().filter(|node| held[*node] < most);
            // There is always one: all together may hold at least all partitions.
            let best = free
                .max_by_key(|node| score(partition, *node))
                .unwrap_or(nodes[0]);
            held[best] += 1;
            best
        };
        (0..partitions).map(owner).collect()
    }
}

/// A good mix of both numbers (splitmix64's).
fn score(partition: usize, node: usize) -> u64 {
    let mut mixed = ((partition as u64) << 32 | node as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    for multiplier in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        mixed = (mixed ^ (mixed >> 29)).wrapping_mul(multiplier);
    }
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Assignment; 2] = [Assignment::Rendezvous, Assignment::Bounded(1.1)];

    /// Values that Kafka's own tests have.
    #[test]
    fn murmur2_is_kafkas() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn doubled_partitions_split_each_in_two() {
        for number in 0..1_000 {
            let session = format!("s{number}");
            assert_eq!(partition_of(&session, 64) % 32, partition_of(&session, 32));
        }
    }

    #[test]
    fn loads_are_shares_of_one_and_follow_the_seed() {
        let sizes = Sizes {
            tail: 1.5,
            largest: 1_000.0,
        };
        let draw = |seed| loads(20_000, 64, sizes, &mut fastrand::Rng::with_seed(seed));
        let total = draw(1).into_iter().fold(Load::default(), |mut sum, load| {
            sum += load;
            sum
        });
        assert!((total.connections - 1.0).abs() < 1e-9 && (total.sessions - 1.0).abs() < 1e-9);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn sizes_stay_within_their_bounds_and_have_the_mean_of_their_distribution() {
        let sizes = Sizes {
            tail: 2.0,
            largest: 100.0,
        };
        let mut random = fastrand::Rng::with_seed(1);
        let drawn: Vec<f64> = (0..200_000).map(|_| sizes.draw(&mut random)).collect();
        assert!(drawn.iter().all(|size| (1.0..=100.0).contains(size)));
        // Bounded Pareto with tail 2: 2 x (1 - 1/100) / (1 - 1/100^2).
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        assert!((mean - 1.98).abs() < 0.04, "{mean}");
    }

    #[test]
    fn a_lost_node_moves_about_its_own_part() {
        let (partitions, nodes) = (1_024, 32);
        for assignment in BOTH {
            let mut alive = vec![true; nodes];
            let before = assignment.owners(partitions, &alive);
            alive[5] = false;
            let after = assignment.owners(partitions, &alive);
            assert!(!after.contains(&5));
            let moved = (0..partitions).filter(|at| before[*at] != after[*at]).count();
            let own = before.iter().filter(|owner| **owner == 5).count();
            match assignment {
                // Only the node's own partitions.
                Assignment::Rendezvous => assert_eq!(moved, own),
                // Its partitions displace some others.
                Assignment::Bounded(_) => assert!((own..3 * partitions / nodes).contains(&moved), "{moved}"),
            }
            let part = partitions as f64 / nodes as f64;
            assert!((0.4..2.0).contains(&(own as f64 / part)), "{own} of {part}");
            alive[5] = true;
            assert_eq!(assignment.owners(partitions, &alive), before, "it comes back");
        }
    }

    #[test]
    fn a_bound_holds_also_where_it_is_tight() {
        for (partitions, nodes, most) in [(512, 50, 11), (64, 64, 1), (7, 3, 3)] {
            let owners = Assignment::Bounded(1.0).owners(partitions, &vec![true; nodes]);
            for node in 0..nodes {
                assert!(owners.iter().filter(|owner| **owner == node).count() <= most);
            }
        }
    }
}
