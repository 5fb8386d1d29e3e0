//! The names of keys and nodes in Redis. Keys that one script touches share a slot (Redis cluster specification, "Hash
//! tags"). Nodes of several versions share a Redis during a rolling upgrade: a key is never renamed, whatever the code
//! calls what it holds.

use crate::protocol::ids::{SessionId, UserId};

/// Leases: a sorted set, from node to the end of its lease.
pub const LEASES: &str = "livechat:nodes";
/// Claims on dead nodes: a hash, in the slot of [`LEASES`].
pub const CLAIMS: &str = "{livechat:nodes}:claims";
/// When this Redis was first used: another value, or none, means that it was emptied. In the slot of [`LEASES`].
pub const EPOCH: &str = "{livechat:nodes}:epoch";
/// Nodes that have not written everything they hold yet: a set, in the slot of [`LEASES`].
pub const WRITING: &str = "{livechat:nodes}:writing";

/// Nodes that were shut down in order, whose lease is their users' grace: a set, in the slot of [`LEASES`].
pub const SHUT_DOWN: &str = "{livechat:nodes}:left";

/// The index of all sessions, as `index.lua` describes it: entries, order, feed and what has ended, in one slot.
pub const INDEX_ENTRIES: &str = "{livechat:sessions}:entries";
pub const INDEX_ORDER: &str = "{livechat:sessions}:order";
pub const INDEX_FEED: &str = "{livechat:sessions}:feed";
pub const INDEX_ENDED: &str = "{livechat:sessions}:ended";

/// Whom backends disconnect, where there is no Kafka: a stream.
pub const CONTROL: &str = "livechat:control";

/// A hash, from user id to JSON. The old server's name.
pub fn users(session_id: &str) -> String {
    format!("session:{session_id}:users")
}

/// Version and totals. In the slot of [`users`]: the braces hold that key's whole name.
pub fn meta(session_id: &str) -> String {
    format!("{{session:{session_id}:users}}:meta")
}

/// After a node's death, leaves that the log has not acknowledged: a hash, in the slot of [`users`].
pub fn pending_leaves(session_id: &str, node: &str) -> String {
    format!("{{session:{session_id}:users}}:untold:{node}")
}

/// A user is typing. The old server's name. Session ids have no colon, so user ids may have some.
pub fn typing(session_id: &SessionId, user_id: &UserId) -> String {
    format!("session:{session_id}:typing:{}", user_id.as_str())
}

/// How far each user has read: a hash, from user id to position, user type, time and message id. In the slot of [`users`].
pub fn read(session_id: &SessionId) -> String {
    format!("{{session:{session_id}:users}}:read")
}

/// The sessions in which a node may hold users: a sorted set, each with the number of the pipeline that wrote to it
/// last.
pub fn sessions(node: &str) -> String {
    format!("livechat:node:{node}:sessions")
}

/// A node's name without its number: `NODE_ID` and boot id.
pub fn node_of(name: &str) -> &str {
    let boot = name.rfind('+').unwrap_or(0);
    name[boot..].find('.').map_or(name, |dot| &name[..boot + dot])
}

/// Which of its node's names this is: later ones have greater numbers.
pub fn number_of(name: &str) -> u32 {
    let number = name[node_of(name).len()..].strip_prefix('.');
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_a_node_and_a_number() {
        let parts = |name| (node_of(name), number_of(name));
        assert_eq!(parts("host+9949663f105b"), ("host+9949663f105b", 0));
        assert_eq!(parts("host+9949663f105b.12"), ("host+9949663f105b", 12));
        assert_eq!(parts("a.b+c+9949663f105b.1"), ("a.b+c+9949663f105b", 1));
        assert_eq!(parts("odd"), ("odd", 0));
    }

    /// CRC-16/XMODEM of the part between the braces, or of the whole key.
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
            assert_eq!(slot(&users(id)), slot(&pending_leaves(id, "node{+1}.2")));
        }
        assert_eq!(slot(LEASES), slot(CLAIMS));
        assert_eq!(slot(LEASES), slot(EPOCH));
        assert_eq!(slot(LEASES), slot(WRITING));
        assert_eq!(slot(LEASES), slot(SHUT_DOWN));
        for key in [INDEX_ORDER, INDEX_FEED, INDEX_ENDED] {
            assert_eq!(slot(INDEX_ENTRIES), slot(key));
        }
    }
}
