//! The wire protocol: every type that a frontend, a backend or another node sees, and nothing internal.
//!
//! | module | contents |
//! | --- | --- |
//! | [`ids`] | session and user ids, user types |
//! | [`json`] | the JSON reader with its limits and rules |
//! | [`surrogates`] | unpaired surrogates in JSON text |
//! | [`client`] | text frames that clients send |
//! | [`client_id`] | by which id its sender knows a message |
//! | [`correlation`] | the ids by which a client recognizes an answer |
//! | [`server`] | text frames that clients receive |
//! | [`control`] | records that disconnect and refuse users |
//! | [`publication`] | a message that a backend publishes |
//! | [`receipt`] | how far users have read |
//! | [`record`] | Kafka records, native and old |
//! | [`cursor`] | where a client is in the log |
//! | [`resume`] | what a client that comes back asks for, and the answer |
//! | [`status`] | connected users, as frames and REST show them |
//! | [`lobby`] | sessions with somebody connected, as the agents' desk sees them |
//! | [`code`] | close codes and error codes |
//! | [`frame`] | WebSocket frame headers (RFC 6455, section 5.2) |

pub mod client;
pub mod client_id;
pub mod code;
pub mod control;
pub mod correlation;
pub mod cursor;
pub mod frame;
pub mod ids;
pub mod json;
pub mod lobby;
pub mod publication;
pub mod receipt;
pub mod record;
pub mod resume;
pub mod server;
pub mod status;
pub mod surrogates;

/// Encodes a value as JSON. Our values have string keys and `Serialize` impls that do not fail, so `None` means a bug,
/// which is logged: the caller sends an error or nothing, never an empty frame or record.
pub(crate) fn encode(value: &impl serde::Serialize) -> Option<Vec<u8>> {
    let encoded = serde_json::to_vec(value);
    if let Err(error) = &encoded {
        tracing::error!(%error, "a value could not be encoded: please report this bug");
    }
    encoded.ok()
}

/// The current time in the wire's format: RFC 3339 in UTC with milliseconds, `2026-01-31T09:30:00.000Z`.
pub fn timestamp() -> String {
    format_timestamp(jiff::Timestamp::now())
}

/// See [`timestamp`].
pub fn format_timestamp(at: jiff::Timestamp) -> String {
    format!("{at:.3}")
}

/// Seconds since 1970 in the wire's format; a time that it can't express is the last one that it can.
pub fn format_seconds(seconds: i64) -> String {
    let at = jiff::Timestamp::from_second(seconds);
    format_timestamp(at.unwrap_or(jiff::Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    #[test]
    fn timestamps_are_rfc_3339_with_milliseconds() {
        let at = jiff::Timestamp::from_millisecond(1_700_000_000_000).unwrap();
        assert_eq!(super::format_timestamp(at), "2023-11-14T22:13:20.000Z");
    }
}
