//! `cargo bench`: see `imsvisor_tests::figures`, and `cargo bench -- --help`.

use std::process::ExitCode;

use clap::Parser;
use imsvisor_tests::figures::{self, Options};

fn main() -> ExitCode {
    match figures::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
