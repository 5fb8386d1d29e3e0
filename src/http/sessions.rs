//! `GET /api/sessions`: a page of the sessions with somebody connected, the longest in their state first.

use std::time::Duration;

use hyper::{StatusCode, header};
use serde::Serialize;

use super::Http;
use super::refusal::{RequestRefusal, retry_after};
use super::response::{Answer, Success, error_with, json};
use crate::auth::Sessions;
use crate::protocol::lobby::{ListedSession, MAX_PAGE, Position, StateFilter};
use crate::protocol::resume::query_value;

const DEFAULT_LIMIT: usize = 100;
/// How long a response waits for the presence store.
const PATIENCE: Duration = Duration::from_millis(900);

struct Query {
    filter: StateFilter,
    limit: usize,
    after: Option<Position>,
}

impl Query {
    fn parse(query: &str) -> Result<Self, RequestRefusal> {
        let filter = match query_value(query, "state") {
            None => StateFilter::All,
            Some(state) => StateFilter::parse(&state).ok_or(RequestRefusal::State)?,
        };
        let limit = match query_value(query, "limit") {
            None => DEFAULT_LIMIT,
            Some(limit) => {
                let limit = limit.parse().ok();
                limit
                    .filter(|limit| (1..=MAX_PAGE).contains(limit))
                    .ok_or(RequestRefusal::Limit)?
            }
        };
        let after = match query_value(query, "cursor").filter(|cursor| !cursor.is_empty()) {
            None => None,
            Some(cursor) => Some(Position::decode(&cursor).ok_or(RequestRefusal::Cursor)?),
        };
        Ok(Self { filter, limit, after })
    }
}

#[derive(Serialize)]
struct Data {
    sessions: Vec<ListedSession>,
    next_cursor: Option<String>,
}

/// Those that `scope` covers.
pub async fn sessions(http: &Http, scope: &Sessions, query: Option<&str>) -> Answer {
    let Query { filter, limit, after } = match Query::parse(query.unwrap_or_default()) {
        Ok(query) => query,
        Err(refused) => return refused.answer(&http.metrics),
    };
    let page = http.chat.presence.sessions(filter, scope, after.as_ref(), limit);
    let Ok(Ok(page)) = tokio::time::timeout(PATIENCE, page).await else {
        let why = "the presence store is not available";
        let (status, message) = (StatusCode::SERVICE_UNAVAILABLE, "Failed to get sessions");
        return error_with(status, message, why, header::RETRY_AFTER, retry_after());
    };
    let data = Data {
        sessions: page.sessions,
        next_cursor: page.next.as_ref().map(Position::encode),
    };
    let message = "Sessions retrieved successfully";
    json(
        StatusCode::OK,
        &Success {
            success: true,
            message,
            data,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ids::SessionId;

    #[test]
    fn a_query_names_a_state_a_limit_and_a_cursor() {
        let query = Query::parse("").ok().unwrap();
        assert_eq!(
            (query.filter, query.limit, query.after),
            (StateFilter::All, 100, None)
        );
        let session_id = SessionId::parse("s").unwrap();
        let after = Position { since: 5, session_id };
        let query = format!("limit=1000&state=waiting&cursor={}&other=1", after.encode());
        let query = Query::parse(&query).ok().unwrap();
        assert_eq!((query.filter, query.limit), (StateFilter::Waiting, 1000));
        assert_eq!(query.after, Some(after));
        assert!(Query::parse("cursor=").is_ok_and(|query| query.after.is_none()));
        for (bad, why) in [
            ("state=", RequestRefusal::State),
            ("state=idle", RequestRefusal::State),
            ("state=Waiting", RequestRefusal::State),
            ("limit=0", RequestRefusal::Limit),
            ("limit=1001", RequestRefusal::Limit),
            ("limit=", RequestRefusal::Limit),
            ("cursor=x", RequestRefusal::Cursor),
        ] {
            assert_eq!(Query::parse(bad).err(), Some(why), "{bad}");
        }
    }
}
