//! The first process of the Linux that runs in Bochs for `--machine nested`.

fn main() {
    imsvisor_boot::machine::nested::init::main();
}
