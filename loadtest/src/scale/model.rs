//! A node's share of a cluster's work, computed from costs measured on one node.

use super::churn::Outcome;

/// Bits and pieces of a second, in microseconds.
const SECOND_US: f64 = 1e6;

/// Costs of a node. `bus` is the part that falls on a bus thread.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Per delivery, without reading its record. All of it falls on the bus thread.
    pub delivery_us: f64,
    /// Per message record read, whichever session it belongs to.
    pub record: Cost,
    /// The same for records of typing and status.
    pub side: Cost,
    /// For each fetch.
    pub fetch: Cost,
    /// Fetches a second from one broker by one bus thread, at most: where there are more records, a fetch has more of
    /// them.
    pub fetches: f64,
    pub connect_us: f64,
    pub connection_kib: f64,
    pub base_mib: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub us: f64,
    pub bus_us: f64,
}

/// The cluster's work per second.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    pub connections: f64,
    pub sessions: f64,
    pub deliveries: f64,
    /// Deliveries of a message.
    pub fan_out: f64,
    /// Records of sessions without connections, per record of a session with connections.
    pub unheard: f64,
    /// Typing records for each message.
    pub typing: f64,
    pub connects: f64,
    pub payload: f64,
    /// What a record is longer than the payload, in a fetch; what a frame is, on the wire.
    pub record_overhead: f64,
    pub frame_overhead: f64,
}

impl Demand {
    /// Messages of sessions with connections.
    pub fn messages(&self) -> f64 {
        self.deliveries / self.fan_out
    }

    /// All records of messages.
    pub fn records(&self) -> f64 {
        self.messages() * (1.0 + self.unheard)
    }

    /// Typing, and a status record for each that comes and goes.
    pub fn side_records(&self) -> f64 {
        self.messages() * self.typing + 2.0 * self.connects
    }

    /// The same, this many times as large.
    pub fn times(&self, factor: f64) -> Self {
        Self {
            connections: self.connections * factor,
            sessions: self.sessions * factor,
            deliveries: self.deliveries * factor,
            connects: self.connects * factor,
            ..*self
        }
    }
}

/// The resources.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    pub cores: f64,
    /// Threads of a node that read and deliver, each a part of the partitions; livechat-ws has one.
    pub bus_threads: f64,
    /// The share of it that may be used.
    pub utilisation: f64,
    /// Bytes a second, each way.
    pub nic: f64,
    pub brokers: f64,
    pub partitions: usize,
}

/// The busiest node's shares of the cluster's work.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Of connections and deliveries.
    pub connections: f64,
    /// Of the records it reads.
    pub reads: f64,
    /// How many nodes read each record.
    pub readers: f64,
}

impl Part {
    /// Every node reads everything, and connections are spread evenly, with one node down.
    pub fn everything(nodes: usize) -> Self {
        Self {
            connections: 1.0 / (nodes as f64 - 1.0),
            reads: 1.0,
            readers: nodes as f64,
        }
    }

    pub fn affine(nodes: usize, outcome: &Outcome) -> Self {
        Self {
            connections: outcome.worst / nodes as f64,
            reads: (outcome.worst_read / nodes as f64).min(1.0),
            readers: outcome.readers,
        }
    }
}

/// What the busiest node uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Of the bus's threads together.
    pub bus: f64,
    /// The part of it for records of sessions that the node does not have.
    pub foreign: f64,
    /// Cores, the bus's thread among them.
    pub cpu: f64,
    pub memory_mib: f64,
    /// Bytes a second from Kafka, and to clients.
    pub bytes_in: f64,
    pub bytes_out: f64,
    /// Bytes a second that leave Kafka for all nodes.
    pub egress: f64,
}

pub struct Model {
    pub costs: Costs,
    pub demand: Demand,
    pub hardware: Hardware,
}

impl Model {
    /// The cost of reading all records, without fetching them; `pick` selects the part.
    fn reading(&self, pick: impl Fn(&Cost) -> f64) -> f64 {
        let (costs, demand) = (&self.costs, &self.demand);
        (demand.records() * pick(&costs.record) + demand.side_records() * pick(&costs.side)) / SECOND_US
    }

    /// Bytes a second of all records.
    fn log_bytes(&self) -> f64 {
        let demand = &self.demand;
        (demand.records() + demand.side_records()) * (demand.payload + demand.record_overhead)
    }

