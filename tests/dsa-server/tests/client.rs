//! The server against clients: one that does everything right, and those that do not. No client makes it panic, hang, or grow.

use std::fs::File;
use std::io::{IoSlice, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dsa_model::Config;
use dsa_server::connection::End;
use dsa_server::device::Device;
use dsa_server::server;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A server that does not answer or leave for so long hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Commands.
const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const DMA_UNMAP: u16 = 3;
const GET_INFO: u16 = 4;
const GET_REGION_INFO: u16 = 5;
const SET_IRQS: u16 = 8;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const DMA_READ: u16 = 11;
const DMA_WRITE: u16 = 12;
const RESET: u16 = 13;

const NO_REPLY: u32 = 1 << 4;
const CONFIG: u32 = 7;
/// The first bytes of configuration space.
const ID: [u8; 4] = [0x86, 0x80, 0xfb, 0x11];

/// A server with a socket for each device, and how their connections ended.
struct Server {
    directory: tempfile::TempDir,
    threads: Vec<JoinHandle<Device>>,
    ends: mpsc::Receiver<String>,
    /// The launcher's end of the pipe.
    starter: Option<PipeWriter>,
}

impl Server {
    fn start(sockets: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (tell, ends) = mpsc::channel();
        let (starter, writer) = std::io::pipe().unwrap();
        let serve = |n: usize| {
            let listener = UnixListener::bind(directory.path().join(format!("{n}"))).unwrap();
            let (tell, starter) = (tell.clone(), starter.try_clone().unwrap());
            thread::spawn(move || {
                let (device, end) = server::serve(
                    &listener,
                    Device::new(Config { pieces: true, ..Config::default() }),
                    starter.as_fd(),
                );
                let words = match end {
                    End::Closed => "closed".to_owned(),
                    End::Abandoned => "abandoned".to_owned(),
                    End::Broken(why) => why.to_string(),
                    End::Failed(error) => format!("failed: {error}"),
                };
                // A test that has what it wants does not listen any longer.
                let _ = tell.send(words);
                device
            })
        };
        let threads = (0..sockets).map(serve).collect();
        Self { directory, threads, ends, starter: Some(writer) }
    }

    fn connect(&self, number: usize) -> Client {
        Client::connect(&self.directory.path().join(format!("{number}")))
    }

    /// How the connection ended.
    fn end(&self) -> String {
        self.ends.recv_timeout(PATIENCE).expect("the server goes on with a client that makes no sense")
    }

    fn report(self) -> String {
        let join = |thread: JoinHandle<Device>| thread.join().expect("the server panicked");
        server::report(&self.threads.into_iter().map(join).collect::<Vec<_>>())
    }
}

/// A message: command, flags, error, payload.
type Message = (u16, u32, u32, Vec<u8>);

struct Client {
    stream: UnixStream,
    next: u16,
    /// What the device asked for meanwhile.
    requests: Vec<Message>,
}

fn header(id: u16, command: u16, size: u32, flags: u32) -> Vec<u8> {
    let mut bytes = [id.to_le_bytes(), command.to_le_bytes()].concat();
    [size, flags, 0].iter().for_each(|field| bytes.extend(field.to_le_bytes()));
    bytes
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn map(address: u64, size: u64) -> Vec<u8> {
    let mut payload = words(&[32, 3]);
    [0, address, size].iter().for_each(|field: &u64| payload.extend(field.to_le_bytes()));
    payload
}

fn access(region: u32, offset: u64, count: usize) -> Vec<u8> {
    [&offset.to_le_bytes()[..], &words(&[region, count as u32])].concat()
}

impl Client {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, next: 0, requests: Vec::new() }
    }

    /// Sends a message, with descriptors if any. Returns its ID.
    fn send(&mut self, command: u16, flags: u32, payload: &[u8], files: &[&File]) -> u16 {
        self.try_send(command, flags, payload, files).expect("the server has left")
    }

    fn try_send(&mut self, command: u16, flags: u32, payload: &[u8], files: &[&File]) -> std::io::Result<u16> {
        let id = self.next;
        self.next += 1;
        let message = [&header(id, command, 16 + payload.len() as u32, flags)[..], payload].concat();
        let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
        assert_eq!(sent, message.len());
        Ok(id)
    }

    /// The next message of the server.
    fn receive(&mut self) -> (u16, Message) {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).expect("the server does not answer");
        let field = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; field(4) as usize - 16];
        self.stream.read_exact(&mut payload).unwrap();
        (field(0) as u16, ((field(0) >> 16) as u16, field(8), field(12), payload))
    }

    /// Sends a command and waits for its answer: an error number, or the payload.
    fn ask_with(&mut self, command: u16, payload: &[u8], files: &[&File]) -> Result<Vec<u8>, u32> {
        let id = self.send(command, 0, payload, files);
        loop {
            let (other, message) = self.receive();
            if message.1 & 0xf == 0 {
                self.requests.push(message);
                continue;
            }
            assert_eq!((other, message.0), (id, command));
            return if message.1 & 1 << 5 == 0 { Ok(message.3) } else { Err(message.2) };
        }
    }

    fn ask(&mut self, command: u16, payload: &[u8]) -> Result<Vec<u8>, u32> {
        self.ask_with(command, payload, &[])
    }

    fn greet(&mut self) {
        let reply = self.ask(VERSION, b"\0\0\0\0{\"capabilities\":{}}\0").unwrap();
        assert_eq!((&reply[..4], reply.last()), (&[0; 4][..], Some(&0)));
    }

    fn load(&mut self, region: u32, offset: u64, count: usize) -> Vec<u8> {
        self.ask(REGION_READ, &access(region, offset, count)).unwrap()[16..].to_vec()
    }

    fn store(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.ask(REGION_WRITE, &[&access(region, offset, data.len())[..], data].concat()).unwrap();
    }

    /// As QEMU writes registers: nobody waits for the answer.
    fn post(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.send(REGION_WRITE, NO_REPLY, &[&access(region, offset, data.len())[..], data].concat(), &[]);
    }

    /// A device that works: bus master, group 0 with queue 0, enabled; slot 3 has a message.
    fn start_device(&mut self) {
        self.store(CONFIG, 4, &[6, 0]);
        let queue = [words(&[16, 0]), words(&[1 << 4 | 1, 16 | 5 << 5])].concat();
        let registers: [(u64, Vec<u8>); 5] = [
            (0x1000, words(&[1, 0])),
            (0x1020, words(&[1, 0])),
            (0x2000, queue[..8].to_vec()),
            (0x2008, queue[8..].to_vec()),
            (0xa0, words(&[1 << 20])),
        ];
        registers.iter().for_each(|(offset, value)| self.store(0, *offset, value));
        self.store(0, 0xa0, &words(&[6 << 20]));
        self.store(0, 0x4_0030, &words(&[0xfee0_1000, 0]));
        self.store(0, 0x4_0038, &words(&[0x45, 0]));
        assert_eq!(self.load(0, 0x90, 4), [1, 0, 0, 0], "enabled");
    }

    /// Submits a memmove with record and interrupt of slot 3, in eight pieces through the IMS portal of queue 0.
    fn submit(&mut self, source: u64, destination: u64, size: u32) {
        let words = [3 << 56 | 0x1c << 32, 0x10_0000, source, destination, u64::from(size) | 3 << 32, 0, 0, 0];
        for (at, word) in (0x2000..).step_by(8).zip(words) {
            self.post(2, at, &u64::to_le_bytes(word));
        }
    }

    /// The next request of the device's.
    fn request(&mut self) -> Message {
        if self.requests.is_empty() {
            let (_, message) = self.receive();
            self.requests.push(message);
        }
        self.requests.remove(0)
    }
}

