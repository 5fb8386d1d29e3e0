//! What is sent: whole frames, which most recipients take at once. Only who can't has to keep them.

use std::cell::OnceCell;
use std::sync::OnceLock;

use bytes::Bytes;

/// Whole frames, ready to send.
pub trait Frames {
    fn bytes(&self) -> &[u8];

    /// The same for a queue, which keeps it for longer than the caller does. `hold` counts it; what several queues
    /// keep is held once.
    fn keep(&self, hold: impl FnOnce(Bytes) -> Bytes) -> Bytes;
}

/// For one recipient.
impl Frames for Bytes {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn keep(&self, hold: impl FnOnce(Bytes) -> Bytes) -> Bytes {
        hold(self.clone())
    }
}

/// A frame for several recipients.
pub struct Shared {
    frame: Bytes,
    held: OnceLock<Bytes>,
}

impl Shared {
    pub fn new(frame: Bytes) -> Self {
        Self {
            frame,
            held: OnceLock::new(),
        }
    }
}

impl Frames for Shared {
    fn bytes(&self) -> &[u8] {
        &self.frame
    }

    fn keep(&self, hold: impl FnOnce(Bytes) -> Bytes) -> Bytes {
        self.held.get_or_init(|| hold(self.frame.clone())).clone()
    }
}

/// Frames in a buffer that is used again. All queues share one copy of them, which is no longer than they are: of the
/// buffer a stalled client holds nothing.
#[derive(Clone, Copy)]
pub struct Lent<'a> {
    bytes: &'a [u8],
    copy: &'a OnceCell<Bytes>,
}

impl<'a> Lent<'a> {
    /// `copy` belongs to these bytes alone.
    pub fn new(bytes: &'a [u8], copy: &'a OnceCell<Bytes>) -> Self {
        Self { bytes, copy }
    }
}

impl Frames for Lent<'_> {
    fn bytes(&self) -> &[u8] {
        self.bytes
    }

    fn keep(&self, hold: impl FnOnce(Bytes) -> Bytes) -> Bytes {
        self.copy
            .get_or_init(|| hold(Bytes::copy_from_slice(self.bytes)))
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_keep_lent_frames_share_one_copy() {
        let (buffer, copy) = (vec![7; 100], OnceCell::new());
        let lent = Lent::new(&buffer[..10], &copy);
        let mut held = 0;
        let mut hold = |chunk| {
            held += 1;
            chunk
        };
        let (one, other) = (lent.keep(&mut hold), lent.keep(&mut hold));
        assert_eq!((one.as_ptr(), &one[..]), (other.as_ptr(), &buffer[..10]));
        assert_ne!(one.as_ptr(), buffer.as_ptr());
        let shared = Shared::new(Bytes::from(buffer));
        assert_eq!(shared.keep(&mut hold), shared.keep(&mut hold));
        assert_eq!(held, 2, "each was held once");
    }
}
