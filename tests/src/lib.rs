//! The harness for the tests of the whole system.
//!
//! - [`imports`] reads who imports whom in the hypervisor's sources; `tests/imports.rs` holds the arrows.
//! - [`mod@bench`] has the emulator, the hypervisor and the guests ready, each fetched or built once.
//! - [`scenario`] boots them, at most two machines at a time, and keeps what came of it; `tests/boot.rs` judges it.
//! - [`picture`] reads the text of a machine's screen back.
//! - [`terminal`] boots one with a person at a guest's terminal.
//! - [`figures`] is `cargo bench`.
//! - [`isolation`] has one guest attack the time of another one.
//! - [`elf`] weighs images, and makes those that no guest should be.

pub mod bench;
pub mod elf;
pub mod figures;
pub mod imports;
pub mod isolation;
pub mod picture;
pub mod scenario;
pub mod terminal;
