//! The names of what is in Redis. Keys that one script touches share a slot (Redis cluster specification, "Hash
//! tags").

use crate::protocol::ids::{SessionId, UserId};

/// Leases: a sorted set, node to when its lease ends.
pub const LEASES: &str = "livechat:nodes";
/// Claims of dead nodes: a hash, in the slot of [`LEASES`].
pub const CLAIMS: &str = "{livechat:nodes}:claims";
/// When this Redis was first used: another one, or none, means that it was emptied. In the slot of [`LEASES`].
pub const EPOCH: &str = "{livechat:nodes}:epoch";
/// Nodes that have not written yet all that they hold: a set, in the slot of [`LEASES`].
pub const WRITING: &str = "{livechat:nodes}:writing";

/// Nodes that have left in order, whose lease is their users' grace: a set, in the slot of [`LEASES`].
pub const LEFT: &str = "{livechat:nodes}:left";

/// User id to JSON; the old server's name.
pub fn users(session_id: &str) -> String {
    format!("session:{session_id}:users")
}

/// Version and totals. In the slot of [`users`]: the braces hold that key's whole name.
pub fn meta(session_id: &str) -> String {
    format!("{{session:{session_id}:users}}:meta")
}

/// Leaves that nobody is known to have heard of, after a node has died. In the slot of [`users`].
pub fn untold(session_id: &str, node: &str) -> String {
    format!("{{session:{session_id}:users}}:untold:{node}")
}

/// Somebody types; the old server's name. No session's id has a colon, so that a user's may have any.
pub fn typing(session_id: &SessionId, user_id: &UserId) -> String {
    format!("session:{session_id}:typing:{}", user_id.as_str())
}

/// The sessions that a node may hold somebody in: a sorted set, each with the number of the pipeline that wrote last.
pub fn sessions(node: &str) -> String {
    format!("livechat:node:{node}:sessions")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-16/XMODEM of what is between the braces, or of the whole key.
    fn slot(key: &str) -> u16 {
        let hashed = match (key.find('{'), key.find('}')) {
            (Some(open), Some(close)) if close > open + 1 => &key[open + 1..close],
            _ => key,
        };
        let crc = hashed.bytes().fold(0u16, |crc, byte| {
            (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
                if crc & 0x8000 == 0 {
                    crc << 1
                } else {
                    crc << 1 ^ 0x1021
                }
            })
        });
        crc % 16384
    }

    #[test]
    fn keys_of_one_script_share_a_slot() {
        assert_eq!(slot("123456789"), 0x31C3);
        for id in ["s1", "a@b", "018f4e3a-7c1e-7000-8000-000000000000", "~"] {
            assert_eq!(slot(&users(id)), slot(&meta(id)));
            assert_eq!(slot(&users(id)), slot(&untold(id, "node{+1}.2")));
        }
        assert_eq!(slot(LEASES), slot(CLAIMS));
        assert_eq!(slot(LEASES), slot(EPOCH));
        assert_eq!(slot(LEASES), slot(WRITING));
        assert_eq!(slot(LEASES), slot(LEFT));
    }
}
