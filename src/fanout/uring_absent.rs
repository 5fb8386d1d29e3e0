//! The interface of `uring` without io_uring (other systems, or built without the feature): always an error.

use std::io;
use std::os::fd::BorrowedFd;

pub const MAX_SENDS: usize = 256;

/// A ring that can't be created.
pub enum Ring {}

impl Ring {
    /// # Errors
    ///
    /// Always.
    pub fn new() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// # Errors
    ///
    /// Always.
    pub fn probe() -> io::Result<()> {
        Self::new().map(drop)
    }

    pub fn is_broken(&self) -> bool {
        match *self {}
    }

    #[cfg(test)]
    pub fn break_it(&mut self) {
        match *self {}
    }

    pub fn submit<'a>(
        &mut self,
        _sends: impl Iterator<Item = (BorrowedFd<'a>, &'a [u8])>,
        _results: &mut Vec<io::Result<usize>>,
    ) {
        match *self {}
    }
}