fn memory(size: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    file
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

#[test]
fn a_descriptor_moves_data_and_its_message_comes_after_it() {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    let ram = memory(0x10_0000);
    ram.write_all_at(b"what is moved", 0x4000).unwrap();
    client.ask_with(DMA_MAP, &map(0x10_0000, 0x10_0000), &[&ram]).unwrap();
    client.start_device();
    client.submit(0x10_4000, 0x10_8000, 13);
    // A write to the message window that wants no answer: address, count, data.
    let (command, flags, _, payload) = client.request();
    assert_eq!((command, flags), (DMA_WRITE, NO_REPLY));
    assert_eq!((number(&payload), number(&payload[8..]), &payload[16..]), (0xfee0_1000, 4, &[0x45, 0, 0, 0][..]));
    // The data and the record were there before it.
    let (mut moved, mut record) = ([0; 13], [0; 1]);
    ram.read_exact_at(&mut moved, 0x8000).unwrap();
    ram.read_exact_at(&mut record, 0).unwrap();
    assert_eq!((&moved, record), (b"what is moved", [1]));
    drop(client);
    let report = server.report();
    assert!(report.contains("dsa.descriptors=1\n") && report.contains("dsa.messages=1\n"), "{report}");
}

#[test]
fn what_is_not_mapped_is_asked_for_and_the_answer_is_not_waited_for() {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    client.ask_with(DMA_MAP, &map(0x10_0000, 0x1000), &[&memory(0x1000)]).unwrap();
    client.start_device();
    client.submit(0x50_0000, 0x10_0800, 64);
    let (command, flags, _, payload) = client.request();
    assert_eq!((command, flags, number(&payload)), (DMA_READ, 0, 0x50_0000));
    // The device is at its completion already.
    assert_eq!(client.request().0, DMA_WRITE);
    // An error and an answer that nobody asked for: both are dropped.
    for (id, flags) in [(0, 1 | 1 << 5), (999, 1)] {
        client.stream.write_all(&header(id, DMA_READ, 16, flags)).unwrap();
    }
    assert_eq!(client.load(0, 0, 4), [0, 1, 0, 0]);
    // Taken away, the record's page is missing as well.
    client.ask(DMA_UNMAP, &[words(&[24, 2]), vec![0; 16]].concat()).unwrap();
    client.submit(0x50_0000, 0x10_0800, 64);
    assert_eq!(client.request().0, DMA_READ);
    let (command, _, _, payload) = client.request();
    assert_eq!((command, number(&payload)), (DMA_WRITE, 0x10_0000), "the record");
    drop(client);
    // Three of memory that was not there.
    assert!(server.report().contains("dsa.faults=3\n"));
}

/// A read's answer pushes what the device has sent before it (PCIe 2.4.1).
#[test]
fn a_message_comes_before_the_answer_of_a_later_read() {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    client.ask_with(DMA_MAP, &map(0x10_0000, 0x1000), &[&memory(0x1000)]).unwrap();
    client.start_device();
    let control = 0x4_003c;
    client.store(0, control, &[1, 0, 0, 0]);
    client.submit(0x10_0100, 0x10_0200, 8);
    while client.load(0, control, 1) != [3] {}
    // Unmasking sends what waits; the read is under way before that is known.
    client.post(0, control, &[0; 4]);
    assert_eq!(client.load(0, control, 4), [0; 4]);
    assert_eq!(client.requests.iter().map(|request| request.0).collect::<Vec<_>>(), [DMA_WRITE]);
}

#[test]
fn the_device_is_described_as_qemu_asks_for_it() {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    assert_eq!(client.ask(GET_INFO, &words(&[16, 0, 0, 0])).unwrap(), words(&[16, 3, 9, 5]));
    let mut region = |index| client.ask(GET_REGION_INFO, &words(&[32, 0, index, 0, 0, 0, 0, 0]));
    assert_eq!(number(&region(0).unwrap()[16..]), 512 << 10);
    assert_eq!(number(&region(1).unwrap()[16..]), 0);
    assert_eq!(region(9), Err(22));
    assert_eq!(client.ask(SET_IRQS, &words(&[20, 0, 2, 0, 1])), Err(22));
    assert_eq!(client.load(CONFIG, 0x80, 1), [0x09]);
    client.ask(RESET, &[]).unwrap();
    assert_eq!(client.load(CONFIG, 0x80, 1), [0x11]);
}

#[test]
fn refused_commands_change_nothing_and_the_connection_goes_on() {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    let wrong: [(u16, Vec<u8>, u32); 9] = [
        (VERSION + 5, vec![], 95),
        (99, vec![1; 100], 95),
        (DMA_MAP, map(0, 0), 22),
        (DMA_MAP, map(u64::MAX, 2), 22),
        (DMA_UNMAP, words(&[24]), 22),
        (REGION_READ, access(0, 0, 3), 22),
        (REGION_READ, access(0, u64::MAX, 4), 22),
        (REGION_READ, access(0, 0, (1 << 20) + 1), 7),
        (REGION_WRITE, [access(99, 0, 4), vec![0; 4]].concat(), 22),
    ];
    for (command, payload, error) in wrong {
        assert_eq!(client.ask(command, &payload), Err(error), "command {command}");
    }
    // The same without an answer: none comes.
    client.post(99, 0, &[0; 4]);
    assert_eq!(client.load(CONFIG, 0, 4), ID);
    client.ask_with(DMA_MAP, &map(0x1000, 0x1000), &[&memory(0x1000)]).unwrap();
    assert_eq!(client.ask(DMA_MAP, &map(0x1800, 0x1000)), Err(17));
}

/// Sends these bytes after a greeting, and tells how the connection ended.
fn ended_by(bytes: &[u8]) -> String {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    client.stream.write_all(bytes).unwrap();
    let end = server.end();
    server.report();
    end
}

#[test]
fn a_stream_that_makes_no_sense_ends_the_connection_in_words() {
    for size in [0, 15, u32::MAX] {
        assert!(ended_by(&header(1, GET_INFO, size, 0)).contains(&format!("a message of {size} bytes")));
    }
    assert!(ended_by(&header(1, GET_INFO, 16, 7)).contains("neither command nor reply"));
    assert!(ended_by(&header(1, VERSION, 16, 0)).contains("version"), "a second greeting");
}

#[test]
fn a_client_begins_with_a_version_that_is_spoken() {
    for (command, payload) in [(GET_INFO, words(&[16, 0, 0, 0])), (VERSION, vec![9, 0, 0, 0]), (VERSION, vec![])] {
        let server = Server::start(1);
        server.connect(0).send(command, 0, &payload, &[]);
        assert!(server.end().contains("version"), "{command}");
        server.report();
    }
}

#[test]
fn descriptors_come_one_at_a_time_and_with_mappings_only() {
    let file = memory(0x1000);
    let cases: [(u16, Vec<u8>, usize); 3] =
        [(GET_INFO, words(&[16, 0, 0, 0]), 1), (DMA_MAP, map(0, 0x1000), 2), (RESET, vec![], 3)];
    for (command, payload, count) in cases {
        let server = Server::start(1);
        let mut client = server.connect(0);
        client.greet();
        client.send(command, 0, &payload, &vec![&file; count]);
        assert!(server.end().contains("file descriptors"), "command {command}");
        server.report();
    }
}

/// Messages that are under way at the same time keep their own descriptors.
#[test]
fn a_descriptor_stays_with_its_message() {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    let files: Vec<File> = (0..8).map(|_| memory(0x1000)).collect();
    for (n, file) in (0u64..).zip(&files) {
        // Every second mapping has none.
        let with = if n % 2 == 0 { vec![file] } else { vec![] };
        file.write_all_at(&[n as u8 + 1], 0).unwrap();
        client.send(DMA_MAP, NO_REPLY, &map(0x10_0000 + n * 0x1000, 0x1000), &with);
    }
    client.start_device();
    for n in (0u64..8).step_by(2) {
        client.submit(0x10_0000 + n * 0x1000, 0x10_0800, 1);
        assert_eq!(client.request().0, DMA_WRITE, "the interrupt");
        let mut moved = [0];
        files[0].read_exact_at(&mut moved, 0x800).unwrap();
        assert_eq!(moved, [if n == 0 { moved[0] } else { n as u8 + 1 }], "mapping {n}");
    }
}

#[test]
fn a_descriptor_in_the_middle_of_a_message_ends_the_connection() {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    let message = [header(9, DMA_MAP, 48, 0), map(0, 0x1000)].concat();
    client.stream.write_all(&message[..20]).unwrap();
    let file = memory(0x1000);
    let fds = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&client.stream, &[IoSlice::new(&message[20..])], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert!(server.end().contains("file descriptors"));
}

/// The program itself, with room for few descriptors: a mapping whose file it cannot take is not taken for one without a file.
#[test]
fn a_descriptor_that_there_is_no_room_for_ends_the_connection_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let script = format!("ulimit -n 24; exec '{}' report socket", env!("CARGO_BIN_EXE_dsa-server"));
    let mut program = std::process::Command::new("sh");
    program.args(["-c", &script]).current_dir(directory.path());
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = program.spawn().unwrap();
    let mut said = [0; 10];
    program.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"listening\n");
    let mut client = Client::connect(&directory.path().join("socket"));
    client.greet();
    let map_one = |n: u64| client.try_send(DMA_MAP, NO_REPLY, &map(0x10_0000 + n * 0x1000, 0x1000), &[&memory(0x1000)]);
    // It may have left before the last one.
    let _ = (0..32).map(map_one).take_while(Result::is_ok).count();
    // A server that took all of them leaves with its client.
    drop(client);
    let ended = program.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && words.contains("socket: file descriptors"), "{words}");
    assert!(directory.path().join("report").exists(), "the counters are there all the same");
}

