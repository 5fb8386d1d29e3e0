//! The presence contract over Redis.

crate::presence::contract!(Redis);
