//! All clients, one after another, on one thread: nobody waits for a lock.

use std::io;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result};
use dsa_model::Dsa;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno as SystemError;

use crate::connection::{Connection, End};
use crate::device::Device;

/// One device's place: where its client comes to, then the client, then what it left.
enum Seat {
    Listening(UnixListener, Device),
    Connected(Box<Connection>),
    Left(Device),
}

/// Serves a device at each socket, to one client each, until all of them have left. Gives the devices as they are then, in the
/// order of their sockets. What goes wrong with one client ends its connection, and is told; the others are served on.
pub fn serve(
    sockets: Vec<UnixListener>,
    device: impl Fn() -> Device,
    tell: impl Fn(usize, &End),
) -> Result<Vec<Device>> {
    let mut seats = Vec::new();
    for socket in sockets {
        socket.set_nonblocking(true).context("a socket that cannot be waited for")?;
        seats.push(Seat::Listening(socket, device()));
    }
    while seats.iter().any(|seat| !matches!(seat, Seat::Left(_))) {
        wait(&seats).context("cannot wait for clients")?;
        let turns = seats.into_iter().enumerate();
        seats = turns.map(|(number, seat)| seat.turn(|end| tell(number, end))).collect::<io::Result<_>>()?;
    }
    Ok(seats.into_iter().map(Seat::into_device).collect())
}

/// Waits until somebody has something to do.
fn wait(seats: &[Seat]) -> io::Result<()> {
    let busy = seats.iter().any(|seat| matches!(seat, Seat::Connected(client) if client.is_busy()));
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut waited: Vec<PollFd> = seats.iter().filter_map(Seat::waits_for).collect();
    match poll(&mut waited, busy.then_some(&now)) {
        Ok(_) | Err(SystemError::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Seat {
    fn waits_for(&self) -> Option<PollFd<'_>> {
        match self {
            Self::Listening(socket, _) => Some(PollFd::new(socket, PollFlags::IN)),
            Self::Connected(client) => {
                let input = if client.wants_messages() { PollFlags::IN } else { PollFlags::empty() };
                let output = if client.has_output() { PollFlags::OUT } else { PollFlags::empty() };
                Some(PollFd::new(&**client, input | output))
            }
            Self::Left(_) => None,
        }
    }

    fn turn(self, tell: impl Fn(&End)) -> io::Result<Self> {
        match self {
            Self::Listening(socket, device) => match socket.accept() {
                Ok((stream, _)) => Ok(Self::Connected(Box::new(Connection::new(stream, device)?))),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    Ok(Self::Listening(socket, device))
                }
                Err(error) => Err(error),
            },
            Self::Connected(mut client) => match client.turn() {
                Ok(()) => Ok(Self::Connected(client)),
                Err(end) => {
                    tell(&end);
                    Ok(Self::Left(client.into_device()))
                }
            },
            left @ Self::Left(_) => Ok(left),
        }
    }

    fn into_device(self) -> Device {
        match self {
            Self::Listening(_, device) | Self::Left(device) => device,
            Self::Connected(client) => client.into_device(),
        }
    }
}

/// The counters of all devices, as the emulator's plugin reports them.
pub fn report(devices: &[Device]) -> String {
    let dsas: Vec<&Dsa> = devices.iter().map(Device::dsa).collect();
    dsa_model::report(&dsas)
}