    pub fn usage(&self, part: &Part) -> Usage {
        let (costs, demand) = (&self.costs, &self.demand);
        let deliveries = demand.deliveries * part.connections * costs.delivery_us / SECOND_US;
        let read = (demand.records() + demand.side_records()) * part.reads;
        // Leaders of a node's partitions: as many brokers, or all.
        let brokers = (self.hardware.partitions as f64 * part.reads).clamp(1.0, self.hardware.brokers);
        let fetches = read.min(brokers * self.hardware.bus_threads * costs.fetches) / SECOND_US;
        let (us, bus_us) = (self.reading(|cost| cost.us), self.reading(|cost| cost.bus_us));
        // Of what it reads, its own are as much as its part of the connections; nobody has the unheard.
        let heard = demand.messages() / demand.records();
        let foreign = (part.reads - part.connections * heard).max(0.0);
        Usage {
            bus: (deliveries + bus_us * part.reads + fetches * costs.fetch.bus_us)
                / self.hardware.bus_threads,
            foreign: bus_us * foreign / self.hardware.bus_threads,
            cpu: deliveries
                + us * part.reads
                + fetches * costs.fetch.us
                + demand.connects * part.connections * costs.connect_us / SECOND_US,
            memory_mib: costs.base_mib
                + demand.connections * part.connections * costs.connection_kib / 1024.0,
            bytes_in: self.log_bytes() * part.reads,
            bytes_out: demand.deliveries * part.connections * (demand.payload + demand.frame_overhead),
            egress: self.log_bytes() * part.readers,
        }
    }

    pub fn fits(&self, usage: &Usage) -> bool {
        let hardware = &self.hardware;
        usage.bus <= hardware.utilisation
            && usage.cpu <= hardware.utilisation * hardware.cores
            && usage.bytes_in.max(usage.bytes_out) <= hardware.utilisation * hardware.nic
    }

    /// The fewest nodes that suffice with one of them down; `part` gives the busiest node's share.
    pub fn fewest(&self, most: usize, part: impl Fn(usize) -> Part) -> Option<(usize, Usage)> {
        (2..=most)
            .map(|nodes| (nodes, self.usage(&part(nodes))))
            .find(|(_, usage)| self.fits(usage))
    }

    /// How many times as large the cluster is when reading everything takes this part of the bus's threads.
    pub fn reading_limit(&self, share: f64) -> f64 {
        share * self.hardware.bus_threads / self.reading(|cost| cost.bus_us)
    }

    /// How many times as large it may be at most, with any number of nodes if all read everything.
    pub fn ceiling(&self) -> f64 {
        let hardware = &self.hardware;
        let fetches = hardware.brokers * hardware.bus_threads * self.costs.fetches / SECOND_US;
        let of = |room: f64, pick: fn(&Cost) -> f64| {
            (room - fetches * pick(&self.costs.fetch)) / self.reading(pick)
        };
        of(hardware.utilisation * hardware.bus_threads, |cost| cost.bus_us)
            .min(of(hardware.utilisation * hardware.cores, |cost| cost.us))
            .min(hardware.utilisation * hardware.nic / self.log_bytes())
            .max(0.0)
    }
}

