//! Reports its start values, accesses addresses beyond its memory, and ends.
#![no_std]
#![no_main]

use guests::bare::Guest;
use guests::println;

guests::guest!(main);

fn main(guest: &Guest) -> u8 {
    println!("hello: command line \"{}\"", guest.command_line);
    for range in guest.boot.memory_map().filter(|range| range.is_ram()) {
        println!("hello: memory {:#x} to {:#x}", range.start, range.start + range.size);
    }
    let errors = u32::from(!nothing_behind_memory(guest));
    println!("@result memory_kib={} errors={errors}", guest.boot.memory_size() >> 10);
    u8::from(errors != 0)
}

/// Whether the page behind the last one of the guest's memory is nobody's: it reads as ones, before and after a write.
fn nothing_behind_memory(guest: &Guest) -> bool {
    let Some(end) = guest.boot.memory_map().filter(|range| range.is_ram()).map(|range| range.start + range.size).max()
    else {
        return false;
    };
    let behind = end as *mut u64;
    // SAFETY: the address is mapped (the low 4 GiB are) and belongs to no object of the program; the hypervisor answers.
    unsafe {
        let before = behind.read_volatile();
        behind.write_volatile(0x1234_5678);
        let after = behind.read_volatile();
        println!("hello: behind its memory {before:#x}, then {after:#x}");
        before == u64::MAX && after == u64::MAX
    }
}
