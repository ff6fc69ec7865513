#!/usr/bin/env bash
# Kills supervisor and worker at once under a running Codex, again and again, without a service manager: Codex's own
# `auth.command` has to bring them back, and each task has to complete. Prints the times. Twenty tasks of each kind
# unless told otherwise.
#
#   scripts/heal.sh [TASKS]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

ensure_rust
ensure_packages cc:gcc git:git
export E2E_HEAL_ROUNDS="${1:-20}"
cargo test --locked --package e2e --test suite -- --nocapture healing::
