//! Sets `--cfg simulation`, which lets the harness into the engine, and what it needs of the parts below.

fn main() {
    println!("cargo:rustc-cfg=simulation");
    println!("cargo:rerun-if-changed=build.rs");
}
