//! Connects to Redis, renews the lease with each pipeline, and acts on what that tells: a loss of data, a new name.

use std::time::Duration;

use redis::{RedisError, RedisResult, Value};
use tokio::time::Instant;

use super::answers::read_heartbeat;
use super::keys;
use super::node_lease::{Loss, Transition};
use super::presence_task::PresenceTask;
use crate::bus::Status;

impl PresenceTask {
    pub(super) async fn connect(&mut self) -> Result<(), RedisError> {
        // Until the first answer nobody knows what it holds.
        self.store.set_incomplete(true);
        let run_id = self.store.connect().await?;
        if self.lease.may_be_reaped() {
            // Then some sessions may have had no users left.
            self.notifier.forget_births();
        }
        match self.lease.connected(run_id) {
            Transition::Resync => self.start_resync(),
            Transition::Rename => self.rename(),
            Transition::Lost(loss) => self.lost(loss),
        }
        Ok(())
    }

    /// A pipeline starts with our heartbeat: whatever is written has a lease, or else somebody to remove it.
    pub(super) fn pipeline_with_heartbeat(&self) -> redis::Pipeline {
        let mut pipeline = redis::pipe();
        // Who claims a node keeps it from the others, and so has to reap it in the same round.
        let claim = match self.claims_nodes {
            true => self.timings.claim,
            false => Duration::ZERO,
        };
        self.store
            .add_heartbeat(&mut pipeline, &self.lease, self.timings.lease, claim);
        pipeline
    }

    /// Sends a pipeline of [`Self::pipeline_with_heartbeat`]. Returns the answers without the heartbeat's, or `None` if
    /// Redis has lost us, or more: then they mean nothing, and everything is to be written again.
    pub(super) async fn send_with_heartbeat(
        &mut self,
        mut pipeline: redis::Pipeline,
        timeout: Duration,
    ) -> Result<Option<Vec<RedisResult<Value>>>, RedisError> {
        // Asked at the end as well: Redis may be emptied between two commands.
        pipeline.cmd("GET").arg(keys::EPOCH);
        self.parts.metrics.redis_pipelines.inc();
        let mut answers = self.store.execute(&mut pipeline, timeout).await?;
        let epoch = answers.pop().unwrap_or(Ok(Value::Nil))?;
        let epoch: Option<String> = redis::from_redis_value(epoch)?;
        let heartbeat = read_heartbeat(answers.remove(0)?)?;
        self.next_heartbeat = Instant::now() + self.timings.heartbeat;
        let nodes = i64::try_from(heartbeat.nodes()).unwrap_or(i64::MAX);
        self.parts.metrics.nodes.set(nodes);
        if let Some(loss) = self.lease.answered(heartbeat, epoch) {
            self.lost(loss);
            return Ok(None);
        }
        if !self.lease.state().is_recovering() {
            self.store.set_incomplete(false);
        }
        Ok(Some(answers))
    }

    pub(super) fn lost(&mut self, loss: Loss) {
        tracing::warn!(?loss, "Redis has lost presence data: writing it again");
        self.lease.lost(loss);
        self.notifier.forget_births();
        if loss != Loss::Lease {
            self.store.set_incomplete(true);
            self.notifier.reset_versions();
            self.publisher.forget_all();
            self.index.clear();
            self.parts.lobby.suspend();
        }
        self.rename();
    }

    /// Continues under another name and writes everything again.
    fn rename(&mut self) {
        self.lease.rename(self.store.next_name(&self.parts.node));
        self.next_heartbeat = Instant::now();
        self.start_resync();
    }

    /// Whether anything can be published to other nodes.
    pub(super) fn has_log(&self) -> bool {
        self.parts.bus.health().status == Status::Ok
    }
}
