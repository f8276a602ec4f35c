#!/bin/sh
# Searches for inputs that break the properties of fuzz/properties.rs, with the stable compiler.
#
#   tests/fuzz.sh SECONDS [TARGET [OPTION...]]   each target (or one) for that long
#   tests/fuzz.sh runs N [TARGET [OPTION...]]    each target (or one) for N executions; 0 replays the corpus
#
# An OPTION is one of libFuzzer's, like -seed=7. New inputs go to fuzz/work/TARGET (not committed); a finding to fuzz/artifacts/TARGET,
# and the exit code is not 0.
set -eu
cd "$(dirname "$0")/.."

targets="token mountinfo store_header csi_publish admin_http spec render"
case "${1:-}" in
    runs)
        limit="-runs=$2"
        shift 2
        ;;
    "" | *[!0-9]*)
        sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
    *)
        limit="-max_total_time=$1"
        shift
        ;;
esac
bins=--bins
if [ $# -gt 0 ]; then
    targets=$1
    bins="--bin=$1"
    shift
fi

host=$(rustc -vV | sed -n 's/^host: //p')
# Coverage as cargo-fuzz asks the compiler for it, less the sanitizers, which need nightly. `--target` keeps these flags
# away from build scripts.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1" \
    cargo build --release --manifest-path fuzz/Cargo.toml --target "$host" "$bins"

for target in $targets; do
    mkdir -p "fuzz/work/$target" "fuzz/artifacts/$target"
    # Long enough for what a target tells apart; what is longer only costs time. Limits of bytes have tests of their own.
    case $target in
        spec | render) length=4096 ;;
        csi_publish | token) length=2048 ;;
        *) length=1024 ;;
    esac
    "${CARGO_TARGET_DIR:-fuzz/target}/$host/release/$target" "fuzz/work/$target" "fuzz/corpus/$target" \
        "$limit" "-max_len=$length" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0 \
        "-dict=fuzz/dict/$target.dict" "-artifact_prefix=fuzz/artifacts/$target/" "$@"
done
