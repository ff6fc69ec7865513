#!/usr/bin/env bash
# Many streams at once through one worker, for each wire protocol in turn: every answer is checked, and the worker's memory
# and descriptors are watched. Two minutes each and 200 streams unless told otherwise. Then as many long requests at once,
# whose answers stop at the provider's output limit: what is kept of them has a total.
#
#   scripts/load.sh [SECONDS] [STREAMS]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

ensure_rust
ensure_packages cc:gcc git:git
export E2E_LOAD_SECONDS="${1:-120}" E2E_LOAD_STREAMS="${2:-200}" E2E_KEPT_STREAMS="${2:-200}"
cargo test --locked --package e2e --test suite -- --exact --nocapture --test-threads 1 \
    load::many_streams_at_once_stay_apart_and_leave_nothing_behind \
    kept::what_is_kept_of_requests_has_a_total
