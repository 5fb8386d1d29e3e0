//! The presence contract over the store in the process.

crate::presence::contract!(Embedded);
