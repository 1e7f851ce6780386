//! The receiver of a 16550A: its FIFO, and overruns (PC16550D data sheet, 8.4, 8.5).

/// Bytes that the FIFO holds. Without it there is one buffer register.
const FIFO_BYTES: usize = 16;

// FIFO control.
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
/// Bytes from which on the FIFO asks for service, by bits 7:6 of the FIFO control register.
const TRIGGERS: [usize; 4] = [1, 4, 8, 14];

/// Bytes that have been received and not been read.
#[derive(Clone, Debug, Default)]
pub struct Receiver {
    bytes: [u8; FIFO_BYTES],
    first: usize,
    len: usize,
    fifo: bool,
    trigger: usize,
    overrun: bool,
}

impl Receiver {
    /// Takes a write of the FIFO control register. Switching the FIFO on or off empties it.
    pub fn control(&mut self, value: u8) {
        let fifo = value & FCR_ENABLE != 0;
        if fifo != self.fifo || fifo && value & FCR_CLEAR_RECEIVER != 0 {
            self.len = 0;
        }
        (self.fifo, self.trigger) = (fifo, TRIGGERS[usize::from(value >> 6)]);
    }

    /// Whether the FIFO is on.
    pub fn has_fifo(&self) -> bool {
        self.fifo
    }

    /// Whether a byte can be received without one being lost.
    pub fn has_room(&self) -> bool {
        self.len < if self.fifo { FIFO_BYTES } else { 1 }
    }

    /// Receives a byte. Without room a byte is lost, which is an overrun: this one where there is a FIFO, else the one before.
    pub fn push(&mut self, byte: u8) {
        if self.has_room() {
            self.bytes[(self.first + self.len) % FIFO_BYTES] = byte;
            self.len += 1;
            return;
        }
        self.overrun = true;
        if !self.fifo {
            self.bytes[self.first] = byte;
        }
    }

    /// Reads the oldest byte; 0 where there is none.
    pub fn pop(&mut self) -> u8 {
        if self.len == 0 {
            return 0;
        }
        let byte = self.bytes[self.first];
        (self.first, self.len) = ((self.first + 1) % FIFO_BYTES, self.len - 1);
        byte
    }

    /// Whether there is a byte to read.
    pub fn is_ready(&self) -> bool {
        self.len != 0
    }

    /// Whether there are as many bytes as the FIFO asks for service with; without the FIFO one is enough.
    pub fn has_reached_trigger(&self) -> bool {
        self.len >= if self.fifo { self.trigger } else { 1 }
    }

    /// Whether a byte was lost.
    pub fn is_overrun(&self) -> bool {
        self.overrun
    }

    /// Whether a byte was lost; forgets it, as a read of the line status does.
    pub fn take_overrun(&mut self) -> bool {
        core::mem::take(&mut self.overrun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use proptest::prelude::*;

    fn drain(receiver: &mut Receiver) -> Vec<u8> {
        core::iter::from_fn(|| receiver.is_ready().then(|| receiver.pop())).collect()
    }

    #[test]
    fn without_the_fifo_a_new_byte_takes_the_place_of_one_that_was_not_read() {
        let mut receiver = Receiver::default();
        receiver.push(1);
        assert!(!receiver.has_room() && !receiver.is_overrun() && receiver.has_reached_trigger());
        receiver.push(2);
        assert_eq!((receiver.take_overrun(), receiver.take_overrun()), (true, false));
        assert_eq!((drain(&mut receiver), receiver.pop()), (vec![2], 0));
    }

    #[test]
    fn the_fifo_keeps_the_first_sixteen_bytes() {
        let mut receiver = Receiver::default();
        receiver.control(FCR_ENABLE);
        (0..20).for_each(|byte| receiver.push(byte));
        assert!(receiver.take_overrun());
        assert_eq!(drain(&mut receiver), (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn the_fifo_asks_for_service_at_its_trigger() {
        for (bits, trigger) in [(0, 1), (1, 4), (2, 8), (3, 14)] {
            let mut receiver = Receiver::default();
            receiver.control(FCR_ENABLE | bits << 6);
            let reached = (0..16).position(|byte| {
                receiver.push(byte);
                receiver.has_reached_trigger()
            });
            assert_eq!(reached, Some(trigger - 1), "bits {bits}");
        }
    }

    #[test]
    fn switching_and_clearing_empty_the_fifo_and_other_writes_do_not() {
        let mut receiver = Receiver::default();
        for (value, kept) in [(FCR_ENABLE, false), (FCR_ENABLE | 0xc0, true), (FCR_ENABLE | 2, false), (0, false)] {
            receiver.push(7);
            receiver.control(value);
            assert_eq!(receiver.is_ready(), kept, "{value:#x}");
        }
    }

    proptest! {
        #[test]
        fn bytes_come_out_in_their_order_and_none_is_lost_unseen(steps in proptest::collection::vec(any::<Option<u8>>(), 0..200)) {
            let mut receiver = Receiver::default();
            receiver.control(FCR_ENABLE);
            let mut expected = VecDeque::new();
            for step in steps {
                match step {
                    Some(byte) => {
                        let room = receiver.has_room();
                        prop_assert_eq!(room, expected.len() < FIFO_BYTES);
                        receiver.push(byte);
                        if room { expected.push_back(byte) }
                        prop_assert_eq!(receiver.take_overrun(), !room);
                    }
                    None => prop_assert_eq!(receiver.pop(), expected.pop_front().unwrap_or(0)),
                }
            }
        }
    }
}
