//! Messages of a vfio-user client, without its socket: header, payload, and accesses to the device.

use dsa_model::Config;
use dsa_server::{
    device::Device,
    wire::{HEADER, Header, Request},
};

/// Messages of one run at most.
const MESSAGES: usize = 64;

/// The bytes are messages one behind another.
pub fn vfio_user(data: &[u8]) {
    let mut device = Device::new(Config::default());
    let mut rest = data;
    for _ in 0..MESSAGES {
        let Some((head, behind)) = rest.split_first_chunk::<HEADER>() else { return };
        let Ok(header) = Header::parse(head) else { return };
        let Some((payload, behind)) = behind.split_at_checked(header.payload) else { return };
        rest = behind;
        match Request::parse(&header, payload) {
            Ok(Request::DmaMap(map)) => {
                let _ = device.memory().map(map, None);
            }
            Ok(Request::DmaUnmap(Some(range))) => {
                let _ = device.memory().unmap(range);
            }
            Ok(Request::DmaUnmap(None)) => device.memory().clear(),
            Ok(Request::RegionRead(place, count)) => {
                if let Ok(read) = device.load(place, count) {
                    assert_eq!(read.len(), count);
                }
            }
            Ok(Request::RegionWrite(place, bytes)) => {
                let _ = device.store(place, bytes);
            }
            Ok(Request::Reset) => device.reset(),
            Ok(_) | Err(_) => {}
        }
        device.work();
        while device.take_request().is_some() {}
    }
}
