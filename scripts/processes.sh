#!/usr/bin/env bash
# Counts, in full, what happens to processes: numbers that are given to another process, a Codex that leaves helpers
# behind in every way there is, registries that are damaged, workers and Codex that use too much memory. Look-alike
# bystanders stand beside each; a test fails when one of them is ended, or one of ours is left.
# The suite runs the same tests with smaller counts.
#
#   scripts/processes.sh [REUSES [HELPERS]]        default: 2000 and 300
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

ensure_rust
ensure_packages cc:gcc git:git npm:npm node:nodejs flock:util-linux unshare:util-linux setsid:util-linux
scripts/fetch-codex.sh > /dev/null
export CODEX_SUPERVISOR_TEST_REUSES=${1:-2000} CODEX_SUPERVISOR_TEST_HELPERS=${2:-300}
# 50 MiB a second against the default limit of 1 GiB.
export CODEX_SUPERVISOR_TEST_LEAK_MIB_S=50
cargo test --locked --package codex-control --lib -- registry:: tree:: process::
cargo test --locked --package codex-supervisor --test process -- --nocapture supervision::a_leaking_worker
cargo test --locked --package e2e --test suite -- --nocapture sessions::
