//! Serves the DSA model to QEMU over vfio-user, as a process of its own.
//!
//! QEMU has the remapping unit, the bus and the memory; the model is the one that the emulated machine has. Its messages are DMA
//! writes, which go through QEMU's remapping unit, and its DMA goes where QEMU's translation leads.
//!
//! Each device has a thread of its own, which waits for no answer of QEMU's: QEMU holds its big lock while it waits for an answer of the
//! server's, and needs that lock for the server's requests (`device::Bus`).

#![forbid(unsafe_code)]

pub mod connection;
pub mod device;
pub mod memory;
pub mod server;
pub mod wire;
