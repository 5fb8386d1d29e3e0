use proptest::prelude::*;

use super::*;

/// A text frame of this size, masked with zeros.
fn frame(size: usize, filler: u8) -> Vec<u8> {
    let mut frame = vec![0x81];
    match size {
        6..=131 => frame.push(0x80 | (size - 6) as u8),
        _ => {
            frame.push(0x80 | 126);
            frame.extend(((size - 8) as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.resize(size, filler);
    frame
}

/// The payloads read from a connection that begins with `early`, burst by burst.
async fn read_all(mut early: Bytes, mut socket: &[u8]) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    while !early.is_empty() || !socket.is_empty() {
        let scanner = Mutex::new(Scanner::new(65_536));
        if early.is_empty() {
            let step = socket.len().min(SCRATCH_BYTES);
            early = Bytes::copy_from_slice(&socket[..step]);
            socket = &socket[step..];
        }
        let scanned = Scanned {
            scanner: &scanner,
            prefix: &mut early,
            socket: &mut socket,
        };
        let take = |frame: Frame<'_>| {
            payloads.push(frame.payload.to_vec());
            ControlFlow::Continue(())
        };
        let burst = read_frames(scanned, 65_536, take).await;
        assert!(burst.is_ok_and(|burst| burst == Burst::Idle));
    }
    payloads
}

fn in_order(sizes: &[usize], cut: usize) {
    let frames: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(number, &size)| frame(size, b'a' + (number % 26) as u8))
        .collect();
    let bytes = frames.concat();
    let (early, socket) = bytes.split_at(cut.min(bytes.len()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let read = runtime.block_on(read_all(Bytes::copy_from_slice(early), socket));
    let payloads = frames.iter().map(|frame| {
        let head = if frame.len() < 132 { 6 } else { 8 };
        frame[head..].to_vec()
    });
    assert!(read.iter().eq(payloads.collect::<Vec<_>>().iter()));
}

#[test]
fn frames_of_every_size_straddle_the_end_of_a_buffer_in_order() {
    for size in (6..=131).chain(134..300) {
        in_order(&vec![size; 2 * SCRATCH_BYTES / size + 3], SCRATCH_BYTES + 100);
        in_order(&vec![size; 3 * SCRATCH_BYTES / size], 2 * SCRATCH_BYTES);
    }
}

proptest! {
    #[test]
    fn frames_behind_the_handshake_are_read_in_order(
        sizes in prop::collection::vec(prop_oneof![6usize..132, 134usize..5_000], 1..60),
        cut in 0usize..60_000,
    ) {
        in_order(&sizes, cut);
    }
}
