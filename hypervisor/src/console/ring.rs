//! A ring of bytes that wait for a serial line, or that were received.

use core::sync::atomic::{AtomicU8, Ordering};

/// A ring over memory that nothing else uses. The memory is a static of its own, because a static of zeros takes no room in the image.
pub struct Ring {
    bytes: &'static [AtomicU8],
    put: usize,
    taken: usize,
}

impl Ring {
    /// An empty ring.
    pub const fn new(bytes: &'static [AtomicU8]) -> Self {
        Self { bytes, put: 0, taken: 0 }
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.put - self.taken
    }

    /// How many more it can hold.
    pub fn room(&self) -> usize {
        self.bytes.len() - self.len()
    }

    /// How many bytes were taken out of it, ever.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Puts a byte in. Returns whether there was room for it.
    pub fn push(&mut self, byte: u8) -> bool {
        let room = self.room() != 0;
        if room {
            self.bytes[self.put % self.bytes.len()].store(byte, Ordering::Relaxed);
            self.put += 1;
        }
        room
    }

    /// The oldest byte, which stays.
    pub fn peek(&self) -> Option<u8> {
        (self.len() != 0).then(|| self.bytes[self.taken % self.bytes.len()].load(Ordering::Relaxed))
    }

    /// Takes the oldest byte.
    pub fn pop(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.taken += 1;
        Some(byte)
    }

    /// Throws away what waits.
    pub fn clear(&mut self) {
        self.taken = self.put;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_ring_is_a_queue_with_an_end(steps in proptest::collection::vec(any::<Option<u8>>(), 0..300)) {
            const SIZE: usize = 7;
            static BYTES: [AtomicU8; SIZE] = [const { AtomicU8::new(0) }; SIZE];
            let (mut ring, mut queue) = (Ring::new(&BYTES), VecDeque::new());
            for step in steps {
                match step {
                    Some(byte) => {
                        prop_assert_eq!(ring.push(byte), queue.len() < SIZE);
                        if queue.len() < SIZE { queue.push_back(byte) }
                    }
                    None => prop_assert_eq!((ring.peek(), ring.pop()), (queue.front().copied(), queue.pop_front())),
                }
                prop_assert_eq!((ring.len(), ring.room()), (queue.len(), SIZE - queue.len()));
            }
            ring.clear();
            prop_assert_eq!((ring.pop(), ring.room()), (None, SIZE));
        }
    }
}