#[test]
fn when_nobody_can_come_any_more_the_server_ends() {
    let mut server = Server::start(2);
    let mut client = server.connect(0);
    client.greet();
    drop(server.starter.take());
    assert_eq!(server.end(), "abandoned", "the socket that nobody has come to");
    // The other one goes on until its client leaves.
    assert_eq!(client.load(CONFIG, 0, 4), ID);
    drop(client);
    assert_eq!(server.end(), "closed");
    assert!(server.report().contains("dsa.messages=0\n"));
}

/// QEMU reads a header in one go, and gives the connection up where it gets a part of one.
#[test]
fn a_header_comes_in_one_piece() {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    let question = [header(1, REGION_READ, 32, 0), access(CONFIG, 0, 257)].concat();
    client.stream.set_nonblocking(true).unwrap();
    let (mut asked, mut answered) = (0, 0);
    while answered < 20_000 {
        // The server's socket is full again and again.
        while asked < answered + 4_000 && client.stream.write(&question).is_ok_and(|count| count == question.len()) {
            asked += 1;
        }
        client.stream.set_nonblocking(false).unwrap();
        for _ in 0..(asked - answered).min(3_000) {
            let mut head = [0; 16];
            assert_eq!(client.stream.read(&mut head).unwrap(), head.len(), "answer {answered}");
            let mut payload = [0; 16 + 257];
            client.stream.read_exact(&mut payload).unwrap();
            answered += 1;
        }
        client.stream.set_nonblocking(true).unwrap();
    }
}

