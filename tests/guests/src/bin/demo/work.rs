//! The work: data is moved and checksummed, a block for each slot, and every byte is checked.

use guests::bare::dma::DmaBuffer;
use guests::crc32c::Crc32c;
use guests::dsa::Descriptor;
use guests::println;
use guests::random::Random;

use crate::driver::{Driver, IN_FLIGHT, TALLY};

/// Bytes of a block.
const BLOCK: usize = 4096;
const SOURCE_SEED: u64 = 0x1a5_cafe;

static SOURCE: DmaBuffer<{ BLOCK * IN_FLIGHT }> = DmaBuffer::new();
static DESTINATION: DmaBuffer<{ BLOCK * IN_FLIGHT }> = DmaBuffer::new();

/// Moves at least a block for each slot and checks it, then lets the device checksum it and checks that.
pub fn move_and_check(driver: &mut Driver) {
    for first in (0..driver.count()).step_by(IN_FLIGHT) {
        let round = first..driver.count().min(first + IN_FLIGHT as u16);
        for n in round.clone() {
            fill(n);
        }
        in_flight(driver, round.clone(), |n, record, handle| {
            Descriptor::memmove(address(&SOURCE, n), address(&DESTINATION, n), BLOCK as u32, record, handle)
        });
        for n in round.clone() {
            check_move(driver, n);
        }
        in_flight(driver, round.clone(), |n, record, handle| {
            Descriptor::crc(address(&DESTINATION, n), BLOCK as u32, record, handle)
        });
        for n in round {
            check_crc(driver, n);
        }
    }
    println!("demo: {} KiB moved and checksummed, {} interrupts", driver.bytes >> 10, TALLY.total());
}

/// Submits a descriptor for each number of the round, sleeps until all interrupts came, and looks at the records.
fn in_flight(driver: &mut Driver, round: core::ops::Range<u16>, descriptor: impl Fn(u16, u64, u16) -> Descriptor) {
    let total = TALLY.total() + round.len() as u32;
    for n in round.clone() {
        driver.submit(n, |record, handle| descriptor(n, record, handle));
    }
    driver.wait_for(total);
    for n in round {
        driver.settle(n);
    }
}

/// Where block `n` begins in its buffer: rounds use the same blocks.
const fn offset(n: u16) -> usize {
    n as usize % IN_FLIGHT * BLOCK
}

fn address(buffer: &'static DmaBuffer<{ BLOCK * IN_FLIGHT }>, n: u16) -> u64 {
    buffer.address() + offset(n) as u64
}

fn random(n: u16) -> Random {
    Random::new(SOURCE_SEED + u64::from(n))
}

fn fill(n: u16) {
    let mut random = random(n);
    let at = offset(n);
    for word in (at..at + BLOCK).step_by(8) {
        SOURCE.write(word, random.next());
        DESTINATION.write(word, 0);
    }
}

fn check_move(driver: &mut Driver, n: u16) {
    driver.completion(n);
    driver.bytes += BLOCK as u64;
    let mut random = random(n);
    let at = offset(n);
    if (at..at + BLOCK).step_by(8).all(|word| DESTINATION.read(word) == random.next()) {
        driver.verified += 1;
    } else {
        driver.error(n, "its data is not what was sent");
    }
}

fn check_crc(driver: &mut Driver, n: u16) {
    let record = driver.completion(n);
    let mut random = random(n);
    let mut crc = Crc32c::default();
    for _ in 0..BLOCK / 8 {
        crc.update(&random.next().to_le_bytes());
    }
    if record.crc == u64::from(crc.value()) {
        driver.verified += 1;
    } else {
        println!("demo: checksum {:#x}, should be {:#x}", record.crc, crc.value());
        driver.error(n, "its checksum is wrong");
    }
}
