//! The mark that every generated frame carries: whose it is, its number and when it left.
//!
//! Sixteen bytes, two little-endian words: magic, stream and the low 32 bits of the sequence number in the first, the
//! time of sending in nanoseconds since the program started in the second. The number wraps after 4.3 thousand million frames
//! (two minutes at 35 Mpps); the sink extends it, for no frame is late by half of that.
//! In generated frames it follows the UDP or TCP header. In frames taken from a capture it is the frame's last 16 bytes,
//! with two bytes before it that keep the ones' complement sum of the 18, so that the checksums above stay right.

/// Bytes of a signature.
pub(crate) const LEN: usize = 16;
/// Bytes at the end of a frame from a capture: the compensation and the signature.
pub(crate) const TRAILER: usize = 2 + LEN;

const MAGIC: u64 = 0x71f5;

/// What a frame says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Signature {
    /// The stream it belongs to.
    pub(crate) stream: u16,
    /// The low bits of its number in the stream.
    pub(crate) sequence: u32,
    /// When it was sent, ns since the program started.
    pub(crate) time_ns: u64,
}

impl Signature {
    /// The two words, as little-endian numbers.
    #[inline]
    pub(crate) fn words(self) -> [u64; 2] {
        [Signature::first_word(self.stream) | u64::from(self.sequence), self.time_ns]
    }

    /// The first word of a stream's signature with number 0; the number is its low half.
    #[inline]
    pub(crate) fn first_word(stream: u16) -> u64 {
        MAGIC << 48 | u64::from(stream) << 32
    }

    /// Reads the two words; `None` if they are not a signature.
    #[inline]
    pub(crate) fn from_words([first, time_ns]: [u64; 2]) -> Option<Signature> {
        (first >> 48 == MAGIC).then_some(Signature { stream: (first >> 32) as u16, sequence: first as u32, time_ns })
    }

    /// As it lies in a frame.
    pub(crate) fn bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.words()) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads it from a frame's bytes.
    #[cfg(test)]
    pub(crate) fn from_bytes(bytes: &[u8; LEN]) -> Option<Signature> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        Signature::from_words([word(0), word(8)])
    }
}

/// The ones' complement sum (RFC 1071) of `bytes`, of which the first lies at an even or odd place of a frame.
pub(crate) fn sum(bytes: &[u8], starts_odd: bool) -> u16 {
    let mut total: u32 = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let is_low = (at % 2 == 1) != starts_odd;
        total += if is_low { u32::from(byte) } else { u32::from(byte) << 8 };
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Puts a signature into the last bytes of `frame`, which has at least [`TRAILER`]. The ones' complement sum of the frame
/// stays what it was.
pub(crate) fn sign_trailer(frame: &mut [u8], signature: Signature) {
    let at = frame.len() - TRAILER;
    let is_odd = at % 2 == 1;
    let before = sum(&frame[at..], is_odd);
    frame[at..at + 2].fill(0);
    frame[at + 2..].copy_from_slice(&signature.bytes());
    let after = sum(&frame[at..], is_odd);
    // before - after, in ones' complement.
    let total = u32::from(before) + u32::from(!after);
    let missing = ((total & 0xffff) + (total >> 16)) as u16;
    let bytes = if is_odd { missing.to_le_bytes() } else { missing.to_be_bytes() };
    frame[at..at + 2].copy_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: Signature = Signature { stream: 3, sequence: 0xfedc_ba98, time_ns: 0x0123_4567_89ab_cdef };

    #[test]
    fn a_signature_survives_its_bytes_and_noise_is_none() {
        assert_eq!(Signature::from_bytes(&SIGNATURE.bytes()), Some(SIGNATURE));
        assert_eq!(Signature::from_bytes(&[0; LEN]), None);
    }

    #[test]
    fn a_signed_trailer_keeps_the_sum_wherever_it_begins() {
        for len in [TRAILER, TRAILER + 1, 60, 61, 1514] {
            let mut frame: Vec<u8> = (0..len).map(|at| (at * 37 + len) as u8).collect();
            let before = sum(&frame, false);
            sign_trailer(&mut frame, SIGNATURE);
            assert_eq!(sum(&frame, false) % 0xffff, before % 0xffff, "{len} bytes");
            let tail: &[u8; LEN] = frame.last_chunk().unwrap();
            assert_eq!(Signature::from_bytes(tail), Some(SIGNATURE));
        }
    }
}
