//! The presence store's error.

/// The presence store can't be asked at the moment.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the presence store is not available")]
pub struct Unavailable;
