//! One connection to a worker, and the body of an answer on it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use heartbeat_registry::Address;
use http_body::{Frame, SizeHint};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;
use tracing::Span;

use super::framing::{Framing, Head, Malformed, Step};
use super::pool::Pool;

/// Room for one read.
const READ: usize = 4 << 10;
/// With less room than this left, there is made more.
const LEAST_READ: usize = 1 << 10;

/// A connection, with what came on it and was not read yet.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    /// Whom it leads to.
    pub(super) address: Address,
}

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(io::ErrorKind::InvalidData, malformed)
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream, address: Address) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            address,
        }
    }

    /// Sends a request and awaits the head of its answer.
    pub(super) async fn exchange(&mut self, head: &[u8], body: &[u8]) -> io::Result<Head> {
        let sent = match self.write(head).await {
            Ok(true) => self.write(body).await,
            other => other,
        };
        // Whoever refuses a request may do so before having read all of it.
        match (self.read_head().await, sent) {
            (Ok(head), Ok(true)) => Ok(head),
            (Ok(head), _) => Ok(Head {
                stays_open: false,
                ..head
            }),
            (Err(_), Err(error)) | (Err(error), Ok(_)) => Err(error),
        }
    }

    /// Writes all of it, unless an answer comes before; tells whether it has.
    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<bool> {
        std::future::poll_fn(|cx| {
            while !bytes.is_empty() {
                match Pin::new(&mut self.stream).poll_write(cx, bytes)? {
                    Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(count) => bytes = &bytes[count..],
                    Poll::Pending => {
                        ready!(self.poll_read(cx))?;
                        return Poll::Ready(Ok(false));
                    }
                }
            }
            Poll::Ready(Ok(true))
        })
        .await
    }

    async fn read_head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(head) = Head::take(&mut self.buffer)? {
                return Ok(head);
            }
            if std::future::poll_fn(|cx| self.poll_read(cx)).await? == 0 {
                return Err(closed());
            }
        }
    }

    /// Whether nothing of an answer has come.
    pub(super) fn is_silent(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether it can take a request: the other side has not closed it, and has sent nothing that nobody asked for.
    pub(super) fn is_usable(&self) -> bool {
        let asked = self.stream.try_read(&mut [0]);
        self.buffer.is_empty() && matches!(asked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < LEAST_READ {
            self.buffer.reserve(READ);
        }
        poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer)
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the worker closed the connection")
}

/// The body of an answer, read from its connection as it is asked for. When it has been read to its end, the connection can
/// take another request; when it is dropped before, the connection closes, which ends the request at the worker.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// There until the end.
    connection: Option<Connection>,
    framing: Framing,
    stays_open: bool,
    pool: Arc<Pool>,
    /// Ends with the body.
    span: Span,
}

impl Incoming {
    pub(super) fn new(connection: Connection, framing: Framing, stays_open: bool, pool: &Arc<Pool>) -> Self {
        let mut body = Self {
            connection: Some(connection),
            framing,
            stays_open,
            pool: Arc::clone(pool),
            span: Span::none(),
        };
        if framing.is_over() {
            body.end();
        }
        body
    }

    /// Holds the span of the attempt that this is the answer to.
    pub(crate) fn follow(&mut self, span: Span) {
        self.span = span;
        if self.connection.is_none() {
            self.note("answered");
        }
    }

    /// Ends the span.
    fn note(&mut self, outcome: &'static str) {
        std::mem::replace(&mut self.span, Span::none()).record("rbee.outcome", outcome);
    }

    /// Gives the connection back.
    fn end(&mut self) {
        self.note("answered");
        if let Some(connection) = self.connection.take()
            && self.stays_open
            && connection.is_silent()
        {
            self.pool.put(connection);
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        while let Some(connection) = &mut self.connection {
            match self.framing.next(&mut connection.buffer)? {
                Step::Data(data) => {
                    if self.framing.is_over() {
                        self.end();
                    }
                    return Poll::Ready(Ok(Some(data)));
                }
                Step::End => self.end(),
                Step::More => {
                    if ready!(connection.poll_read(cx))? > 0 {
                        continue;
                    }
                    if self.framing != Framing::UntilClose {
                        return Poll::Ready(Err(closed()));
                    }
                    self.end();
                }
            }
        }
        Poll::Ready(Ok(None))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.connection.is_some() {
            // Nobody wanted the rest.
            self.note("left");
        }
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let data = ready!(self.poll_data(cx));
        if data.is_err() {
            self.span.record("otel.status_code", "ERROR");
            self.note("connection_broke");
            self.connection = None;
        }
        Poll::Ready(data.transpose().map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            _ if self.connection.is_none() => SizeHint::with_exact(0),
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::Chunked(_) | Framing::UntilClose => SizeHint::default(),
        }
    }
}
