use proptest::prelude::*;

use super::*;

pub(in crate::guest) const RAM: u64 = 64 << 20;
const PREFERRED: u64 = 16 << 20;
const INIT: u32 = 0x10_0000;
/// Where the protected-mode kernel begins in [`good`].
const KERNEL_AT: usize = 2 * SECTOR;
const KERNEL_LEN: usize = 0x1000;

/// A kernel as a distribution's is: relocatable, with a 64-bit entry, and something behind it that is not loaded.
pub(in crate::guest) fn good() -> Vec<u8> {
    let mut file = vec![0; KERNEL_AT];
    let mut set = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    set(SETUP_SECTS, &[1]);
    set(SYSSIZE, &(KERNEL_LEN as u32 / 16).to_le_bytes());
    set(BOOT_FLAG, &BOOT_FLAG_VALUE.to_le_bytes());
    set(JUMP, &[SHORT_JUMP, 0x6a]);
    set(MAGIC, b"HdrS");
    set(VERSION, &0x20f_u16.to_le_bytes());
    set(LOADFLAGS, &[LOADED_HIGH]);
    set(INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
    set(KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes());
    set(RELOCATABLE_KERNEL, &[1]);
    set(XLOADFLAGS, &0x7f_u16.to_le_bytes());
    set(KERNEL_CMDLINE_SIZE, &2047_u32.to_le_bytes());
    set(PREF_ADDRESS, &PREFERRED.to_le_bytes());
    set(INIT_SIZE, &INIT.to_le_bytes());
    file.extend((0..KERNEL_LEN).map(|n| n as u8));
    file.extend_from_slice(b"signature");
    file
}

/// The same with these bytes at an offset.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = good();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn error(file: &[u8]) -> Error {
    parse(file, RAM, 0).unwrap_err()
}

#[test]
fn the_kernel_lies_where_it_prefers_with_its_header_and_no_more_of_the_file() {
    let file = good();
    let kernel = parse(&file, RAM, 2047).unwrap();
    assert_eq!((kernel.gpa, kernel.entry()), (Gpa::new(PREFERRED), Gpa::new(PREFERRED + 0x200)));
    assert_eq!(kernel.bytes, &file[KERNEL_AT..KERNEL_AT + KERNEL_LEN]);
    assert_eq!(kernel.setup_header, &file[0x1f1..0x26c]);
    assert_eq!(kernel.initrd_max, 0x7fff_ffff);
    assert_eq!(kernel.range(), PREFERRED..PREFERRED + u64::from(INIT));
}

#[test]
fn what_is_no_kernel_is_refused_in_its_own_words() {
    assert_eq!(error(b""), Error::Magic);
    assert_eq!(error(b"\x7fELF"), Error::Magic);
    assert_eq!(error(&with(MAGIC, b"HdrX")), Error::Magic);
    assert_eq!(error(&with(BOOT_FLAG, &[0, 0])), Error::Magic);
    assert_eq!(error(&good()[..0x210]), Error::Header);
    assert_eq!(error(&with(JUMP, &[0xe9])), Error::Header);
    assert_eq!(error(&with(JUMP + 1, &[0x60])), Error::Header, "shorter than its protocol has it");
    assert_eq!(error(&with(JUMP + 1, &[0x8f])), Error::Header, "longer than boot_params has room for");
    assert_eq!(error(&with(VERSION, &[0x0b, 2])), Error::Protocol(0x20b));
    assert_eq!(error(&with(LOADFLAGS, &[0])), Error::LoadedLow);
    assert_eq!(error(&with(XLOADFLAGS, &[0x7e])), Error::No64BitEntry);
    for alignment in [0_u32, 0x1000, 0x30_0000] {
        assert_eq!(error(&with(KERNEL_ALIGNMENT, &alignment.to_le_bytes())), Error::Alignment(alignment));
    }
    for address in [0_u64, 0x8000, PREFERRED + 0x1000, u64::MAX] {
        assert_eq!(error(&with(PREF_ADDRESS, &address.to_le_bytes())), Error::PreferredAddress(address));
    }
    assert_eq!(error(&with(INIT_SIZE, &0xfff_u32.to_le_bytes())), Error::InitSize(0xfff));
    assert_eq!(error(&with(SYSSIZE, &0x20_u32.to_le_bytes())), Error::InitSize(INIT), "no room for the entry");
}

