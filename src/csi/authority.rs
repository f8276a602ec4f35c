//! What a client at a Unix socket says whom it calls, put so that HTTP/2 servers take it.
//!
//! gRPC in Go, asked to call at a bare path, says `:authority: %2Fvar%2Flib%2F...`; other libraries say the path as it is. Neither is an authority, and
//! `h2` ends such a stream with PROTOCOL_ERROR before anybody sees the request (hyperium/h2#487). The kubelet's plugin watcher is such a
//! client (1.34 and 1.36; kubernetes#109081), and those of CSI before 1.26. Nobody reads the authority here. So `%` and `/` in it become `-`, which takes
//! as many bits in HPACK's Huffman code (RFC 7541, appendix B): every length stays, and what the client's encoder and our decoder remember stays as
//! long as it was. All else passes as it comes, without a copy where it may be a message.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes with which a client begins (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// Bytes before what a frame holds (RFC 9113, section 4.1).
const FRAME_BYTES: usize = 9;
/// The longest frame that a client may send us: we allow no more than the least.
const LONGEST: usize = 16 << 10;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;
const ALLOWED: u8 = b'-';

/// A connection whose client may say anything.
pub(super) struct Lenient<S> {
    stream: S,
    state: State,
}

enum State {
    /// The first bytes, a frame's head, or the headers behind it, until there are `until` of them.
    Collect {
        bytes: Vec<u8>,
        until: usize,
        part: Part,
    },
    /// What has been collected and not been read yet, and what comes behind it unseen.
    Give {
        bytes: Vec<u8>,
        given: usize,
        then: usize,
    },
    /// So many more bytes, unseen.
    Pass(usize),
}

#[derive(Clone, Copy)]
enum Part {
    Preface,
    Head,
    Headers,
}

impl<S> Lenient<S> {
    /// At its beginning.
    pub fn new(stream: S) -> Self {
        let state = State::collect(Vec::new(), PREFACE_BYTES, Part::Preface);
        Self { stream, state }
    }
}

impl State {
    fn collect(bytes: Vec<u8>, until: usize, part: Part) -> Self {
        Self::Collect { bytes, until, part }
    }

