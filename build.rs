//! Compiles `proto/`. Nothing else: no git, no clock.

/// Messages that hold tokens, secrets, or what a pod's author wrote: without `Debug` none of it can be printed.
const SILENT: [&str; 1] = [".csi.v1.NodePublishVolumeRequest"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 2] = [
        "proto/csi/v1/csi.proto",
        "proto/pluginregistration/v1/api.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug(SILENT)
        .compile_fds(descriptors)?;
    Ok(())
}
