//! The guest's right: which messages a guest may have in a slot. Such a message is in compatibility format (SDM volume 3, 12.11; VT-d 5.1.2.1) and
//! names one of the guest's own virtual processors; [`parse`] refuses all others.

use hcall_abi::{Status, Target};

use super::domain::Domain;

/// Address bits 31:20.
const ADDRESS_BASE: u32 = 0xfee0_0000;
/// Address bits 19:12: destination.
const DESTINATION_SHIFT: u32 = 12;
/// Address bit 2: the destination is logical.
const DESTINATION_MODE_LOGICAL: u32 = 1 << 2;
/// Address bits that a message may have besides its base: destination, redirection hint (3), destination mode. Bit 4 would make the message
/// remappable, bits 11:5 are reserved, and bits 1:0 are zero in an aligned address.
const ADDRESS_FREE: u32 = 0x000f_f00c;
/// The physical destination that means all processors.
const BROADCAST: u32 = 0xff;

/// Data bits 7:0.
const VECTOR: u32 = 0xff;
/// Data bits 10:8: 000 fixed, 001 lowest priority. With one destination they are the same.
const DELIVERY_MODE_LOWEST: u32 = 1 << 8;
/// Data bit 14, which has no meaning for an edge-triggered message.
const LEVEL_ASSERT: u32 = 1 << 14;
/// Data bits that a message may have. All delivery modes but two (SMI, NMI, INIT, ExtINT, reserved), level trigger (15) and the reserved
/// bits are refused.
const DATA_FREE: u32 = VECTOR | DELIVERY_MODE_LOWEST | LEVEL_ASSERT;

/// Parses the message in `image` (address low, high, data). The message must go to exactly one of the guest's own processors.
///
/// The guest's APICs are in x2APIC mode. A logical destination of 8 bits is a set of the processors 0 to 7 of cluster 0 (SDM volume 3,
/// 12.12.10.2), and is accepted if the set has one member. The redirection hint has no effect then.
pub fn parse(domain: &Domain, image: [u32; 3]) -> Result<Target, Status> {
    let [lo, hi, data] = image;
    if hi != 0 || lo & !ADDRESS_FREE != ADDRESS_BASE || data & !DATA_FREE != 0 {
        return Err(Status::InvalidArgument);
    }
    let destination = lo >> DESTINATION_SHIFT & 0xff;
    let target = Target::new(destination, (data & VECTOR) as u8)?;
    let apic_id = if lo & DESTINATION_MODE_LOGICAL == 0 {
        if destination == BROADCAST {
            return Err(Status::BadTarget);
        }
        destination
    } else if destination.is_power_of_two() {
        destination.trailing_zeros()
    } else {
        return Err(Status::BadTarget);
    };
    domain.own(Target { apic_id, ..target })
}

#[cfg(test)]
mod tests {
    use alloc::{sync::Arc, vec};

    use super::*;
    use crate::GuestId;

    fn parse_for(apic_ids: &[u32], image: [u32; 3]) -> Result<Target, Status> {
        parse(&Domain::new(GuestId(0), apic_ids.to_vec(), vec![], true, Arc::default()), image)
    }

    #[test]
    fn a_fixed_message_to_an_own_processor_is_taken() {
        let target = Target { apic_id: 3, vector: 0x31 };
        for (lo, data) in [
            (0xfee0_3000, 0x0031),
            (0xfee0_3000, 0x4031), // level assert, as FreeBSD writes
            (0xfee0_3000, 0x0131), // lowest priority
            (0xfee0_3008, 0x0131), // with redirection hint
            (0xfee0_8004, 0x0031), // logical, one member
        ] {
            assert_eq!(parse_for(&[1, 3], [lo, 0, data]), Ok(target), "{lo:#x} {data:#x}");
        }
    }

    #[test]
    fn attack_12_delivery_modes_other_than_fixed_and_lowest_are_refused() {
        for mode in 2..8 {
            assert_eq!(parse_for(&[0], [0xfee0_0000, 0, mode << 8 | 0x31]), Err(Status::InvalidArgument), "{mode}");
        }
    }

    #[test]
    fn attack_13_destinations_outside_the_guest_are_refused() {
        assert_eq!(parse_for(&[0, 1], [0xfee0_2000, 0, 0x31]), Err(Status::BadTarget), "another's processor");
        assert_eq!(parse_for(&[0, 255], [0xfeef_f000, 0, 0x31]), Err(Status::BadTarget), "broadcast");
        for lo in [0xfee0_3004, 0xfeef_f004, 0xfee0_0004, 0xfeef_f00c] {
            assert_eq!(parse_for(&[0, 1, 2, 3, 4, 5, 6, 7], [lo, 0, 0x31]), Err(Status::BadTarget), "logical {lo:#x}");
        }
        assert_eq!(parse_for(&[0, 1], [0xfee0_8004, 0, 0x31]), Err(Status::BadTarget), "logical, another's processor");
    }

    #[test]
    fn attack_14_vectors_below_16_are_refused_and_all_others_taken() {
        for vector in 0..=255u8 {
            let expected = if vector < 16 { Err(Status::BadVector) } else { Ok(Target { apic_id: 0, vector }) };
            assert_eq!(parse_for(&[0], [0xfee0_0000, 0, vector.into()]), expected);
        }
    }

    #[test]
    fn every_reserved_bit_is_refused() {
        for bit in (0..12).filter(|bit| ![2, 3].contains(bit)).chain(20..32) {
            assert!(parse_for(&[0], [0xfee0_0000 ^ 1 << bit, 0, 0x31]).is_err(), "address bit {bit}");
        }
        for bit in (11..14).chain(15..32) {
            assert!(parse_for(&[0], [0xfee0_0000, 0, 0x31 | 1 << bit]).is_err(), "data bit {bit}");
        }
        for bit in 0..32 {
            assert!(parse_for(&[0], [0xfee0_0000, 1 << bit, 0x31]).is_err(), "high address bit {bit}");
        }
    }
}
