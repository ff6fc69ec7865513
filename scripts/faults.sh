#!/usr/bin/env bash
# Injects each of the 38 faults into the running system and prints one row each: how it was injected, what it was seen
# as, the tier and action, what came of it, and the times. Where a row says "worker's report", a program that stands in
# for the worker reports what the parsers of the real one would.
#
#   scripts/faults.sh [TIMES]   default 1
set -euo pipefail
cd "$(dirname "$0")/.."

for ((n = 1; n <= ${1:-1}; n++)); do
    cargo test --locked --quiet --package e2e --test suite -- --nocapture --exact \
        faults::each_of_the_38_faults_is_seen_and_answered_rightly
done