#[test]
fn every_refusal_has_words_of_its_own() {
    let errors = [
        Error::Magic,
        Error::Header,
        Error::Protocol(0x20b),
        Error::LoadedLow,
        Error::No64BitEntry,
        Error::Alignment(3),
        Error::PreferredAddress(3),
        Error::Truncated { needs: 5, has: 4 },
        Error::InitSize(3),
        Error::Memory { needs: 3 << 20 },
        Error::Cmdline { len: 9, most: 8 },
    ];
    let words: std::collections::BTreeSet<_> = errors.iter().map(Error::to_string).collect();
    assert_eq!(words.len(), errors.len());
    assert_eq!(Error::Protocol(0x20b).to_string(), "the kernel speaks boot protocol 2.11, but 2.12 or later is needed");
    assert_eq!(Error::Memory { needs: (17 << 20) + 1 }.to_string(), "the kernel needs 18 MiB of memory to start");
}

#[test]
fn a_file_that_is_cut_short_is_refused() {
    let file = good();
    let needs = (KERNEL_AT + KERNEL_LEN) as u64;
    assert_eq!(error(&file[..needs as usize - 1]), Error::Truncated { needs, has: needs - 1 });
    assert!(parse(&file[..needs as usize], RAM, 0).is_ok());
    let huge = with(SYSSIZE, &u32::MAX.to_le_bytes());
    assert!(matches!(error(&huge), Error::Truncated { .. }));
}

#[test]
fn the_guest_has_to_have_the_memory_and_the_kernel_room_for_the_command_line() {
    let (file, needs) = (good(), PREFERRED + u64::from(INIT));
    assert_eq!(parse(&file, needs - 1, 0), Err(Error::Memory { needs }));
    assert!(parse(&file, needs, 0).is_ok());
    assert_eq!(parse(&file, RAM, 2048), Err(Error::Cmdline { len: 2048, most: 2047 }));
    let small = with(KERNEL_CMDLINE_SIZE, &100_u32.to_le_bytes());
    assert_eq!(parse(&small, RAM, 101), Err(Error::Cmdline { len: 101, most: 100 }));
    let silent = with(KERNEL_CMDLINE_SIZE, &0_u32.to_le_bytes());
    assert_eq!(parse(&silent, RAM, 256), Err(Error::Cmdline { len: 256, most: 255 }));
}

#[test]
fn a_kernel_that_cannot_move_is_taken_too() {
    let mut file = with(RELOCATABLE_KERNEL, &[0]);
    file[KERNEL_ALIGNMENT..KERNEL_ALIGNMENT + 4].fill(0);
    assert!(parse(&file, RAM, 0).is_ok());
}

fn check(file: &[u8], ram: u64) -> Result<(), TestCaseError> {
    let Ok(kernel) = parse(file, ram, 0) else { return Ok(()) };
    prop_assert!(kernel.gpa >= IMAGE && kernel.range().end <= ram);
    prop_assert!(kernel.bytes.len() as u64 <= kernel.init_size);
    prop_assert!(kernel.entry().as_u64() < kernel.gpa.as_u64() + kernel.bytes.len() as u64);
    prop_assert!(SETUP_HEADER + kernel.setup_header.len() <= SETUP_HEADER_LIMIT);
    Ok(())
}

proptest! {
    #[test]
    fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        check(&bytes, RAM)?;
    }

    #[test]
    fn a_damaged_kernel_is_refused_or_still_safe(
        changes in proptest::collection::vec((SETUP_HEADER..KNOWN_END, prop_oneof![any::<u8>(), Just(0), Just(0xff)]), 1..8),
        len in 0..KERNEL_AT + KERNEL_LEN + 100,
        ram in 0_u64..4 << 30,
    ) {
        let mut file = good();
        changes.iter().for_each(|(at, value)| file[*at] = *value);
        check(&file, ram)?;
        file.truncate(len);
        check(&file, ram)?;
    }
}
