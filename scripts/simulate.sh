#!/usr/bin/env bash
# The incident engine against random schedules, and against a world in which the right fix changes.
#
#   scripts/simulate.sh [SCHEDULES]   default 10000; prints how many directives came, and that they came again
#   scripts/simulate.sh --bench       the time of a decision
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ "${1:-}" == --bench ]]; then
    exec cargo bench --locked -p codex-incident --bench decide
fi
INCIDENT_SCHEDULES="${1:-10000}" exec cargo test --release --locked -p codex-incident --test simulation -- --nocapture
