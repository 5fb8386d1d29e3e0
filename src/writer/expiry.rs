//! When the token of a connection ends. The sweep looks, so there is no timer per connection.

/// How long before its end a client is told, in seconds.
const NOTICE: u32 = 60;

/// In seconds since 1970; eight bytes, since every connection has one.
#[derive(Default)]
pub struct Expiry {
    /// `exp` plus the leeway; 0: it never ends. Ends after 2106 count as that year's.
    ends_at: u32,
    is_told: bool,
}

/// What the sweep has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// Tell the client.
    Notice,
    /// Close the connection.
    End,
}

impl Expiry {
    /// Another token begins to count, with a notice of its own.
    pub fn set(&mut self, ends_at: i64) {
        self.ends_at = u32::try_from(ends_at.max(1)).unwrap_or(u32::MAX);
        self.is_told = false;
    }

    /// What is due now. A notice is due once.
    pub fn due(&mut self, now: i64) -> Due {
        let left = i64::from(self.ends_at) - now;
        if self.ends_at == 0 || left > i64::from(NOTICE) {
            Due::Nothing
        } else if left <= 0 {
            Due::End
        } else if std::mem::replace(&mut self.is_told, true) {
            Due::Nothing
        } else {
            Due::Notice
        }
    }

    pub fn ends_at(&self) -> i64 {
        self.ends_at.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notice_comes_once_for_each_token() {
        let mut expiry = Expiry::default();
        assert_eq!(expiry.due(i64::MAX), Due::Nothing, "without a token");
        expiry.set(1_000);
        let due =
            |expiry: &mut Expiry, times: &[i64]| times.iter().map(|at| expiry.due(*at)).collect::<Vec<_>>();
        use Due::{End, Nothing, Notice};
        assert_eq!(
            due(&mut expiry, &[939, 940, 941, 999, 1_000, 2_000]),
            [Nothing, Notice, Nothing, Nothing, End, End]
        );
        expiry.set(3_000);
        assert_eq!(
            due(&mut expiry, &[2_000, 2_990, 2_991]),
            [Nothing, Notice, Nothing]
        );
        expiry.set(253_402_207_200);
        assert_eq!(due(&mut expiry, &[4_000_000_000]), [Nothing]);
        expiry.set(-5);
        assert_eq!(due(&mut expiry, &[0, 1]), [Notice, End]);
    }
}
