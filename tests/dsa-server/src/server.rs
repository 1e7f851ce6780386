//! One device at one socket, for one client.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use dsa_model::Dsa;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno as SystemError;

use crate::connection::{Connection, End};
use crate::device::Device;

/// Waits for a client at `socket` and serves it until it leaves, or until its messages make no sense. While nobody has come, it ends
/// when the other end of the pipe `starter` is closed. Returns the device as it is then, and how it came to an end.
pub fn serve(socket: &UnixListener, mut device: Device, starter: BorrowedFd) -> (Device, End) {
    let client = match wait_for_client(socket, starter) {
        Ok(Some(client)) => client,
        Ok(None) => return (device, End::Abandoned),
        Err(error) => return (device, End::Failed(error)),
    };
    let end = follow(&client, &mut device).unwrap_or_else(|end| end);
    (device, end)
}

fn wait_for_client(socket: &UnixListener, starter: BorrowedFd) -> io::Result<Option<UnixStream>> {
    let mut waited = [PollFd::new(socket, PollFlags::IN), PollFd::from_borrowed_fd(starter, PollFlags::empty())];
    wait(&mut waited, None)?;
    if !waited[0].revents().contains(PollFlags::IN) && waited[1].revents().contains(PollFlags::HUP) {
        return Ok(None);
    }
    // Somebody has come, or has come and gone: then the next one is waited for.
    socket.accept().map(|(client, _)| Some(client))
}

/// Takes turns until the connection ends.
fn follow(client: &UnixStream, device: &mut Device) -> Result<End, End> {
    let mut connection = Connection::new(client, device)?;
    loop {
        connection.turn()?;
        let input = if connection.wants_messages() { PollFlags::IN } else { PollFlags::empty() };
        let output = if connection.has_output() { PollFlags::OUT } else { PollFlags::empty() };
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        wait(&mut [PollFd::new(client, input | output)], connection.is_busy().then_some(&at_once))?;
    }
}

fn wait(waited: &mut [PollFd], limit: Option<&Timespec>) -> io::Result<()> {
    loop {
        match poll(waited, limit) {
            Ok(_) => return Ok(()),
            Err(SystemError::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The counters of all devices, as the emulator's plugin reports them.
pub fn report(devices: &[Device]) -> String {
    let dsas: Vec<&Dsa> = devices.iter().map(Device::dsa).collect();
    dsa_model::report(&dsas)
}
