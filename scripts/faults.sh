#!/usr/bin/env bash
# Injects each of the 38 faults into the running system and prints one row each: how it was injected, what it was seen
# as, the tier and action, whether that helped, and the times. Where a row says "reported", the typed signal was
# injected at the door for signals, for want of something outside that could provoke it.
#
#   scripts/faults.sh [TIMES]   default 1
set -euo pipefail
cd "$(dirname "$0")/.."

for ((n = 1; n <= ${1:-1}; n++)); do
    cargo test --locked --quiet --package e2e --test suite -- --nocapture --exact \
        faults::each_of_the_38_faults_is_seen_and_answered_rightly
done