/// What part of the partitions a node reads if sessions come to it by a hash of their own, whatever their partition:
/// those that at least one of its sessions is in.
pub fn read_by_chance(nodes: f64, sessions: f64, partitions: f64) -> f64 {
    1.0 - (1.0 - 1.0 / nodes).powf(sessions / partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All costs are zero except those that a test sets.
    fn free() -> Model {
        let nothing = Cost { us: 0.0, bus_us: 0.0 };
        Model {
            costs: Costs {
                delivery_us: 0.0,
                record: nothing,
                side: nothing,
                fetch: nothing,
                fetches: 0.0,
                connect_us: 0.0,
                connection_kib: 0.0,
                base_mib: 0.0,
            },
            demand: Demand {
                connections: 1e6,
                sessions: 5e5,
                deliveries: 1e6,
                fan_out: 2.0,
                unheard: 0.0,
                typing: 0.0,
                connects: 0.0,
                payload: 200.0,
                record_overhead: 0.0,
                frame_overhead: 0.0,
            },
            hardware: Hardware {
                cores: 2.0,
                bus_threads: 1.0,
                utilisation: 0.5,
                nic: f64::MAX,
                brokers: 1.0,
                partitions: 64,
            },
        }
    }

    fn each(share: f64) -> Part {
        Part {
            connections: share,
            reads: share,
            readers: 1.0,
        }
    }

    #[test]
    fn deliveries_alone_divide_by_the_nodes() {
        let mut model = free();
        model.costs.delivery_us = 10.0;
        // 10 s of work a second, half a thread each: 20 nodes, and one that is away.
        let (nodes, usage) = model.fewest(100, Part::everything).unwrap();
        assert_eq!(nodes, 21);
        assert!((usage.bus - 0.5).abs() < 1e-9 && (usage.cpu - 0.5).abs() < 1e-9);
        assert!(model.fewest(20, Part::everything).is_none());
    }

    #[test]
    fn reading_everything_has_a_ceiling_that_no_number_of_nodes_lifts() {
        let mut model = free();
        model.costs.record = Cost { us: 1.0, bus_us: 1.0 };
        // 500,000 records are exactly half a thread.
        assert!((model.ceiling() - 1.0).abs() < 1e-9);
        assert!((model.reading_limit(0.25) - 0.5).abs() < 1e-9);
        assert!(model.fewest(2, Part::everything).is_some());
        let larger = Model {
            demand: model.demand.times(1.01),
            ..model
        };
        assert!(larger.fewest(10_000, Part::everything).is_none());
        assert_eq!(larger.fewest(100, |nodes| each(1.0 / nodes as f64)).unwrap().0, 2);
    }

    #[test]
    fn more_bus_threads_lift_it() {
        let mut model = free();
        model.costs.record = Cost { us: 1.0, bus_us: 1.0 };
        (model.hardware.bus_threads, model.hardware.cores) = (4.0, 4.0);
        assert!((model.ceiling() - 4.0).abs() < 1e-9);
        assert!((model.reading_limit(0.25) - 2.0).abs() < 1e-9);
        let usage = model.usage(&Part::everything(2));
        assert!((usage.bus - 0.125).abs() < 1e-9 && (usage.cpu - 0.5).abs() < 1e-9);
    }

    #[test]
    fn the_network_is_a_ceiling_too() {
        let mut model = free();
        model.hardware.nic = 1e8;
        // 500,000 records of 200 bytes are 1e8 bytes, and half of that may be used.
        assert!((model.ceiling() - 0.5).abs() < 1e-9);
        let usage = model.usage(&Part::everything(10));
        assert!((usage.bytes_in - 1e8).abs() < 1.0 && (usage.egress - 1e9).abs() < 1.0);
    }

    /// All nodes together do all the work, whatever their number.
    #[test]
    fn work_is_conserved_and_each_node_does_less_where_there_are_more() {
        let mut model = free();
        model.costs = Costs {
            delivery_us: 7.0,
            record: Cost { us: 1.0, bus_us: 0.5 },
            connect_us: 100.0,
            connection_kib: 4.0,
            ..model.costs
        };
        model.demand.connects = 1_000.0;
        let mut last = f64::MAX;
        for nodes in [1, 2, 10, 64] {
            let usage = model.usage(&each(1.0 / nodes as f64));
            let all = |of: f64| of * nodes as f64;
            assert!((all(usage.cpu) - (7.0 + 0.5 + 0.1)).abs() < 1e-9);
            assert!((all(usage.bus) - (7.0 + 0.25)).abs() < 1e-9);
            assert!((all(usage.memory_mib) - 1e6 * 4.0 / 1024.0).abs() < 1e-6);
            assert!((all(usage.bytes_in) - usage.egress).abs() < 1.0);
            assert!(usage.cpu < last);
            last = usage.cpu;
        }
    }

    #[test]
    fn foreign_is_what_is_read_and_not_had() {
        let mut model = free();
        model.costs.record = Cost { us: 1.0, bus_us: 1.0 };
        assert!((model.usage(&Part::everything(11)).foreign - 0.5 * 0.9).abs() < 1e-9);
        assert!(model.usage(&each(0.1)).foreign.abs() < 1e-9);
        model.demand.unheard = 0.25;
        assert!((model.usage(&each(0.1)).foreign - 0.1 * 0.125).abs() < 1e-9);
    }

    #[test]
    fn fetches_are_no_more_than_records_and_brokers_allow() {
        let mut model = free();
        model.costs.fetch = Cost {
            us: 100.0,
            bus_us: 0.0,
        };
        model.costs.fetches = 1_000.0;
        assert!((model.usage(&each(1.0)).cpu - 0.1).abs() < 1e-9);
        model.demand = model.demand.times(1e-4);
        assert!((model.usage(&each(1.0)).cpu - 0.005).abs() < 1e-9);
        // Each thread fetches for itself.
        model.demand = model.demand.times(1e4);
        model.hardware.bus_threads = 3.0;
        assert!((model.usage(&each(1.0)).cpu - 0.3).abs() < 1e-9);
    }

    #[test]
    fn sessions_without_regard_to_partitions_make_a_node_read_nearly_all() {
        assert!((read_by_chance(2.0, 64.0, 64.0) - 0.5).abs() < 1e-9);
        assert!(read_by_chance(40.0, 500_000.0, 512.0) > 0.999_999);
    }
}
