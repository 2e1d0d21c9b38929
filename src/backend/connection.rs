//! A connection to one URL of a backend, and one request on it at a time.
//!
//! It has no task of its own: whoever sends a request polls the connection, too. So a reply wakes
//! that one task, once, and what is dropped in the middle of a request is closed.

use std::future::Future as _;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::future::poll_fn;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use super::RawReply;
use super::dial::Stream;
use super::reply::{ChunkError, Chunks, Framing, Head, HeadReader, MAX_HEAD};

/// Room for a read: more than most replies need.
const READ: usize = 4 * 1024;
/// Room for a read of the rest of a long reply.
const LONG_READ: usize = 64 * 1024;

/// See the module.
pub(crate) struct Connection {
    stream: Stream,
    /// Ends a request that takes too long. It stays with the connection: to put a timer off, as each
    /// request does to that of the one before, costs little beside making and removing one.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// How a request on a connection failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// Not a byte of it was written.
    Unsent(String),
    /// The backend may have seen it.
    Sent(String),
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, alarm: None }
    }

    /// Whether the backend has kept it open and silent, as far as the runtime was told. Bytes that
    /// nobody asked for would be taken for the next reply.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        match &mut self.stream {
            Stream::Plain(socket) => {
                socket.try_read(&mut byte).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            // Nobody waits: whoever sends the next request polls again. A task that has looked at many
            // connections is told by the runtime to wait, which must not be taken for silence.
            Stream::Tls(stream) => unconstrained(stream.read(&mut byte)).now_or_never().is_none(),
        }
    }

    /// Sends a request and reads the whole reply, with a body of at most `limit` bytes. Also whether
    /// the connection may be used again. Nothing if the reply is not whole at `deadline`.
    pub(super) async fn exchange(
        &mut self,
        request: &[u8],
        limit: usize,
        deadline: Instant,
    ) -> Option<Result<(RawReply, bool), Failed>> {
        let mut alarm = self.alarm.take().unwrap_or_else(|| Box::pin(sleep_until(deadline)));
        alarm.as_mut().reset(deadline);
        let outcome = {
            let mut exchange = pin!(self.exchange_untimed(request, limit));
            poll_fn(|context| {
                if let Poll::Ready(outcome) = exchange.as_mut().poll(context) {
                    return Poll::Ready(Some(outcome));
                }
                // Also where the exchange has used up what a task may do at once.
                pin!(unconstrained(alarm.as_mut())).poll(context).map(|()| None)
            })
            .await
        };
        // While the connection is idle it may wake the task of its last request, once and for nothing.
        self.alarm = Some(alarm);
        outcome
    }

    async fn exchange_untimed(&mut self, request: &[u8], limit: usize) -> Result<(RawReply, bool), Failed> {
        let mut bytes = BytesMut::with_capacity(READ);
        let is_whole = self.send(request, &mut bytes).await?;
        let (head, body, rest) = self.receive(bytes, limit).await.map_err(Failed::Sent)?;
        let Head { status, content_type, content_encoding, keeps_open, .. } = head;
        // A backend that has answered half a request would take the other half for the next one.
        let may_go_on = keeps_open && is_whole && rest == 0;
        Ok((RawReply { status, content_type, content_encoding, body }, may_go_on))
    }

    /// Sends a request and reads the reply's head only.
    pub(super) async fn status(&mut self, request: &[u8]) -> Result<http::StatusCode, Failed> {
        let mut bytes = BytesMut::with_capacity(READ);
        self.send(request, &mut bytes).await?;
        self.head(&mut bytes).await.map(|head| head.status).map_err(Failed::Sent)
    }

    /// Writes a request. Whether it was written whole: a backend may answer before it has read all.
    /// What came before the end is in `early`.
    async fn send(&mut self, request: &[u8], early: &mut BytesMut) -> Result<bool, Failed> {
        let mut written = 0;
        let mut reader = HeadReader::default();
        poll_fn(|context| {
            while written < request.len() {
                match Pin::new(&mut self.stream).poll_write(context, &request[written..]) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(self.failed(written, &io::ErrorKind::WriteZero.into())));
                    }
                    Poll::Ready(Ok(length)) => written += length,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(self.failed(written, &error))),
                    Poll::Pending => return self.poll_early(context, early, &mut reader),
                }
            }
            match Pin::new(&mut self.stream).poll_flush(context) {
                Poll::Ready(Ok(())) => Poll::Ready(Ok(true)),
                Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed(written, &error))),
                Poll::Pending => self.poll_early(context, early, &mut reader),
            }
        })
        .await
    }

    /// Looks whether the backend answers although the request is not written yet. An interim reply is
    /// no answer: behind a `100 Continue` it waits for the rest.
    fn poll_early(
        &mut self,
        context: &mut Context<'_>,
        early: &mut BytesMut,
        reader: &mut HeadReader,
    ) -> Poll<Result<bool, Failed>> {
        loop {
            let mut space = [0; 512];
            let mut space = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(context, &mut space) {
                Poll::Ready(Ok(())) if space.filled().is_empty() => {
                    return Poll::Ready(Err(Failed::Sent(CLOSED.into())));
                }
                Poll::Ready(Ok(())) => early.extend_from_slice(space.filled()),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Sent(error.to_string()))),
                Poll::Pending => return Poll::Pending,
            }
            match reader.read(early) {
                Ok(None) => {}
                // Whoever reads the reply finds the same.
                Ok(Some(_)) | Err(_) => return Poll::Ready(Ok(false)),
            }
        }
    }

    fn failed(&self, written: usize, error: &io::Error) -> Failed {
        // TLS may have sent some of what it says it could not write.
        if written == 0 && matches!(self.stream, Stream::Plain(_)) {
            Failed::Unsent(error.to_string())
        } else {
            Failed::Sent(error.to_string())
        }
    }

    /// Reads the whole reply: its head, its body, and how many bytes came behind it.
    async fn receive(&mut self, mut bytes: BytesMut, limit: usize) -> Result<(Head, Bytes, usize), String> {
        let head = self.head(&mut bytes).await?;
        let over_long = || format!("the reply is longer than {limit} bytes");
        let body = match head.framing {
            Framing::Length(length) => {
                let length = usize::try_from(length).ok().filter(|&length| length <= limit).ok_or_else(over_long)?;
                while bytes.len() < length {
                    let missing = length - bytes.len();
                    self.read(&mut bytes, missing).await?;
                }
                // Nearly every reply came in one read, and is passed on without a copy.
                bytes.split_to(length).freeze()
            }
            Framing::Chunked => {
                let mut chunks = Chunks::new(limit);
                loop {
                    let taken = chunks.feed(&bytes).map_err(|error| match error {
                        ChunkError::Broken(what) => what.to_owned(),
                        ChunkError::TooLong => over_long(),
                    })?;
                    let _ = bytes.split_to(taken);
                    match chunks.finish() {
                        Some(body) => break body.into(),
                        None => self.read(&mut bytes, LONG_READ).await?,
                    }
                }
            }
            Framing::UntilClosed => {
                while self.read_some(&mut bytes, LONG_READ).await? > 0 {
                    if bytes.len() > limit {
                        return Err(over_long());
                    }
                }
                if bytes.len() > limit {
                    return Err(over_long());
                }
                bytes.split().freeze()
            }
        };
        Ok((head, body, bytes.len()))
    }

    /// Reads the head, and leaves in `bytes` what came behind it.
    async fn head(&mut self, bytes: &mut BytesMut) -> Result<Head, String> {
        let mut reader = HeadReader::default();
        if bytes.is_empty() {
            self.read(bytes, READ).await?;
        }
        loop {
            if let Some(head) = reader.read(bytes)? {
                let _ = bytes.split_to(head.length);
                return Ok(head);
            }
            self.read(bytes, MAX_HEAD).await?;
        }
    }

    /// Reads more, of about `expected` bytes; the end of the connection is an error.
    async fn read(&mut self, bytes: &mut BytesMut, expected: usize) -> Result<(), String> {
        if self.read_some(bytes, expected).await? > 0 { Ok(()) } else { Err(CLOSED.into()) }
    }

    async fn read_some(&mut self, bytes: &mut BytesMut, expected: usize) -> Result<usize, String> {
        if bytes.capacity() == bytes.len() {
            // Room grows with what has come, not with what was promised.
            bytes.reserve(expected.min(LONG_READ).min(bytes.len().max(READ)));
        }
        self.stream.read_buf(bytes).await.map_err(|error| error.to_string())
    }
}