#[test]
fn a_client_may_leave_in_the_middle_of_anything() {
    for bytes in
        [&[][..], &[1][..], &header(1, GET_INFO, 32, 0)[..], &[&header(1, REGION_READ, 32, 0)[..], &[0; 7]].concat()]
    {
        assert_eq!(left_after(bytes), "closed", "{} bytes", bytes.len());
    }
}

fn left_after(bytes: &[u8]) -> String {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    client.stream.write_all(bytes).unwrap();
    drop(client);
    let end = server.end();
    server.report();
    end
}

#[test]
fn bytes_that_come_one_by_one_are_a_message() {
    let server = Server::start(1);
    let mut client = server.connect(0);
    client.greet();
    let message = [header(7, REGION_READ, 32, 0), access(CONFIG, 0, 4)].concat();
    for byte in message {
        client.stream.write_all(&[byte]).unwrap();
        thread::yield_now();
    }
    let (id, (command, _, _, payload)) = client.receive();
    assert_eq!((id, command, &payload[16..]), (7, REGION_READ, &ID[..]));
}

/// What a client does not take stays bounded: the server takes nothing more from it, and serves another one meanwhile.
#[test]
fn a_client_that_takes_no_answers_holds_up_itself_alone() {
    let server = Server::start(2);
    let (mut lazy, mut other) = (server.connect(0), server.connect(1));
    lazy.greet();
    other.greet();
    let question = [header(1, REGION_READ, 32, 0), access(CONFIG, 0, 4096)].concat();
    // Answers are far longer than questions. The server keeps 1 MiB of them and the sockets a little more; then no question is taken.
    lazy.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut taken = 0usize;
    while taken < 5_000 && lazy.stream.write(&question).is_ok_and(|count| count == question.len()) {
        taken += 1;
    }
    assert!(taken < 5_000, "the server takes questions without end");
    assert_eq!(other.load(CONFIG, 0, 4), ID);
    drop(lazy);
    assert_eq!(server.end(), "closed");
    assert_eq!(other.load(CONFIG, 0, 4), ID);
}

/// Random bytes behind a greeting, many times: the server ends the connection or waits for more.
#[test]
fn noise_is_survived() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..200 {
        let server = Server::start(1);
        let mut client = server.connect(0);
        client.greet();
        // Half of the devices work, so that registers and portals are written as well.
        if random() % 2 == 0 {
            client.start_device();
        }
        for _ in 0..random() % 8 {
            let payload: Vec<u8> = (0..random() % 64).map(|_| random() as u8).collect();
            // Half of them are whole messages with a command that there is.
            let place = access((random() % 3) as u32, (random() % 0x8_0000) & !7, 8);
            let message = match random() % 3 {
                2 => [header(0, REGION_WRITE, 40, NO_REPLY), place, random().to_le_bytes().to_vec()].concat(),
                0 => [
                    header(0, (random() % 16) as u16, 16 + payload.len() as u32, (random() % 2) as u32 * NO_REPLY),
                    payload,
                ]
                .concat(),
                _ => payload,
            };
            // It may have ended the connection already.
            if client.stream.write_all(&message).is_err() {
                break;
            }
        }
        drop(client);
        server.end();
        server.report();
    }
}
