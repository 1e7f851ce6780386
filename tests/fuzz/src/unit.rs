//! The model of a remapping unit with any registers, queue and tables: it records violations, and does not panic or hang.

use vtd_model::{Config, Memory, Ram, Unit};

use crate::bytes::Bytes;

/// Memory in which queue and tables lie.
const LIMIT: u64 = 1 << 20;
const STEPS: usize = 128;

/// A step is a byte for its kind, then its values.
pub fn unit(data: &[u8]) {
    let (mut unit, mut ram, mut bytes) = (Unit::new(Config::default()), Ram::new(LIMIT), Bytes(data));
    for _ in 0..STEPS {
        if bytes.is_empty() {
            return;
        }
        match bytes.u8() % 6 {
            0 => {
                let at = u64::from(bytes.u16()) << 4;
                let len = usize::from(bytes.u8());
                let new = bytes.take(len);
                ram.write(at, new);
            }
            1 => {
                // Registers, most of which lie in the first KiB.
                let (offset, size) = (u64::from(bytes.u16() & 0x3fc), if bytes.u8() & 1 != 0 { 8 } else { 4 });
                unit.write(offset, size, bytes.u64(), &mut ram);
            }
            2 => {
                let size = if bytes.u8() & 1 != 0 { 8 } else { 4 };
                let _ = unit.read(bytes.u16().into(), size);
            }
            3 => {
                let (source, address, value) =
                    (bytes.u16(), 0xfee0_0000 | u64::from(bytes.u32() & 0xf_ffff), bytes.u32());
                let _ = unit.interrupt_request(source, address, value, &mut ram);
            }
            4 => {
                let source = bytes.u16();
                let mut buf = [0; 8];
                let _ = unit.dma_read(source, bytes.u64(), &mut buf, &mut ram);
                let _ = unit.dma_write(source, bytes.u64(), &buf, &mut ram);
            }
            _ => {
                let _ = unit.take_fault_event();
            }
        }
    }
}
