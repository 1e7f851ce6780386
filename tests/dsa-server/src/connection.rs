//! A connection: the client's messages as they arrive, and the server's messages that have not left yet.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno as SystemError;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::device::{Device, IRQS, REGIONS};
use crate::wire::{self, Broken, Errno, HEADER, Header, Request};

/// With more bytes than this waiting for the client to take them, no message is taken from it and the engines rest. One turn of the
/// engines or one command can add to it what it asks of the client.
const FULL: usize = 1 << 20;
/// Messages that are taken in one turn: then it is the engines' turn, and other clients'.
const TURN: usize = 64;

/// `VFIO_DEVICE_FLAGS_RESET` and `VFIO_DEVICE_FLAGS_PCI`.
const DEVICE_FLAGS: u32 = 0b11;
/// `VFIO_REGION_INFO_FLAG_READ` and `VFIO_REGION_INFO_FLAG_WRITE`: nothing is mapped, every access is a message.
const REGION_FLAGS: u32 = 0b11;

/// How a connection ended.
#[derive(Debug)]
pub enum End {
    /// The client has left.
    Closed,
    /// No client has come, and none will.
    Abandoned,
    /// Its messages make no sense.
    Broken(Broken),
    /// The socket failed.
    Failed(io::Error),
}

impl End {
    /// What went wrong, if anything did.
    pub fn failure(&self) -> Option<String> {
        match self {
            Self::Closed | Self::Abandoned => None,
            Self::Broken(why) => Some(why.to_string()),
            Self::Failed(error) => Some(error.to_string()),
        }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(error),
        }
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// A message on its way in.
#[derive(Default)]
struct Incoming {
    head: [u8; HEADER],
    /// The header, when it is whole.
    header: Option<Header>,
    payload: Vec<u8>,
    /// Bytes of what is read now: the header, then the payload.
    have: usize,
    /// What came with the header.
    file: Option<OwnedFd>,
}

/// A client and its device.
pub struct Connection<'a> {
    socket: &'a UnixStream,
    device: &'a mut Device,
    incoming: Incoming,
    outgoing: Outgoing,
    greeted: bool,
    /// The engines have more to do.
    busy: bool,
}

/// Messages on their way to the client. Each is written by itself: QEMU takes a header only as a whole, and the kernel takes a
/// message's first piece, which is longer than a header, as a whole or not at all.
#[derive(Default)]
struct Outgoing {
    messages: VecDeque<Vec<u8>>,
    /// Bytes of the first one that have left.
    sent: usize,
    /// Bytes in all that have not.
    bytes: usize,
}

impl Outgoing {
    fn push(&mut self, message: Vec<u8>) {
        self.bytes += message.len();
        self.messages.push_back(message);
    }

