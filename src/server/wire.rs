//! The byte stream below hyper's HTTP/1: refuses what hyper's parser would forgive, keeps time,
//! and ends idle connections in a stop.
//!
//! hyper's parser accepts a line that ends in a bare LF, and drops a fragment from the target
//! without a word. A proxy in front may read both otherwise, which is how requests are
//! smuggled. This wrapper turns such a byte into NUL, which the parser refuses with 400 and a
//! closed connection. It can look at every byte as part of a head because SPI requests have no
//! bodies: whoever sends one is answered 400 and cut off.
//!
//! In a stop, an idle connection ends here, as if its client had closed it, and not by hyper's own
//! shutdown: that would throw away a request that lies unread in the kernel.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::pace::Pace;
use super::stream::Waiting;

/// Most bytes of a head and a body that are put together to be written.
const SMALL: usize = 1024;

/// A stream with a strict reading of request heads.
pub struct Wire<'p, S> {
    stream: S,
    lines: Lines,
    pace: &'p Pace,
}

impl<'p, S> Wire<'p, S> {
    /// Wraps a stream.
    pub fn new(stream: S, pace: &'p Pace) -> Self {
        Self { stream, lines: Lines::default(), pace }
    }
}

impl<S> Wire<'_, S> {
    /// What came of writing; that it has to wait is noted.
    fn note<T>(&self, outcome: Poll<T>) -> Poll<T> {
        if outcome.is_pending() {
            self.pace.held_up();
        }
        outcome
    }
}

impl<S: AsyncRead + Waiting + Unpin> AsyncRead for Wire<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = outcome {
            let fresh = &mut buffer.filled_mut()[before..];
            if !fresh.is_empty() {
                self.lines.scrub(fresh);
                self.pace.received();
            }
        } else if outcome.is_pending() && self.pace.is_over() && !self.stream.has_input() {
            return Poll::Ready(Ok(()));
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // To copy a small answer costs less than the kernel's way through a list of parts.
        if parts.iter().map(|part| part.len()).sum::<usize>() <= SMALL {
            let mut room = [MaybeUninit::uninit(); SMALL];
            let mut whole = ReadBuf::uninit(&mut room);
            parts.iter().for_each(|part| whole.put_slice(part));
            return self.poll_write(context, whole.filled());
        }
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.note(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        if outcome.is_ready() {
            self.pace.flushed(self.lines.in_head());
        }
        self.note(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Follows the lines of request heads through a stream of reads.
struct Lines {
    in_request_line: bool,
    /// Bytes of the current line that came with earlier reads.
    length: usize,
    /// The last byte of the last read.
    last: u8,
}

impl Default for Lines {
    fn default() -> Self {
        Self { in_request_line: true, length: 0, last: 0 }
    }
}

impl Lines {
    /// Whether a head has begun and not ended.
    fn in_head(&self) -> bool {
        !self.in_request_line || self.length > 0
    }

    /// Spoils what must not be forgiven.
    fn scrub(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes);
            let (line, rest) = bytes.split_at_mut(end.map_or(bytes.len(), |end| end + 1));
            if self.in_request_line
                && let Some(fragment) = memchr::memchr(b'#', line)
            {
                line[fragment] = 0;
            }
            if end.is_some() {
                let before = if line.len() > 1 { line[line.len() - 2] } else { self.last };
                let length = self.length + line.len();
                if before == b'\r' && length > 1 {
                    // An empty line ends a head; before a request line it means nothing.
                    self.in_request_line = length == 2;
                } else {
                    line[line.len() - 1] = 0;
                }
                self.length = 0;
            } else {
                self.length += line.len();
            }
            self.last = line.last().copied().unwrap_or(self.last);
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;

    /// Takes everything, and notes in how many parts.
    #[derive(Default)]
    struct Taken(Vec<usize>, Vec<u8>);

    impl AsyncWrite for Taken {
        fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[IoSlice::new(bytes)])
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.0.push(parts.len());
            parts.iter().for_each(|part| self.1.extend_from_slice(part));
            Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_small_answer_is_written_in_one_piece() {
        let pace = Pace::new(&crate::server::pace::tests::LIMITS);
        for (head, body, parts) in [(10, 0, 1), (10, 20, 1), (SMALL - 1, 1, 1), (SMALL, 1, 2), (10, 100_000, 2)] {
            let answer = [vec![b'h'; head], vec![b'b'; body]];
            let mut wire = Wire::new(Taken::default(), &pace);
            let slices = answer.each_ref().map(|part| IoSlice::new(part));
            let mut context = Context::from_waker(std::task::Waker::noop());
            let written = Pin::new(&mut wire).poll_write_vectored(&mut context, &slices);
            assert!(matches!(written, Poll::Ready(Ok(length)) if length == head + body));
            assert_eq!(wire.stream.0, [parts], "{head} and {body}");
            assert!(wire.stream.1 == answer.concat(), "{head} and {body}");
        }
    }

    /// Scrubs in pieces of every size; the result must not depend on them.
    fn scrubbed(input: &str) -> String {
        let mut results = (1..=input.len()).map(|size| {
            let mut bytes = input.as_bytes().to_vec();
            let mut lines = Lines::default();
            bytes.chunks_mut(size).for_each(|chunk| lines.scrub(chunk));
            String::from_utf8(bytes).unwrap()
        });
        let first = results.next().unwrap();
        assert!(results.all(|result| result == first), "{input:?}");
        first
    }

    #[test]
    fn good_heads_pass() {
        let heads = "\r\nGET /a?b=1 HTTP/1.1\r\nHost: a#b\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\nX: #\r\n\r\n";
        assert_eq!(scrubbed(heads), heads);
    }

    #[test]
    fn a_head_lasts_from_its_first_byte_to_its_empty_line() {
        let mut lines = Lines::default();
        for (bytes, in_head) in [
            ("", false),
            ("\r\n", false),
            ("G", true),
            ("ET / HTTP/1.1\r\n", true),
            ("Host: a\r\n\r", true),
            ("\n", false),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET", true),
            (" / HTTP/1.1\r\nHost: a\r\n\r\n", false),
        ] {
            lines.scrub(&mut bytes.as_bytes().to_vec());
            assert_eq!(lines.in_head(), in_head, "{bytes:?}");
        }
    }

    #[test]
    fn bare_line_feeds_and_fragments_are_spoiled() {
        assert_eq!(scrubbed("GET / HTTP/1.1\nHost: a\r\n\r\n"), "GET / HTTP/1.1\0Host: a\r\n\r\n");
        assert_eq!(scrubbed("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"), "GET / HTTP/1.1\r\nHost: a\0X: b\r\n\r\n");
        assert_eq!(scrubbed("GET / HTTP/1.1\r\nHost: a\r\n\n"), "GET / HTTP/1.1\r\nHost: a\r\n\0");
        assert_eq!(scrubbed("\nGET / HTTP/1.1\r\n"), "\0GET / HTTP/1.1\r\n");
        assert_eq!(scrubbed("GET /a#b HTTP/1.1\r\n\r\n"), "GET /a\0b HTTP/1.1\r\n\r\n");
        assert_eq!(
            scrubbed("GET / HTTP/1.1\r\n\r\nGET /#x HTTP/1.1\r\n"),
            "GET / HTTP/1.1\r\n\r\nGET /\0x HTTP/1.1\r\n"
        );
    }
}
