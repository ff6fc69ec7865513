#!/usr/bin/env bash
# The transactions on Codex's config.toml under everything that can go wrong: the process is killed at every system call
# of putting our keys in, taking them out and recovering, and the recovery after it again; every call fails with ENOSPC,
# EIO and EROFS; another program writes between the steps (random interleavings) and all the time (a real race).
# About a quarter of an hour, with 20 000 interleavings and a race of 5 s unless told otherwise.
#
#   scripts/transactions.sh [INTERLEAVINGS] [RACE_SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

ensure_rust
ensure_packages cc:gcc git:git strace:strace
PROPTEST_CASES="${1:-20000}" cargo test --locked --package codex-control --lib -- --nocapture codex_config::
E2E_EVERY_CALL=1 E2E_RACE_SECONDS="${2:-5}" cargo test --locked --package e2e --test suite -- --nocapture transactions::