    /// Writes until the socket takes no more.
    fn send(&mut self, mut socket: &UnixStream) -> Result<(), End> {
        while let Some(message) = self.messages.front() {
            match socket.write(message.get(self.sent..).unwrap_or_default()) {
                Ok(0) => return Err(End::Closed),
                Ok(count) => {
                    (self.sent, self.bytes) = (self.sent + count, self.bytes - count);
                    if self.sent == message.len() {
                        self.messages.pop_front();
                        self.sent = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl<'a> Connection<'a> {
    /// A client that has just come.
    pub fn new(socket: &'a UnixStream, device: &'a mut Device) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (incoming, outgoing) = (Incoming::default(), Outgoing::default());
        Ok(Self { socket, device, incoming, outgoing, greeted: false, busy: false })
    }

    /// Whether the engines go on without a message from the client.
    pub fn is_busy(&self) -> bool {
        self.busy && !self.is_full()
    }

    /// Whether the client's messages are taken.
    pub fn wants_messages(&self) -> bool {
        !self.is_full()
    }

    /// Whether messages wait for the client to take them.
    pub fn has_output(&self) -> bool {
        self.outgoing.bytes > 0
    }

    fn is_full(&self) -> bool {
        self.outgoing.bytes >= FULL
    }

    /// One turn: what can be sent is sent, some messages are carried out, the engines work once. It never waits for the client. An error
    /// is the connection's end.
    pub fn turn(&mut self) -> Result<(), End> {
        self.outgoing.send(self.socket)?;
        for _ in 0..TURN {
            if self.is_full() || !self.receive()? {
                break;
            }
            self.carry_out()?;
        }
        if !self.is_full() {
            self.busy = self.device.work();
            self.take_requests();
        }
        self.outgoing.send(self.socket)
    }

    /// Reads on. Says whether a message is whole.
    ///
    /// A message's descriptor comes with its first byte. So header and payload are read by themselves: a longer read could bring
    /// the descriptor of another message.
    fn receive(&mut self) -> Result<bool, End> {
        let Self { socket, incoming, .. } = self;
        loop {
            let Some(header) = &incoming.header else {
                let Some((count, file)) = read(socket.as_fd(), &mut incoming.head[incoming.have..])? else {
                    return Ok(false);
                };
                // A second one makes no sense, nor one in the middle.
                if file.is_some() && (incoming.file.is_some() || incoming.have > 0) {
                    return Err(Broken::Descriptors.into());
                }
                incoming.file = incoming.file.take().or(file);
                incoming.have += count;
                if incoming.have == HEADER {
                    let header = Header::parse(&incoming.head)?;
                    incoming.payload.resize(header.payload, 0);
                    (incoming.header, incoming.have) = (Some(header), 0);
                }
                continue;
            };
            if incoming.have == header.payload {
                return Ok(true);
            }
            let Some((count, file)) = read(socket.as_fd(), &mut incoming.payload[incoming.have..])? else {
                return Ok(false);
            };
            if file.is_some() {
                return Err(Broken::Descriptors.into());
            }
            incoming.have += count;
        }
    }

    /// Carries out the message that is whole, and answers it.
    fn carry_out(&mut self) -> Result<(), End> {
        let Incoming { header, payload, file, .. } = std::mem::take(&mut self.incoming);
        let Some(header) = header else { return Ok(()) };
        // Answers to our own requests: nobody waits for them.
        if header.is_reply() {
            return if file.is_none() { Ok(()) } else { Err(Broken::Descriptors.into()) };
        }
        let request = Request::parse(&header, &payload);
        let greeting = header.is_version();
        if greeting == self.greeted || greeting && request.is_err() {
            return Err(Broken::Version.into());
        }
        self.greeted = true;
        if file.is_some() && !matches!(request, Ok(Request::DmaMap(_))) {
            return Err(Broken::Descriptors.into());
        }
        let reply = request.and_then(|request| self.answer(&header, request, file.map(File::from)));
        if header.wants_reply() {
            self.outgoing.push(reply.unwrap_or_else(|why| header.refusal(why)));
        }
        // The answer of a later read must not overtake it.
        self.take_requests();
        Ok(())
    }

    fn take_requests(&mut self) {
        while let Some(request) = self.device.take_request() {
            self.outgoing.push(request);
        }
    }

    fn answer(&mut self, header: &Header, request: Request, file: Option<File>) -> Result<Vec<u8>, Errno> {
        let device = &mut *self.device;
        match request {
            Request::Version => Ok(wire::version_reply(header)),
            Request::DmaMap(map) => device.memory().map(map, file).map(|()| header.reply(&[])),
            Request::DmaUnmap(range) => {
                match range {
                    Some(range) => device.memory().unmap(range)?,
                    None => device.memory().clear(),
                }
                Ok(header.reply(&wire::unmapped(range)))
            }
            Request::GetInfo | Request::GetRegionInfo(_) | Request::GetIrqInfo(_) => {
                description(device, &request).map(|info| header.reply(&info))
            }
            // To stop all signals of a kind is right where there are none.
            Request::SetIrqs(0) => Ok(header.reply(&[])),
            Request::SetIrqs(_) => Err(Errno::Invalid),
            Request::RegionRead(place, count) => {
                let data = device.load(place, count)?;
                Ok(wire::access_reply(header, place, count, &data))
            }
            Request::RegionWrite(place, data) => {
                device.store(place, data)?;
                Ok(wire::access_reply(header, place, data.len(), &[]))
            }
            Request::Reset => {
                device.reset();
                Ok(header.reply(&[]))
            }
        }
    }
}

/// What the device, a region or a kind of interrupts is, as `linux/vfio.h` lays it out.
fn description(device: &Device, request: &Request) -> Result<Vec<u8>, Errno> {
    match *request {
        Request::GetInfo => Ok(wire::info(&[DEVICE_FLAGS, REGIONS, IRQS], &[])),
        Request::GetRegionInfo(index) if index < REGIONS => {
            let size = device.region_size(index);
            let flags = if size > 0 { REGION_FLAGS } else { 0 };
            Ok(wire::info(&[flags, index, 0], &[size, 0]))
        }
        Request::GetIrqInfo(index) if index < IRQS => Ok(wire::info(&[0, index, 0], &[])),
        _ => Err(Errno::Invalid),
    }
}

/// Reads some bytes, and the descriptor that comes with them. `None`: nothing is there yet. A descriptor that could not be taken, because
/// there is no room for it in the process or because there were several, is an error: else its message would go without.
fn read(socket: BorrowedFd, buf: &mut [u8]) -> Result<Option<(usize, Option<OwnedFd>)>, End> {
    // Room for one more than a message may have: so a second one is seen.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(buf)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(SystemError::INTR) => {}
            Err(SystemError::AGAIN) => return Ok(None),
            other => break other.map_err(io::Error::from)?,
        }
    };
    let mut files = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files).into_iter().flatten(),
        _ => None.into_iter().flatten(),
    });
    let file = files.next();
    if files.next().is_some() || received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Broken::Descriptors.into());
    }
    if received.bytes == 0 {
        return Err(End::Closed);
    }
    Ok(Some((received.bytes, file)))
}
