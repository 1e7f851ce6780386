#![cfg_attr(not(test), no_std)]
//! To be written.
