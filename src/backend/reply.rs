//! A backend's reply, read strictly from its bytes. Pure: no I/O, no waiting.
//!
//! Where two readers could disagree on where a reply ends, it is refused, or its connection is not
//! used again. What is read is bounded: the head here, the body by whoever reads it.

use std::mem::MaybeUninit;

use http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, StatusCode};
use memchr::memmem;

/// Most headers of a reply.
const MAX_HEADERS: usize = 100;
/// Most bytes of a reply's head, with the interim replies before it.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Most bytes of a chunked body that are neither data nor sizes: extensions and trailers, which
/// nobody reads.
const MAX_CHUNK_EXTRAS: usize = 16 * 1024;

/// What a reply's head says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) content_encoding: Option<HeaderValue>,
    pub(super) framing: Framing,
    /// Whether the connection may be used again once the body was read to its end.
    pub(super) keeps_open: bool,
    /// Bytes of the head, with the empty line that ends it.
    pub(super) length: usize,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    UntilClosed,
}

/// What is wrong with a reply, as a sentence. Never a part of it.
pub(super) type Broken = &'static str;

/// Looks for a reply's head as bytes come in, and reads it once it is whole.
#[derive(Default)]
pub(super) struct HeadReader {
    /// Bytes of interim replies that were passed over.
    passed: usize,
    /// Bytes that were searched for the head's end.
    searched: usize,
}

impl HeadReader {
    /// Reads the head that `bytes` begin with, behind interim replies; `None` if more has to come.
    ///
    /// Called again with more bytes it goes on where it was, so that a head that comes byte by byte
    /// is not read as often. [`Head::length`] counts the interim replies, too.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Option<Head>, Broken> {
        loop {
            let unread = &bytes[self.passed..];
            let first = self.searched == self.passed;
            // The end may have begun in what was searched already.
            let from = (self.searched - self.passed).saturating_sub(3);
            self.searched = bytes.len();
            // The first bytes are looked at in any case: what is no HTTP need not be waited for.
            let head = if first || has_empty_line(&unread[from..]) { head(unread)? } else { None };
            match head {
                Some(head) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                    return Err("the backend switched protocols");
                }
                Some(head) if head.status.is_informational() => {
                    self.passed += head.length;
                    self.searched = self.passed;
                }
                Some(head) => return Ok(Some(Head { length: self.passed + head.length, ..head })),
                None if bytes.len() >= MAX_HEAD => return Err("the reply's head is too long"),
                None => return Ok(None),
            }
        }
    }
}

/// Whether there may be the end of a head.
fn has_empty_line(bytes: &[u8]) -> bool {
    memmem::find(bytes, b"\n\r\n").is_some() || memmem::find(bytes, b"\n\n").is_some()
}

fn head(bytes: &[u8]) -> Result<Option<Head>, Broken> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut response, bytes, &mut headers) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err("the reply has too many headers"),
        Err(_) => return Err("the reply is not HTTP"),
    };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or("the reply is not HTTP")?;
    let is_http_1_0 = response.version == Some(0);

    let (mut content_type, mut content_encoding) = (None, None);
    let (mut promised, mut chunked) = (None, false);
    let (mut closes, mut stays) = (false, false);
    for header in response.headers.iter() {
        let is = |name: &HeaderName| header.name.eq_ignore_ascii_case(name.as_str());
        if is(&CONTENT_TYPE) {
            // Readers differ in which of two they believe.
            if content_type.replace(value(header.value)?).is_some() {
                return Err("the reply has more than one content-type");
            }
        } else if is(&CONTENT_LENGTH) {
            // A list of equal ones is the same as one (RFC 9110, section 8.6).
            for length in header.value.split(|&byte| byte == b',') {
                let length = digits(length.trim_ascii()).ok_or("the reply has a content-length that is no number")?;
                if promised.replace(length).is_some_and(|before| before != length) {
                    return Err("the reply has two content-lengths");
                }
            }
        } else if is(&TRANSFER_ENCODING) {
            if chunked || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") || is_http_1_0 {
                return Err("the reply has a transfer-encoding that was not asked for");
            }
            chunked = true;
        } else if is(&CONTENT_ENCODING) {
            if content_encoding.replace(value(header.value)?).is_some() {
                return Err("the reply has more than one content-encoding");
            }
        } else if is(&CONNECTION) {
            let mut options = header.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
            closes |= options.clone().any(|option| option.eq_ignore_ascii_case(b"close"));
            stays |= options.any(|option| option.eq_ignore_ascii_case(b"keep-alive"));
        }
    }
    let has_no_body =
        status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let framing = match promised {
        _ if has_no_body => Framing::Length(0),
        _ if chunked => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClosed,
    };
    // Both lengths: the chunks count, and nothing behind them is believed (RFC 9112, section 6.3).
    // A body where none can be: whoever promises one may send it, too.
    let is_doubtful =
        chunked && promised.is_some() || has_no_body && (chunked || promised.is_some_and(|length| length > 0));
    let keeps_open = !closes && (stays || !is_http_1_0) && !is_doubtful && framing != Framing::UntilClosed;
    Ok(Some(Head { status, content_type, content_encoding, framing, keeps_open, length }))
}

