//! A session's messages for clients that load them, a page at a time.

use std::sync::Arc;
use std::time::Instant;

use super::Chat;
use super::resume::{RECHECK, REREAD, behind};
use crate::clock;
use crate::history::page::PageEnd;
use crate::history::{Limits, NotHere, Page, page};
use crate::protocol::ids::SessionId;
use crate::protocol::resume::{NotResumed, Resume};

/// A page, or why there is none; its cursor is there all the same.
pub struct Messages {
    pub page: Page,
    pub refused: Option<NotResumed>,
}

impl Chat {
    /// The first messages of a session after what a client has; without that, the last ones.
    pub async fn messages(&self, session_id: &SessionId, since: Option<Resume>, limit: usize) -> Messages {
        let limits = Limits {
            messages: limit,
            ..self.resume_limits.range
        };
        let since = since.map(Arc::new);
        let (until, asked_at) = (Instant::now() + self.resume_limits.timeout, clock::unix_ms());
        loop {
            // Before it is looked for: what comes meanwhile may be it.
            let has_read = self.older().has_read(asked_at);
            let has = since.as_deref();
            let mut found = self.page(session_id, since.clone(), limits, until).await;
            let mut pause = RECHECK;
            if matches!(found, Err(NotHere::Older)) {
                pause = REREAD;
                found = match self.older_page(session_id, has, limits, until).await {
                    Err(NotResumed::UnknownMessage) if !has_read => Err(NotHere::Ahead),
                    older => older.map_err(NotHere::Refused),
                };
            }
            match found {
                Ok(page) => {
                    self.metrics.history.messages_left_out.inc_by(page.left_out);
                    return Messages { page, refused: None };
                }
                Err(NotHere::Refused(why)) => return self.refuse_page(session_id, why),
                // Until this node has read as far as another one that the client knows.
                Err(NotHere::Ahead | NotHere::Undelivered | NotHere::Older) => {
                    let why = has.map_or(NotResumed::Unavailable, |has| behind(has, has_read));
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() || why == NotResumed::UnknownMessage {
                        return self.refuse_page(session_id, why);
                    }
                    tokio::time::sleep(pause.min(left)).await;
                }
            }
        }
    }

    /// A page that the recent log does not have.
    async fn older_page(
        &self,
        session_id: &SessionId,
        since: Option<&Resume>,
        limits: Limits,
        until: Instant,
    ) -> Result<Page, NotResumed> {
        let position = self.history.delivered_end();
        let end =
            PageEnd::new(&self.history, session_id.as_str(), position).ok_or(NotResumed::Unavailable)?;
        let last = Resume::Rewind(limits.messages);
        let collected = self
            .older()
            .of_page(limits)
            .read(session_id, since.unwrap_or(&last), position, until)
            .await?;
        Ok(page::of_log(session_id.as_str(), collected, &end))
    }

    async fn page(
        &self,
        session_id: &SessionId,
        since: Option<Arc<Resume>>,
        limits: Limits,
        until: Instant,
    ) -> Result<Page, NotHere> {
        let place = self.searches.place(session_id, until).await;
        let place = place.ok_or(NotHere::Refused(NotResumed::Busy))?;
        let (history, session_id) = (Arc::clone(&self.history), session_id.clone());
        // Megabytes of JSON are checked, which must not hold up the runtime.
        let found = tokio::task::spawn_blocking(move || {
            // Also if the client has gone: the thread works on.
            let _place = place;
            match since.as_deref() {
                Some(since) => page::after(&history, session_id.as_str(), since, &limits),
                None => page::last(&history, session_id.as_str(), &limits, clock::unix_ms()),
            }
        });
        found
            .await
            .unwrap_or(Err(NotHere::Refused(NotResumed::Unavailable)))
    }

    fn refuse_page(&self, session_id: &SessionId, why: NotResumed) -> Messages {
        let cursor = self
            .history
            .cursor(session_id.as_str(), self.history.delivered_end());
        Messages {
            page: Page::empty(cursor),
            refused: Some(why),
        }
    }
}
