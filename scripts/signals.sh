#!/usr/bin/env bash
# Lets one worker report 10 000 signals a second and kills another one all the while: prints how long its restarts take
# in the calm and in the storm, and checks that every signal was counted. A minute by default.
#
#   scripts/signals.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

ensure_rust
ensure_packages cc:gcc
STORM_SECONDS="${1:-60}" cargo test --package codex-supervisor --test process --locked \
    incidents::a_storm_of_signals_delays_no_restart -- --exact --nocapture
