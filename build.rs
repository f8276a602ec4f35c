//! Compiles `proto/`. Nothing else: no git, no clock.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 1] = ["proto/csi/v1/csi.proto"];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .compile_fds(descriptors)?;
    Ok(())
}