    /// What follows when all has been collected.
    fn collected(mut bytes: Vec<u8>, part: Part) -> Self {
        let then = match part {
            Part::Preface => 0,
            Part::Headers => {
                mend(&mut bytes);
                0
            }
            Part::Head => {
                let length = usize::from(bytes[0]) << 16
                    | usize::from(bytes[1]) << 8
                    | usize::from(bytes[2]);
                if bytes[3] == HEADERS && length <= LONGEST {
                    let until = FRAME_BYTES + length;
                    return Self::collect(bytes, until, Part::Headers);
                }
                length
            }
        };
        Self::Give {
            bytes,
            given: 0,
            then,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                _ if out.remaining() == 0 => return Poll::Ready(Ok(())),
                State::Collect { bytes, until, part } if bytes.len() == *until => {
                    this.state = State::collected(std::mem::take(bytes), *part);
                }
                State::Collect { bytes, until, .. } => {
                    let came = bytes.len();
                    bytes.resize(*until, 0);
                    let mut rest = ReadBuf::new(&mut bytes[came..]);
                    let read = Pin::new(&mut this.stream).poll_read(cx, &mut rest);
                    let more = rest.filled().len();
                    bytes.truncate(came + more);
                    ready!(read)?;
                    if more == 0 {
                        return Poll::Ready(Ok(())); // its end, also within a frame
                    }
                }
                State::Give { bytes, given, then } => {
                    let some = (bytes.len() - *given).min(out.remaining());
                    out.put_slice(&bytes[*given..*given + some]);
                    *given += some;
                    if *given == bytes.len() {
                        this.state = State::Pass(*then);
                    }
                    return Poll::Ready(Ok(()));
                }
                State::Pass(0) => this.state = State::collect(Vec::new(), FRAME_BYTES, Part::Head),
                State::Pass(left) => {
                    let some = out.remaining().min(*left);
                    let mut rest = ReadBuf::new(out.initialize_unfilled_to(some));
                    ready!(Pin::new(&mut this.stream).poll_read(cx, &mut rest))?;
                    let more = rest.filled().len();
                    out.advance(more);
                    *left -= more;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Mends the authority in a whole HEADERS frame. What is malformed is left as it is: `h2` has words for it.
fn mend(frame: &mut [u8]) {
    let flags = frame[4];
    let padding = usize::from(flags & PADDED != 0);
    let before = padding + if flags & PRIORITY != 0 { 5 } else { 0 };
    if let Some(block) = frame.get_mut(FRAME_BYTES + before..) {
        let mut fields = Fields { block, at: 0 };
        while fields.next().is_some() {}
    }
}

/// The fields of a header block (RFC 7541, section 6), as far as one has to know them to find the next.
struct Fields<'b> {
    block: &'b mut [u8],
    at: usize,
}

impl Fields<'_> {
    /// Past the next one; `None` at the end, and where it makes no sense.
    fn next(&mut self) -> Option<()> {
        let first = *self.block.get(self.at)?;
        let name = match first {
            0x80.. => return self.integer(7).map(drop), // indexed
            0x40.. => self.integer(6)?,
            0x20.. => return self.integer(5).map(drop), // the table's size
            _ => self.integer(4)?,
        };
        if name == 0 {
            self.string()?;
        }
        let (value, huffman) = self.string()?;
        match (name == AUTHORITY, huffman) {
            (false, _) => {}
            (true, true) => mend_huffman(value),
            (true, false) => {
                for byte in value.iter_mut().filter(|byte| matches!(byte, b'%' | b'/')) {
                    *byte = ALLOWED;
                }
            }
        }
        Some(())
    }

    /// An integer with a prefix of so many bits (section 5.1).
    fn integer(&mut self, bits: u32) -> Option<usize> {
        let most = (1 << bits) - 1;
        let mut value = usize::from(*self.block.get(self.at)?) & most;
        self.at += 1;
        if value < most {
            return Some(value);
        }
        for shift in [0, 7, 14] {
            let byte = usize::from(*self.block.get(self.at)?);
            self.at += 1;
            value += (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None // longer than any frame
    }

    /// A string, and whether it is Huffman-coded (section 5.2).
    fn string(&mut self) -> Option<(&mut [u8], bool)> {
        let huffman = *self.block.get(self.at)? & 0x80 != 0;
        let length = self.integer(7)?;
        let from = self.at;
        self.at += length;
        Some((self.block.get_mut(from..self.at)?, huffman))
    }
}

/// `%` (010101) and `/` (011000) become `-` (010110). The code's words of five to eight bits are the ones that paths are made of; at any other
/// the rest is left.
fn mend_huffman(value: &mut [u8]) {
    let bits = value.len() * 8;
    let mut at = 0;
    while at < bits {
        let two = |i: usize| u16::from(value.get(i).copied().unwrap_or(0xff));
        let both = two(at / 8) << 8 | two(at / 8 + 1);
        let [next, _] = (both << (at % 8)).to_be_bytes();
        let length = match next {
            0x00..0x50 => 5,
            0x50..0xb8 => 6,
            0xb8..0xf8 => 7,
            0xf8..0xfe => 8,
            _ => return,
        };
        if at + length > bits {
            return; // padding
        }
        if length == 6 && matches!(next >> 2, 0b01_0101 | 0b01_1000) {
            for bit in 0..6 {
                let mask = 0x80 >> ((at + bit) % 8);
                let octet = &mut value[(at + bit) / 8];
                match 0b01_0110 >> (5 - bit) & 1 {
                    0 => *octet &= !mask,
                    _ => *octet |= mask,
                }
            }
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// A header block as Go's `hpack` writes it for the kubelet's GetInfo: `:method`, `:scheme`, `:path`, `:authority`
    /// (`%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fcsi.secretfs.dev-reg.sock`), and three more.
    const KUBELET: &str = "8386459c62ba2d98d558598c84d83498f52fb4b31909b06931ea63115392a94f41b254587b8ec545868346a8b0f5b632d054aa2c35d16cc6a91158598c84d9e95161220cba0a4b0a9950bc85eeb58599741c9d7f5f8b1d75d0620d263d4c4d65647a8a9acac8b4c7602bba25c340027465864d833505b11f";

    fn bytes(hex: &str) -> Vec<u8> {
        let pairs = hex.as_bytes().chunks(2);
        pairs
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        [&head[..], payload].concat()
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frames.concat(),
        ]
        .concat()
    }

    /// What is read of it, when it comes in pieces of so many bytes.
    fn read(sent: &[u8], piece: usize) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            let (mut client, server) = tokio::io::duplex(piece);
            let mut lenient = Lenient::new(server);
            let mut came = Vec::new();
            let (sent, read) = tokio::join!(
                async move { tokio::io::AsyncWriteExt::write_all(&mut client, sent).await },
                lenient.read_to_end(&mut came),
            );
            sent.unwrap();
            read.unwrap();
            came
        })
    }

    /// A literal field, never indexed, plain: name by index.
    fn plain(name: u8, value: &str) -> Vec<u8> {
        let length = u8::try_from(value.len()).unwrap();
        [&[0x10 | name, length][..], value.as_bytes()].concat()
    }

    #[test]
    fn the_kubelets_authority_becomes_one_and_nothing_else_changes() {
        let block = bytes(KUBELET);
        let mut mended = frame(HEADERS, 4, &block);
        mend(&mut mended);
        // "-2Fvar..." by Go's encoder: the same but for the codes of `%`
        let changed: Vec<_> = (0..block.len())
            .filter(|at| mended[FRAME_BYTES + at] != block[*at])
            .collect();
        assert!(
            changed.iter().all(|at| (34..84).contains(at)),
            "{changed:?}"
        );
        let mut word = bytes("54587b8ecf"); // "%2Fvar"
        mend_huffman(&mut word);
        assert_eq!(word, bytes("58587b8ecf")); // "-2Fvar"
        let mut path = bytes("63b8ec628347"); // "/var/lib"
        mend_huffman(&mut path);
        assert_eq!(path, bytes("5bb8ec5a8347")); // "-var-lib"
        let mut plain = frame(HEADERS, 4, &plain(1, "/run/a.sock"));
        mend(&mut plain);
        assert!(plain.ends_with(b"-run-a.sock"));
    }

    #[test]
    fn padding_and_priority_come_before_the_fields() {
        let before = [3, 0, 0, 0, 0, 0]; // pad length, dependency and weight
        let payload = [&before[..], &plain(1, "%2Fa"), &[0; 3]].concat();
        let mut mended = frame(HEADERS, 4 | PADDED | PRIORITY, &payload);
        mend(&mut mended);
        assert!(mended.windows(4).any(|at| at == b"-2Fa"));
    }

    #[test]
    fn only_the_authority_of_headers_is_touched() {
        let data = plain(1, "%2F/");
        let path = plain(4, "/a/%20");
        let sent = connection(&[
            frame(4, 0, &[]),
            frame(HEADERS, 4, &path),
            frame(0, 1, &data),
            frame(9, 4, &data),
        ]);
        assert_eq!(read(&sent, 7), sent);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_in_which_pieces_it_comes(piece in 1_usize..200, tail in prop::collection::vec(any::<u8>(), 0..50)) {
            let headers = frame(HEADERS, 4, &bytes(KUBELET));
            let sent = connection(&[frame(4, 0, &[0; 6]), headers.clone(), frame(0, 1, &[0x25; 3_000]), headers, tail]);
            let whole = read(&sent, sent.len());
            prop_assert_ne!(&whole, &sent);
            prop_assert!(read(&sent, piece) == whole);
        }

        #[test]
        fn garbage_stays_as_long_as_it_is(payload in prop::collection::vec(any::<u8>(), 0..300), flags in any::<u8>()) {
            let mut mended = frame(HEADERS, flags, &payload);
            let before = mended.len();
            mend(&mut mended);
            prop_assert_eq!(mended.len(), before);
        }
    }
}
