//! Reads a request's body, bounded in size and time.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, timeout_at};

use super::refusal::RequestRefusal;

/// How long a whole body may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The body, of at most `most` bytes. One that is announced as longer is not read at all: a client that waits for
/// `100 Continue` has not even sent it.
pub async fn read(body: &mut Incoming, most: usize) -> Result<Vec<u8>, RequestRefusal> {
    if usize::try_from(body.size_hint().lower()).is_ok_and(|length| length > most) {
        return Err(RequestRefusal::BodyTooLarge);
    }
    let until = Instant::now() + PATIENCE;
    let mut read = Vec::new();
    loop {
        let frame = match timeout_at(until, body.frame()).await {
            Err(_) => return Err(RequestRefusal::BodyTimeout),
            Ok(None) => return Ok(read),
            Ok(Some(Err(_))) => return Err(RequestRefusal::Body),
            Ok(Some(Ok(frame))) => frame,
        };
        // Trailers are ignored.
        let Some(data) = frame.data_ref() else { continue };
        if read.len() + data.len() > most {
            return Err(RequestRefusal::BodyTooLarge);
        }
        read.extend_from_slice(data);
    }
}
