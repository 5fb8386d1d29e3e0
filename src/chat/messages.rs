//! A session's messages for clients that load them, a page at a time.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::Chat;
use super::resume::{RECHECK, behind};
use crate::clock;
use crate::history::range::message_id;
use crate::history::{Limits, NotHere, Page, page};
use crate::protocol::frame;
use crate::protocol::ids::SessionId;
use crate::protocol::record::{Converter, Form};
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
            match self.page(session_id, since.clone(), limits).await {
                Ok(page) => {
                    self.metrics.history.messages_left_out.inc_by(page.left_out);
                    return Messages { page, refused: None };
                }
                Err(NotHere::Refused(why)) => return self.refuse_page(session_id, why),
                Err(NotHere::Older) => {
                    return match self.older_page(session_id, since.as_deref(), limits, until).await {
                        Ok(page) => Messages { page, refused: None },
                        Err(why) => self.refuse_page(session_id, why),
                    };
                }
                // Until this node has read as far as another one that the client knows.
                Err(NotHere::Ahead | NotHere::Undelivered) => {
                    let why = since
                        .as_deref()
                        .map_or(NotResumed::Unavailable, |since| behind(since, has_read));
                    if Instant::now() >= until || why == NotResumed::UnknownMessage {
                        return self.refuse_page(session_id, why);
                    }
                    tokio::time::sleep(RECHECK).await;
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
        // One more tells whether there are more.
        let rewind = Resume::Rewind(limits.messages + 1);
        let end = self.history.delivered_end();
        let frames = self
            .older()
            .of_at_least(limits.messages + 1)
            .read(session_id, since.unwrap_or(&rewind), end, until)
            .await?;
        let mut page = Page::empty(self.history.cursor(session_id.as_str(), end));
        let payload = |frame: &Bytes| frame.slice_ref(frame::payload(frame));
        if since.is_none() {
            page.has_more = frames
                .iter()
                .rev()
                .any(|frame| !page.add(payload(frame), &limits));
            page.payloads.reverse();
        } else {
            let mut last = None;
            for frame in &frames {
                if !page.add(payload(frame), &limits) {
                    page.has_more = true;
                    break;
                }
                last = Some(frame);
            }
            if page.has_more {
                // The next page follows the last message of this one, by its id.
                let id = last.and_then(|frame| message_id(&mut Converter::default(), Form::Native, frame));
                let id = id.filter(|id| id.len() <= 100 && id.bytes().all(is_url_safe));
                page.cursor = Some(id.ok_or(NotResumed::TooMany)?);
            }
        }
        self.metrics.history.messages_left_out.inc_by(page.left_out);
        Ok(page)
    }

    async fn page(
        &self,
        session_id: &SessionId,
        since: Option<Arc<Resume>>,
        limits: Limits,
    ) -> Result<Page, NotHere> {
        let (history, session_id) = (Arc::clone(&self.history), session_id.clone());
        // Megabytes of JSON are checked, which must not hold up the runtime.
        let found = tokio::task::spawn_blocking(move || match since.as_deref() {
            Some(since) => page::after(&history, session_id.as_str(), since, &limits),
            None => page::last(&history, session_id.as_str(), &limits, clock::unix_ms()),
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

/// Whether it needs no escaping in a URL (RFC 3986, section 2.3).
fn is_url_safe(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}
