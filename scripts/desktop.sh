#!/usr/bin/env bash
# `codexctl launch desktop` with a stand-in for Codex Desktop that lets the real Codex do a task: supervisor, stand-in and
# launcher are killed in turn at random moments, and Codex's config.toml must be the person's own again each time.
#
#   scripts/desktop.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

ensure_rust
ensure_packages cc:gcc git:git npm:npm node:nodejs flock:util-linux
scripts/fetch-codex.sh > /dev/null
E2E_DESKTOP_ROUNDS="${1:-200}" cargo test --locked --package e2e --test suite -- --exact --nocapture \
    config::whoever_is_killed_the_file_comes_back
