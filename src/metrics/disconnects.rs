//! Metrics of users whom backends disconnect and refuse.

use prometheus_client::registry::Registry;

use super::{Count, Level};

#[derive(Default)]
pub struct DisconnectMetrics {
    pub read: Count,
    pub refusals: Level,
    pub refusals_dropped: Count,
}

impl DisconnectMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "disconnects",
            "Requests of backends to disconnect a user that this node has carried out, whichever node they came to",
            self.read.clone(),
        );
        registry.register(
            "refusals",
            "Users who are refused in a session",
            self.refusals.clone(),
        );
        registry.register(
            "refusals_dropped",
            "Refusals that ended early because there were too many",
            self.refusals_dropped.clone(),
        );
    }
}
