//! Checks that each client gets the numbered messages of its session once and in order.

use crate::crowd::Id;

pub struct Sequences {
    /// The number that each client expects next.
    next: Vec<u64>,
    /// Missing numbers.
    pub lost: u64,
    /// Numbers that were there before: repeated, or out of order.
    pub doubled: u64,
}

impl Sequences {
    pub fn new(clients: usize) -> Self {
        Self {
            next: vec![0; clients],
            lost: 0,
            doubled: 0,
        }
    }

    /// Notes a client's message; false if the client had it before.
    pub fn take(&mut self, client: Id, number: u64) -> bool {
        let next = &mut self.next[client];
        if number < *next {
            self.doubled += 1;
            return false;
        }
        self.lost += number - *next;
        *next = number + 1;
        true
    }

    /// How many of the messages sent to each client's session have not arrived at the end.
    pub fn missing(&self, sent: impl Fn(Id) -> u64) -> u64 {
        let of = |(client, next): (Id, &u64)| sent(client).saturating_sub(*next);
        self.next.iter().enumerate().map(of).sum()
    }
}