fn value(bytes: &[u8]) -> Result<HeaderValue, Broken> {
    // Nearly always, and then without a copy.
    if bytes == b"application/json" {
        return Ok(HeaderValue::from_static("application/json"));
    }
    HeaderValue::from_bytes(bytes).map_err(|_| "the reply is not HTTP")
}

/// A number of digits only. More than 19 are no length of anything.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0')))
}

/// Takes a chunked body apart (RFC 9112, section 7.1). A line ends in CRLF and in nothing else.
pub(super) struct Chunks {
    awaits: Awaits,
    /// What is left of the chunk; while its size is read, that.
    left: u64,
    /// Extensions and trailers so far.
    extras: usize,
    body: Vec<u8>,
    limit: usize,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaits {
    /// The first digit of a size.
    Size,
    /// Another digit, or what ends the size.
    Digit,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// A trailer, or the empty line that ends the body.
    Trailer,
    TrailerRest,
    TrailerLf,
    EndLf,
    Nothing,
}

/// Why a chunked body is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChunkError {
    /// It is no chunked body.
    Broken(Broken),
    /// It is longer than its reader wants it.
    TooLong,
}

impl Chunks {
    /// A body of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { awaits: Awaits::Size, left: 0, extras: 0, body: Vec::new(), limit }
    }

    /// Reads on; how many of the bytes it has taken. Fewer than all only if the body has ended.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let mut at = 0;
        while at < bytes.len() && self.awaits != Awaits::Nothing {
            if self.awaits == Awaits::Data {
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                if self.body.len() + taken > self.limit {
                    return Err(ChunkError::TooLong);
                }
                self.body.extend_from_slice(&bytes[at..at + taken]);
                self.left -= taken as u64;
                at += taken;
                if self.left == 0 {
                    self.awaits = Awaits::DataCr;
                }
            } else {
                self.awaits = self.step(bytes[at]).map_err(ChunkError::Broken)?;
                at += 1;
            }
        }
        Ok(at)
    }

    /// The body, if it has ended.
    pub(super) fn finish(&mut self) -> Option<Vec<u8>> {
        (self.awaits == Awaits::Nothing).then(|| std::mem::take(&mut self.body))
    }

    fn step(&mut self, byte: u8) -> Result<Awaits, Broken> {
        use Awaits::{
            Data, DataCr, DataLf, Digit, EndLf, Extension, Nothing, Size, SizeLf, Trailer, TrailerLf, TrailerRest,
        };
        const NO_CHUNK: Broken = "the reply's chunks are broken";
        if matches!(self.awaits, Extension | Trailer | TrailerRest) {
            self.extras += 1;
            if self.extras > MAX_CHUNK_EXTRAS {
                return Err("the reply has too many trailers or chunk extensions");
            }
        }
        Ok(match (self.awaits, byte) {
            (Size | Digit, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).ok_or(NO_CHUNK)?;
                let size = self.left.checked_mul(16).ok_or(NO_CHUNK)?;
                self.left = size + u64::from(digit);
                Digit
            }
            (Digit | Extension, b'\r') => SizeLf,
            (Digit, b';' | b' ' | b'\t') => Extension,
            // Some end a line there, and read another size.
            (Extension, byte) if byte != b'\n' => Extension,
            (SizeLf, b'\n') if self.left == 0 => Trailer,
            (SizeLf, b'\n') => Data,
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => Size,
            (Trailer, b'\r') => EndLf,
            (Trailer | TrailerRest, byte) if byte != b'\n' => {
                if byte == b'\r' {
                    TrailerLf
                } else {
                    TrailerRest
                }
            }
            (TrailerLf, b'\n') => Trailer,
            (EndLf, b'\n') => Nothing,
            _ => return Err(NO_CHUNK),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Reads it in pieces of every size; the result must not depend on them.
    fn read(text: &str) -> Result<Option<Head>, Broken> {
        let whole = HeadReader::default().read(text.as_bytes());
        for size in 1..text.len() {
            let mut reader = HeadReader::default();
            let mut result = Ok(None);
            let mut end = 0;
            while end < text.len() && result == Ok(None) {
                end = (end + size).min(text.len());
                result = reader.read(&text.as_bytes()[..end]);
            }
            // What is wrong may be seen before all has come.
            assert_eq!(result, whole, "in pieces of {size}: {text:?}");
        }
        whole
    }

    fn framing(headers: &str) -> Result<(Framing, bool), Broken> {
        let head = read(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n"))?.expect("is whole");
        Ok((head.framing, head.keeps_open))
    }

    #[test]
    fn a_usual_head() {
        let text = "HTTP/1.1 201 Created\r\nServer: x\r\ncontent-TYPE:  application/json \r\n\
                    Content-Encoding: identity\r\nContent-Length: 7\r\n\r\n{}";
        let head = read(text).unwrap().unwrap();
        assert_eq!(head.status, 201);
        assert_eq!(head.content_type.unwrap(), "application/json");
        assert_eq!(head.content_encoding.unwrap(), "identity");
        assert_eq!((head.framing, head.keeps_open, head.length), (Framing::Length(7), true, text.len() - 2));
        for end in 0..text.len() - 2 {
            assert_eq!(HeadReader::default().read(&text.as_bytes()[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn how_a_body_ends() {
        use Framing::{Chunked, Length, UntilClosed};
        for (headers, expected) in [
            ("", Ok((UntilClosed, false))),
            ("Content-Length: 0\r\n", Ok((Length(0), true))),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", Ok((Length(5), true))),
            ("Content-Length: 5, 5\r\n", Ok((Length(5), true))),
            ("Content-Length: 5\r\nConnection: x, Close\r\n", Ok((Length(5), false))),
            ("Content-Length: 5\r\nConnection: keep-alive\r\n", Ok((Length(5), true))),
            ("Transfer-Encoding: chunked\r\n", Ok((Chunked, true))),
            ("transfer-encoding:\tCHUNKED \r\n", Ok((Chunked, true))),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Ok((Chunked, false))),
        ] {
            assert_eq!(framing(headers), expected, "{headers:?}");
        }
        for headers in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 6\r\n",
            "Content-Length: \r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5.0\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: \r\n",
            "Transfer-Encoding : chunked\r\n",
            "Content-Length: 5\r\n X: obs-fold\r\n",
            "X: a\0b\r\n",
            "no header\r\n",
        ] {
            assert!(framing(headers).is_err(), "{headers:?}");
        }
    }

    #[test]
    fn replies_that_have_no_body_whatever_they_say() {
        for status in [204, 304] {
            for (headers, keeps_open) in [
                ("", true),
                ("Content-Length: 0\r\n", true),
                // It may come all the same, and be taken for the next reply.
                ("Content-Length: 9\r\n", false),
                ("Transfer-Encoding: chunked\r\n", false),
            ] {
                let head = read(&format!("HTTP/1.1 {status} X\r\n{headers}\r\n")).unwrap().unwrap();
                assert_eq!((head.framing, head.keeps_open), (Framing::Length(0), keeps_open), "{status} {headers}");
            }
        }
    }

    #[test]
    fn old_http_closes_unless_it_says_otherwise_and_has_no_chunks() {
        let read = |headers: &str| read(&format!("HTTP/1.0 200 OK\r\n{headers}\r\n"));
        let keeps_open = |headers: &str| read(headers).unwrap().unwrap().keeps_open;
        assert!(!keeps_open("Content-Length: 1\r\n"));
        assert!(keeps_open("Content-Length: 1\r\nConnection: Keep-Alive\r\n"));
        assert!(!keeps_open("Connection: keep-alive\r\n"));
        assert!(read("Transfer-Encoding: chunked\r\n").is_err());
    }

    #[test]
    fn interim_replies_are_passed_over() {
        let interim =
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 3\r\n\r\n";
        let text = format!("{interim}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        let head = read(&text).unwrap().unwrap();
        assert_eq!((head.status.as_u16(), head.framing, head.length), (200, Framing::Length(2), text.len()));
        assert_eq!(read(interim), Ok(None));
        assert!(read("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n").is_err());
        let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(MAX_HEAD / 25 + 1);
        assert!(HeadReader::default().read(endless.as_bytes()).is_err());
    }

    #[test]
    fn heads_without_end_and_without_sense() {
        let many = (0..=MAX_HEADERS).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
        assert_eq!(framing(&many), Err("the reply has too many headers"));
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_HEAD));
        assert_eq!(HeadReader::default().read(long.as_bytes()), Err("the reply's head is too long"));
        for text in
            ["SSH-2.0-OpenSSH_9.2\r\n", "\0", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 099 X\r\n\r\n", "{", "HTTP/2"]
        {
            // In pieces it may take the end of the connection to tell.
            assert!(HeadReader::default().read(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    /// What comes out of a chunked body, and how much of it was taken, in pieces of every size.
    fn unchunk(text: &[u8], limit: usize) -> Result<Option<(Vec<u8>, usize)>, ChunkError> {
        let mut results = (1..=text.len().max(1)).map(|size| {
            let mut chunks = Chunks::new(limit);
            let mut taken = 0;
            for piece in text.chunks(size) {
                let here = chunks.feed(piece)?;
                taken += here;
                if here < piece.len() {
                    break;
                }
            }
            Ok(chunks.finish().map(|body| (body, taken)))
        });
        let first = results.next().unwrap();
        assert!(results.all(|result| result == first), "{:?}", String::from_utf8_lossy(text));
        first
    }

    #[test]
    fn chunks() {
        for text in [
            "5\r\nhello\r\n0\r\n\r\n",
            "2\r\nhe\r\n003\r\nllo\r\n0\r\n\r\n",
            "5;a=b;c=\"d\"\r\nhello\r\n0 ; x\r\nTrailer: 1\r\nOther: 2\r\n\r\n",
            "5\t\r\nhello\r\n00\r\n\r\n",
        ] {
            let expected = Ok(Some((b"hello".to_vec(), text.len())));
            assert_eq!(unchunk(text.as_bytes(), 5), expected, "{text:?}");
            let more = format!("{text}HTTP/1.1 200 OK\r\n");
            assert_eq!(unchunk(more.as_bytes(), 5), expected, "{text:?}");
            assert_eq!(unchunk(text.as_bytes(), 4), Err(ChunkError::TooLong));
            for end in 0..text.len() {
                assert_eq!(unchunk(&text.as_bytes()[..end], 5), Ok(None), "{end}");
            }
        }
        assert_eq!(unchunk(b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", 20).unwrap().unwrap().0.len(), 20);
    }

    #[test]
    fn what_is_no_chunk() {
        for text in [
            "\r\n",
            ";\r\n",
            "x\r\n",
            " 5\r\nhello",
            "0x5\r\n",
            "-1\r\n",
            "5\nhello",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "5\r\nhello\rX",
            "5\r\r\n",
            "5;a\nhello",
            "0\r\n\n",
            "0\r\nT: 1\n",
            "0\r\nT: 1\rX",
            "0\r\n\rX",
            "g",
            "5 6\n",
            "10000000000000000\r\n",
            "ffffffffffffffffff\r\n",
        ] {
            assert!(matches!(unchunk(text.as_bytes(), 100), Err(ChunkError::Broken(_))), "{text:?}");
        }
        // The largest size there is, is only too long.
        assert_eq!(unchunk(b"ffffffffffffffff\r\nabc", 2), Err(ChunkError::TooLong));
        for endless in
            ["5;x".to_owned() + &"x".repeat(MAX_CHUNK_EXTRAS), "0\r\n".to_owned() + &"a: b\r\n".repeat(5_000)]
        {
            assert!(matches!(Chunks::new(1).feed(endless.as_bytes()), Err(ChunkError::Broken(_))));
        }
    }

    proptest! {
        #[test]
        fn any_body_survives_any_chunks_and_pieces(
            chunks in vec(vec(any::<u8>(), 1..40), 0..6),
            piece in 1_usize..50,
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                text.extend(chunk);
                text.extend(b"\r\n");
            }
            text.extend(b"0\r\n\r\n");
            let mut reader = Chunks::new(1_000);
            for piece in text.chunks(piece) {
                prop_assert_eq!(reader.feed(piece), Ok(piece.len()));
            }
            prop_assert_eq!(reader.finish(), Some(chunks.concat()));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in vec(any::<u8>(), 0..300), head in any::<bool>()) {
            let bytes = if head { [b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat() } else { bytes };
            if let Ok(Some(head)) = HeadReader::default().read(&bytes) {
                prop_assert!(head.length <= bytes.len());
            }
            let mut chunks = Chunks::new(100);
            prop_assert!(chunks.feed(&bytes).unwrap_or(0) <= bytes.len());
        }
    }
}
