//! What a message carries to be measured: its number in its session, and when it was to be sent. Digits only, so that
//! a server may wrap, escape or convert the message as it likes.

const START: &[u8] = b"#lt:";
const NUMBER: usize = 10;
const TIME: usize = 16;
/// Start, number, colon, time, colon.
pub const LENGTH: usize = START.len() + NUMBER + 1 + TIME + 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// From 0, in the session.
    pub number: u64,
    /// Nanoseconds since the run's epoch.
    pub intended: u64,
}

impl Marker {
    pub fn bytes(self) -> [u8; LENGTH] {
        let mut bytes = [b':'; LENGTH];
        bytes[..START.len()].copy_from_slice(START);
        let number = START.len();
        write_digits(&mut bytes[number..number + NUMBER], self.number);
        write_digits(&mut bytes[LENGTH - 1 - TIME..LENGTH - 1], self.intended);
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let number = START.len();
        Some(Self {
            number: read_digits(bytes.get(number..number + NUMBER)?)?,
            intended: read_digits(bytes.get(LENGTH - 1 - TIME..LENGTH - 1)?)?,
        })
    }
}

/// The markers of a frame: a server may put several messages into one.
pub fn find_all(payload: &[u8], mut each: impl FnMut(Marker)) {
    let mut rest = payload;
    while let Some(at) = memchr::memmem::find(rest, START) {
        match Marker::read(&rest[at..]) {
            Some(marker) => {
                each(marker);
                rest = &rest[at + LENGTH..];
            }
            None => rest = &rest[at + START.len()..],
        }
    }
}

fn write_digits(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

fn read_digits(bytes: &[u8]) -> Option<u64> {
    bytes.iter().try_fold(0, |value, byte| {
        byte.is_ascii_digit().then(|| value * 10 + u64::from(byte - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_wherever_they_are() {
        let markers = [(0, 0), (1, 5), (4_294_967_296, 9_999_999_999_999_999)];
        let markers = markers.map(|(number, intended)| Marker { number, intended });
        let mut frame = b"{\"message\":\"#lt:no\"}".to_vec();
        for marker in markers {
            frame.extend_from_slice(b"\n{\"message\":\"");
            frame.extend_from_slice(&marker.bytes());
            frame.extend_from_slice(b"\"}");
        }
        let mut found = Vec::new();
        find_all(&frame, |marker| found.push(marker));
        assert_eq!(found, markers);
    }

    #[test]
    fn half_a_marker_is_none() {
        let bytes = Marker {
            number: 1,
            intended: 2,
        }
        .bytes();
        for cut in 0..LENGTH - 1 {
            find_all(&bytes[..cut], |marker| panic!("{marker:?} in {cut} bytes"));
        }
    }
}
