//! Whether this node knows who is refused, where Redis has that.

use crate::bus::Status;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlState {
    /// Kafka has it.
    Elsewhere,
    Unread,
    Read,
    /// Redis answers, but not to this.
    Failed,
}

impl ControlState {
    /// Health, given that of everything else.
    pub fn add_to(self, status: Status, detail: Option<String>) -> (Status, Option<String>) {
        match self {
            Self::Unread if status == Status::Ok => (Status::Connecting, detail),
            Self::Failed if status == Status::Ok => {
                let detail = "who is refused cannot be read: refused users may be let in";
                (Status::Degraded, Some(detail.to_owned()))
            }
            _ => (status, detail),
        }
    }
}