const CLOSED: &str = "the backend closed the connection before the end of its reply";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::server::stream::Socket;

    const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

    /// More than a socket takes before somebody reads.
    fn long_request() -> Vec<u8> {
        vec![b'x'; 8 * 1024 * 1024]
    }

    /// What a request comes to that this backend answers.
    async fn exchange(backend: impl AsyncFnOnce(UnixStream) -> UnixStream) -> Result<(RawReply, bool), Failed> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(Stream::Plain(Socket::Unix(ours)));
        let request = long_request();
        let deadline = Instant::now() + Duration::from_secs(60);
        let both = async { tokio::join!(connection.exchange(&request, 10, deadline), backend(theirs)).0 };
        timeout(Duration::from_secs(60), both).await.ok().flatten().expect("both wait for each other")
    }

    #[tokio::test]
    async fn an_interim_reply_does_not_end_the_request() {
        let backend = async |mut stream: UnixStream| {
            for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 "]
            {
                stream.write_all(interim.as_bytes()).await.unwrap();
                stream.read_exact(&mut [0; 1024]).await.unwrap();
            }
            let mut rest = vec![0; long_request().len() - 2 * 1024];
            stream.read_exact(&mut rest).await.unwrap();
            stream.write_all(&REPLY["HTTP/1.1 ".len()..]).await.unwrap();
            stream
        };
        let (reply, may_go_on) = exchange(backend).await.unwrap();
        assert_eq!((reply.status.as_u16(), &*reply.body, may_go_on), (200, &b"{}"[..], true));
    }

    #[tokio::test]
    async fn a_reply_ends_the_request_and_the_connection_with_it() {
        // It stays open and unread.
        let backend = async |mut stream: UnixStream| {
            stream.write_all(REPLY).await.unwrap();
            stream
        };
        let (reply, may_go_on) = exchange(backend).await.unwrap();
        assert_eq!((reply.status.as_u16(), &*reply.body, may_go_on), (200, &b"{}"[..], false));
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_on_a_connection_has_its_own_deadline() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(Stream::Plain(Socket::Unix(ours)));
        // The second reply is in time long after the first one's deadline; the third one would be before
        // the second one's.
        for (seconds, pause, is_in_time) in [(1, 0, true), (100, 50, true), (10, 40, false)] {
            let deadline = Instant::now() + Duration::from_secs(seconds);
            let backend = async {
                theirs.read_exact(&mut [0; 3]).await.unwrap();
                sleep(Duration::from_secs(pause)).await;
                theirs.write_all(REPLY).await.unwrap();
            };
            let (outcome, ()) = tokio::join!(connection.exchange(b"GET", 10, deadline), backend);
            assert_eq!(outcome.is_some(), is_in_time, "{seconds} s");
        }
    }

    #[tokio::test]
    async fn what_is_no_reply_ends_the_request() {
        let backend = async |mut stream: UnixStream| {
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
            stream
        };
        assert!(matches!(exchange(backend).await, Err(Failed::Sent(_))));
    }
}
