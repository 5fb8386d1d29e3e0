//! Which queries are complete.

use std::collections::HashMap;

/// The offsets up to which each query wants the partitions.
#[derive(Default)]
pub(super) struct Ends {
    /// Of each partition, with the queries, the first one last.
    by_partition: HashMap<i32, Vec<(i64, usize)>>,
    /// How many partitions each query has yet to reach the end of.
    left: HashMap<usize, usize>,
}

impl Ends {
    pub fn add(&mut self, query: usize, ends: impl Iterator<Item = (i32, i64)>) {
        let left = self.left.entry(query).or_default();
        for (partition, end) in ends {
            self.by_partition.entry(partition).or_default().push((end, query));
            *left += 1;
        }
    }

    /// After all are added.
    pub fn sort(&mut self) {
        for ends in self.by_partition.values_mut() {
            ends.sort_unstable_by(|one, other| other.cmp(one));
        }
    }

    pub fn is_complete(&self, query: usize) -> bool {
        self.left.get(&query).is_none_or(|&left| left == 0)
    }

    /// Those that want nothing.
    pub fn complete(&self) -> Vec<usize> {
        let queries = self.left.keys().copied();
        queries.filter(|&query| self.is_complete(query)).collect()
    }

    /// One of the queries whose end of a partition is reached, each once.
    pub fn reached(&mut self, partition: i32, next: i64) -> Option<usize> {
        let ends = self.by_partition.get_mut(&partition)?;
        let (_, query) = ends.pop_if(|(end, _)| *end <= next)?;
        if let Some(left) = self.left.get_mut(&query) {
            *left -= 1;
        }
        Some(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_complete_once_all_its_partitions_are_read() {
        let mut ends = Ends::default();
        ends.add(0, [(0, 10), (1, 5)].into_iter());
        ends.add(1, [(0, 7)].into_iter());
        ends.add(2, std::iter::empty());
        ends.add(3, [(0, 10)].into_iter());
        ends.sort();
        assert_eq!(ends.complete(), [2]);
        assert_eq!(ends.reached(0, 6), None);
        assert_eq!(ends.reached(0, 9), Some(1));
        assert!(ends.is_complete(1) && !ends.is_complete(0));
        assert_eq!((ends.reached(0, 9), ends.reached(2, 9)), (None, None));
        let mut reached = [ends.reached(0, 12).unwrap(), ends.reached(0, 12).unwrap()];
        reached.sort_unstable();
        assert_eq!(reached, [0, 3]);
        assert!(ends.is_complete(3) && !ends.is_complete(0));
        assert_eq!((ends.reached(1, 5), ends.is_complete(0)), (Some(0), true));
    }
}
