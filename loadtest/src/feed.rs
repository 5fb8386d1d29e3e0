//! How the bare loop without Kafka gets its messages: a stream of (session, payload) after a request line.

/// The first line of such a connection.
pub const REQUEST: &str = "FEED / HTTP/1.1\r\n";

/// Appends a message: the lengths of session and payload, and both.
pub fn write(out: &mut Vec<u8>, session: &str, payload: &[u8]) {
    out.extend_from_slice(&(session.len() as u16).to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(session.as_bytes());
    out.extend_from_slice(payload);
}

/// Passes on whole messages; returns the number of bytes used.
pub fn read(bytes: &[u8], mut take: impl FnMut(&str, &[u8])) -> usize {
    let mut used = 0;
    while let Some((session, payload, size)) = first(&bytes[used..]) {
        take(session, payload);
        used += size;
    }
    used
}

fn first(bytes: &[u8]) -> Option<(&str, &[u8], usize)> {
    let session = usize::from(u16::from_be_bytes(*bytes.first_chunk()?));
    let payload = u32::from_be_bytes(*bytes.get(2..)?.first_chunk()?) as usize;
    let body = bytes.get(6..6 + session + payload)?;
    let (session, payload) = body.split_at(session);
    Some((std::str::from_utf8(session).ok()?, payload, 6 + body.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_written_wherever_they_are_cut() {
        let mut bytes = Vec::new();
        write(&mut bytes, "s1", b"one");
        let first = bytes.len();
        write(&mut bytes, "s2", &[7; 300]);
        for cut in 0..=bytes.len() {
            let mut taken = Vec::new();
            let used = read(&bytes[..cut], |session, payload| {
                taken.push((session.to_owned(), payload.len()))
            });
            let whole = if cut < first {
                0
            } else if cut < bytes.len() {
                first
            } else {
                cut
            };
            assert_eq!(used, whole);
            let all = [("s1".to_owned(), 3), ("s2".to_owned(), 300)];
            assert_eq!(taken, all[..taken.len()]);
        }
    }
}
