//! How much of messages that are not whole yet may be in memory, and for how long.
//!
//! gRPC writes five bytes before a message: a flag, and how long it is. They are read here before tonic sees them, because tonic sets aside
//! at once what they say, and all connections with some streams each could say 4 MiB. A call waits until there is room for the whole of
//! its message, for so long and not longer; it holds no such room while it waits, so calls cannot wait for each other for ever. Short messages
//! have the room of their connection, so that no other connection can keep them waiting, whatever it claims: a kubelet has one call on
//! each. Long ones share one room, and a connection has one of them in it, or waiting for it, at a time.
//!
//! A message that is not whole in time ends its call, and so does anything that comes after it: every call of CSI has one message.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::body::{Body, Bytes, Frame, Incoming};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::{Status, codegen::StdError};

use crate::limits;

/// Bytes before a message: a flag and its length.
const HEAD_BYTES: usize = 5;

/// The room of one connection. Cloned freely; all clones are one.
#[derive(Clone)]
pub(super) struct Inlet {
    short: Arc<Semaphore>,
    /// Whose long message may come next.
    turn: Arc<Semaphore>,
    /// That of all connections.
    long: Arc<Semaphore>,
}

impl Default for Inlet {
    /// The first connection of a socket.
    fn default() -> Self {
        Self::beside(Arc::new(Semaphore::new(limits::CSI_LONG_IN_FLIGHT)))
    }
}

impl Inlet {
    fn beside(long: Arc<Semaphore>) -> Self {
        Self {
            short: Arc::new(Semaphore::new(limits::CSI_SHORT_BYTES)),
            turn: Arc::new(Semaphore::new(1)),
            long,
        }
    }

    /// Another connection of the same socket.
    pub fn another(&self) -> Self {
        Self::beside(self.long.clone())
    }

    /// The body of a call, as it may come in.
    pub fn body(&self, body: Incoming) -> Inbound {
        Inbound {
            body,
            inlet: self.clone(),
            head: [0; HEAD_BYTES],
            came: 0,
            length: None,
            asked: None,
            room: None,
            kept: None,
            gone: false,
            until: Box::pin(sleep(limits::CSI_MESSAGE_TIME)),
        }
    }

    /// Room for a message of so many bytes.
    fn ask(&self, bytes: usize) -> Asked {
        let short = bytes <= limits::CSI_SHORT_BYTES;
        let room = match short {
            true => self.short.clone(),
            false => self.long.clone(),
        };
        let turn = (!short).then(|| self.turn.clone());
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // an error would mean that somebody closed it, and nobody does
        Box::pin(async move {
            let turn = match turn {
                Some(turn) => Some(turn.acquire_owned().await.ok()?),
                None => None,
            };
            let room = room.acquire_many_owned(bytes).await.ok()?;
            Some((room, turn))
        })
    }
}

/// For one message; and its turn, if it is long.
type Room = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

type Asked = Pin<Box<dyn Future<Output = Option<Room>> + Send>>;

/// The body of a call. The room that it has is given back when it is dropped: tonic does so as soon as the message is decoded.
pub(super) struct Inbound {
    body: Incoming,
    inlet: Inlet,
    head: [u8; HEAD_BYTES],
    /// Bytes so far, those of the head among them.
    came: usize,
    /// How long the message is, as its head says.
    length: Option<usize>,
    asked: Option<Asked>,
    room: Option<Room>,
    /// Came with the end of the head, and waits for room.
    kept: Option<Frame<Bytes>>,
    /// Its caller has gone.
    gone: bool,
    until: Pin<Box<Sleep>>,
}

impl Inbound {
    /// The next frame. None comes of a caller that has gone: hyper drops its call as soon as that waits for something, so it ends as that of
    /// any other caller that gives up, and is no answer with an error that nobody reads.
    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if self.gone {
            return Poll::Pending;
        }
        match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => Poll::Ready(Some(frame)),
            None => Poll::Ready(None),
            Some(Err(_)) => {
                self.gone = true;
                self.room = None;
                Poll::Pending
            }
        }
    }

    /// Counts data that came; whether it must wait for room.
    fn count(&mut self, data: &[u8]) -> Result<bool, Status> {
        if let Some(missing) = self.head.get_mut(self.came..) {
            for (to, from) in missing.iter_mut().zip(data) {
                *to = *from;
            }
        }
        self.came = self.came.saturating_add(data.len());
        let ask = self.length.is_none() && self.came >= HEAD_BYTES;
        if ask {
            let [_, a, b, c, d] = self.head;
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            self.length = Some(length);
        }
        match self.length {
            // tonic refuses it by its head
            Some(length) if length > limits::CSI_MESSAGE_BYTES => Ok(false),
            Some(length) if self.came > HEAD_BYTES + length => {
                Err(Status::internal("a call has one message, and more came"))
            }
            Some(length) if ask => {
                self.asked = Some(self.inlet.ask(length));
                self.until = Box::pin(sleep(limits::CSI_ROOM_TIME));
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        loop {
            if let Some(asked) = &mut this.asked {
                // behind others: that is not its fault, and takes none of its time; but its seat is not held for ever
                let room = asked.as_mut().poll(context);
                if room.is_pending() && this.until.as_mut().poll(context).is_ready() {
                    let late = Status::deadline_exceeded("there was no room for the message");
                    return Poll::Ready(Some(Err(late.into())));
                }
                this.room = ready!(room);
                this.asked = None;
                this.until = Box::pin(sleep(limits::CSI_MESSAGE_TIME));
            }
            if let Some(frame) = this.kept.take() {
                return Poll::Ready(Some(Ok(frame)));
            }
            let frame = match this.next(context) {
                Poll::Ready(Some(frame)) => Some(frame),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => None,
            };
            // What has come counts, also where we had no time for it until now; but a body of empty frames never ends.
            let bytes = frame
                .as_ref()
                .and_then(Frame::data_ref)
                .map_or(0, Bytes::len);
            if bytes == 0 && this.until.as_mut().poll(context).is_ready() {
                let late = Status::deadline_exceeded("the message did not come in time");
                return Poll::Ready(Some(Err(late.into())));
            }
            let Some(frame) = frame else {
                return Poll::Pending;
            };
            let data = frame.data_ref().map_or(&[][..], |data| data);
            match this.count(data) {
                Ok(true) => this.kept = Some(frame),
                Ok(false) => return Poll::Ready(Some(Ok(frame))),
                Err(status) => return Poll::Ready(Some(Err(status.into()))),
            }
        }
    }
}
