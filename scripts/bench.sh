#!/usr/bin/env bash
# Measures the release build and prints one table: the time to the first word through a worker, beside the provider
# spoken to directly and a plain hyper pass-through; processor time, throughput, memory; starts, crashes, commands. Takes
# about two minutes, and means something only on a machine that does nothing else.
#
#   scripts/bench.sh [--short] [--only SECTION]     the sections are listed by --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

ensure_rust
ensure_packages cc:gcc git:git
# Apart from each other: what the tests ask of the product's libraries does not belong into the product.
cargo build --release --locked --package codex-worker --package codex-supervisor --package codexctl --bins
cargo build --release --locked --package e2e --bins
E2E_NO_BUILD=1 "${CARGO_TARGET_DIR:-target}/release/bench" "$@"
