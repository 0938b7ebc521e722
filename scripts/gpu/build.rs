//! Links `STUBS`, the object that `run.sh build` makes where there is no LLVM.

fn main() {
    println!("cargo:rerun-if-env-changed=STUBS");
    // Every undefined symbol is named, not the first twenty.
    println!("cargo:rustc-link-arg=-Wl,--error-limit=0");
    if let Ok(stubs) = std::env::var("STUBS") {
        println!("cargo:rerun-if-changed={stubs}");
        println!("cargo:rustc-link-arg={stubs}");
    }
}
