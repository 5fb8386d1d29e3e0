//! The commands for the index of all sessions, and its pages.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, RedisResult, Value};

use super::keys;
use super::lobby_feed::{FEED_PAGE, FeedPage};
use super::session_entry::{META_FIELDS, StateAfter, of_meta, parse_place, range_from, range_to};
use super::session_index::{ENDED_KEPT, MOST_ENDED};
use super::store::Store;
use crate::auth::Sessions;
use crate::presence::lobby::view;
use crate::presence::unavailable::Unavailable;
use crate::protocol::ids::SessionId;
use crate::protocol::lobby::{ListedSession, Position, SessionPage, StateFilter};

/// How long a page may take: an answer is promised within a second.
const PAGE_TIMEOUT: Duration = Duration::from_millis(700);

impl Store {
    /// Adds the writing of these rows to the index.
    pub fn add_index(&self, pipeline: &mut Pipeline, rows: &[(SessionId, StateAfter)]) {
        let command = pipeline.cmd("EVALSHA").arg(self.index_hash());
        command.arg(4).arg(&[
            keys::INDEX_ENTRIES,
            keys::INDEX_ORDER,
            keys::INDEX_FEED,
            keys::INDEX_ENDED,
        ]);
        command.arg(ENDED_KEPT.as_millis().to_string()).arg(MOST_ENDED);
        for (session_id, after) in rows {
            let (state, since, totals) = after.fields();
            command.arg(session_id.as_str()).arg(after.version).arg(state);
            command.arg(since).arg(totals.customers).arg(totals.agents);
            command.arg(u8::from(after.is_suspect));
        }
    }

    /// Adds the reading of the feed behind this number.
    pub fn add_feed(&self, pipeline: &mut Pipeline, from: u64) {
        let command = pipeline.cmd("EVALSHA").arg(self.feed_hash());
        command.arg(2).arg(&[keys::INDEX_ENTRIES, keys::INDEX_FEED]);
        command.arg(from).arg(FEED_PAGE);
    }

    /// A page of the sessions with somebody connected, each as its own keys have it.
    pub async fn session_page(
        &self,
        filter: StateFilter,
        scope: &Sessions,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<SessionPage, Unavailable> {
        let mut connection = self.for_rest().ok_or(Unavailable)?;
        let read = async {
            match scope {
                Sessions::All => self.page_of_all(&mut connection, filter, after, limit).await,
                Sessions::Listed(ids) => {
                    let ids: Vec<_> = ids.iter().collect();
                    let found = summaries(&mut connection, &ids).await?;
                    Ok(view::page_of(
                        found.into_iter().flatten().collect(),
                        filter,
                        after,
                        limit,
                    ))
                }
            }
        };
        let read = tokio::time::timeout(PAGE_TIMEOUT, read).await;
        read.map_err(|_| Unavailable)?.map_err(|_| Unavailable)
    }

    async fn page_of_all(
        &self,
        connection: &mut MultiplexedConnection,
        filter: StateFilter,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<SessionPage, RedisError> {
        let mut ranges = redis::pipe();
        for state in filter.states() {
            let command = ranges.cmd("ZRANGEBYLEX").arg(keys::INDEX_ORDER);
            command.arg(range_from(*state, after)).arg(range_to(*state));
            command.arg("LIMIT").arg(0).arg(limit + 1);
        }
        let places: Vec<Vec<String>> = ranges.query_async(connection).await?;
        let mut places: Vec<_> = places
            .iter()
            .flatten()
            .filter_map(|place| parse_place(place))
            .collect();
        places.sort_unstable_by(|(_, a), (_, b)| a.cmp(b));
        let has_more = places.len() > limit;
        places.truncate(limit);
        let next = places.last().filter(|_| has_more).map(|(_, at)| at.clone());
        let ids: Vec<_> = places.iter().map(|(_, at)| &at.session_id).collect();
        let found = summaries(connection, &ids).await?;
        let mut sessions = Vec::with_capacity(found.len());
        for (session, (state, at)) in found.into_iter().zip(places) {
            // One that has changed just now is elsewhere in the order, or will be.
            match session.filter(|session| (session.state, session.since) == (state, at.since)) {
                Some(session) => sessions.push(session),
                None => self.doubtful.add(at.session_id),
            }
        }
        Ok(SessionPage { sessions, next })
    }
}

/// What the sessions' own keys say; `None`: nobody is in it.
async fn summaries(
    connection: &mut MultiplexedConnection,
    ids: &[&SessionId],
) -> Result<Vec<Option<ListedSession>>, RedisError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut read = redis::pipe();
    for session_id in ids {
        let meta = keys::meta(session_id.as_str());
        read.cmd("HMGET").arg(meta).arg(&META_FIELDS);
    }
    // A key of another type is as good as none.
    let answers: Vec<RedisResult<Value>> = read.ignore_errors().query_async(connection).await?;
    let read = |answer: RedisResult<Value>| {
        let fields: Vec<Option<String>> = redis::from_redis_value(answer.ok()?).ok()?;
        of_meta(&fields)
    };
    let found = ids.iter().zip(answers);
    let listed =
        found.map(|(id, answer)| read(answer).map(|summary| ListedSession::new((*id).clone(), summary)));
    Ok(listed.collect())
}

pub fn read_feed(answer: Value) -> Result<FeedPage, RedisError> {
    let (last, pruned, flat): (String, String, Vec<String>) = redis::from_redis_value(answer)?;
    let mut changes = Vec::with_capacity(flat.len() / 3);
    let mut flat = flat.into_iter();
    while let (Some(id), Some(number), Some(entry)) = (flat.next(), flat.next(), flat.next()) {
        changes.push((id, number.parse().unwrap_or(0), entry));
    }
    Ok(FeedPage {
        last: last.parse().unwrap_or(0),
        pruned: pruned.parse().unwrap_or(0),
        is_full: changes.len() >= FEED_PAGE,
        changes,
    })
}
