//! How many descriptors this process may have open: each connection takes one.

/// The soft limit that is assumed where the system reports none.
const DEFAULT_LIMIT: u64 = 1024;

/// Raises the soft limit to the hard one.
pub fn raise_descriptor_limit() {
    let _ = rlimit::increase_nofile_limit(u64::MAX);
}

/// The soft limit.
pub fn descriptor_limit() -> u64 {
    rlimit::Resource::NOFILE.get_soft().unwrap_or(DEFAULT_LIMIT)
}
