//! What is sent: whole frames, which most recipients take at once. Only who can't has to keep them.

use std::cell::OnceCell;

use bytes::Bytes;

/// Whole frames, ready to send.
pub trait Frames {
    fn bytes(&self) -> &[u8];

    /// The same for a queue, which keeps it for longer than the caller does.
    fn keep(&self) -> Bytes;
}

impl Frames for Bytes {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn keep(&self) -> Bytes {
        self.clone()
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

    fn keep(&self) -> Bytes {
        self.copy
            .get_or_init(|| Bytes::copy_from_slice(self.bytes))
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
        let (one, other) = (lent.keep(), lent.keep());
        assert_eq!((one.as_ptr(), &one[..]), (other.as_ptr(), &buffer[..10]));
        assert_ne!(one.as_ptr(), buffer.as_ptr());
    }
}
