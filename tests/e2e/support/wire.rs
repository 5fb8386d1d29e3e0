//! RFC 6455 frames by hand, valid and not.

/// The opcodes of RFC 6455; a reserved one is just its number in [`Frame::opcode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// A frame as it goes over the wire. [`Frame::encode`] writes it masked, as a client must, unless told otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    /// RSV1 to RSV3 as the bits 4, 2, 1.
    pub rsv: u8,
    pub opcode: u8,
    pub mask: Option<[u8; 4]>,
    pub payload: Vec<u8>,
}

const MASK: [u8; 4] = [0x5a, 0xc3, 0x00, 0xff];

impl Frame {
    pub fn new(opcode: Opcode, payload: impl AsRef<[u8]>) -> Self {
        Self {
            fin: true,
            rsv: 0,
            opcode: opcode as u8,
            mask: Some(MASK),
            payload: payload.as_ref().to_vec(),
        }
    }

    pub fn text(text: impl AsRef<[u8]>) -> Self {
        Self::new(Opcode::Text, text)
    }

    pub fn ping(payload: impl AsRef<[u8]>) -> Self {
        Self::new(Opcode::Ping, payload)
    }

    pub fn pong(payload: impl AsRef<[u8]>) -> Self {
        Self::new(Opcode::Pong, payload)
    }

    pub fn continuation(payload: impl AsRef<[u8]>) -> Self {
        Self::new(Opcode::Continuation, payload)
    }

    /// A close frame with code and reason.
    pub fn close(code: u16, reason: &str) -> Self {
        Self::new(
            Opcode::Close,
            [&code.to_be_bytes()[..], reason.as_bytes()].concat(),
        )
    }

    /// Any opcode, the reserved ones too.
    pub fn raw(opcode: u8, payload: impl AsRef<[u8]>) -> Self {
        Self {
            opcode,
            ..Self::text(payload)
        }
    }

    /// The frame as a fragment that is not the last one.
    pub fn not_fin(mut self) -> Self {
        self.fin = false;
        self
    }

    pub fn rsv(mut self, bits: u8) -> Self {
        self.rsv = bits;
        self
    }

    pub fn unmasked(mut self) -> Self {
        self.mask = None;
        self
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.header(self.payload.len() as u64);
        match self.mask {
            Some(mask) => bytes.extend(
                self.payload
                    .iter()
                    .zip(mask.iter().cycle())
                    .map(|(byte, key)| byte ^ key),
            ),
            None => bytes.extend_from_slice(&self.payload),
        }
        bytes
    }

    /// Only the header, claiming any length.
    pub fn header(&self, length: u64) -> Vec<u8> {
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        let mut bytes = vec![(u8::from(self.fin) << 7) | (self.rsv << 4) | self.opcode];
        match length {
            0..=125 => bytes.push(masked | length as u8),
            126..=0xffff => {
                bytes.push(masked | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(masked | 127);
                bytes.extend(length.to_be_bytes());
            }
        }
        bytes.extend(self.mask.iter().flatten());
        bytes
    }

    /// The first frame of the bytes and its size, or None when more are needed. Lengths must be in their shortest form.
    pub fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        let (length, mut at) = match second & 0x7f {
            126 => (
                u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())),
                4,
            ),
            127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()), 10),
            short => (u64::from(short), 2),
        };
        assert!(
            at != 4 || length > 125,
            "a length that is not in its shortest form"
        );
        assert!(
            at != 10 || length > 0xffff,
            "a length that is not in its shortest form"
        );
        let mut mask: Option<[u8; 4]> = None;
        if second & 0x80 != 0 {
            mask = Some(bytes.get(at..at + 4)?.try_into().unwrap());
            at += 4;
        }
        let end = at + usize::try_from(length).unwrap();
        let mut payload = bytes.get(at..end)?.to_vec();
        if let Some(mask) = mask {
            payload
                .iter_mut()
                .zip(mask.iter().cycle())
                .for_each(|(byte, key)| *byte ^= key);
        }
        Some((
            Frame {
                fin: first & 0x80 != 0,
                rsv: (first >> 4) & 7,
                opcode: first & 15,
                mask,
                payload,
            },
            end,
        ))
    }

    pub fn is(&self, opcode: Opcode) -> bool {
        self.opcode == opcode as u8
    }

    /// The code of a close frame; None for an empty one.
    #[track_caller]
    pub fn close_code(&self) -> Option<u16> {
        assert!(self.is(Opcode::Close), "not a close frame: {self:?}");
        self.payload.first_chunk().map(|code| u16::from_be_bytes(*code))
    }
}
