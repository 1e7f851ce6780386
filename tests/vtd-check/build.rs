//! Hands the hypervisor's own linker script to the linker: the image is entered as the hypervisor is.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../boot/entry/hypervisor.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rerun-if-changed=../../boot/entry/multiboot2.S");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{script}");
        println!("cargo:rustc-link-arg-bins=--no-dynamic-linker");
    }
}
