#!/usr/bin/env bash
# Kills, replaces, stops, freezes and starves the product's processes, and counts what breaks: nothing may. Prints the
# times it took, and those of s6 and supervisord beside them. Everything in full takes about half an hour.
#
#   scripts/reliability.sh [PART [COUNT]]
#
#   lifecycle    random schedules of the state machine (100000)
#   worker       the worker is killed under load, while the real Codex does 20 tasks (1000)
#   replace      the worker is replaced, its settings and its program are changed, with 200 streams (20 each)
#   supervisor   the supervisor is killed, with 200 streams (100), also under systemd
#   halfway      the supervisor is killed while it replaces the worker, with 200 streams (80), also under systemd
#   both         supervisor and worker are killed at once (100), also under systemd
#   stop         everything is stopped with 200 streams (5), also under systemd
#   stuck        the worker gets SIGSTOP (20)
#   freeze       everything gets SIGSTOP for 30 s (4)
#   busy         three busy threads for each processor, for 10 s (6)
#   watch        two workers share a listener by hand: what watches the parts above for that sees it
#   peers        a worker is killed under us, under s6 and under supervisord (100 each): a table
#
#   RELIABILITY_PROGRAMS=DIR  uses the programs there instead of building the release
#   RELIABILITY_STRICT=       judges counts only, no times
set -euo pipefail

# In the sandbox: installs the programs as a person does and runs parts against the service.
if [ "${1:-}" = --inside ]; then
  shift
  /sandbox/scripts/install.sh --from /sandbox/bin > /dev/null
  export PATH=$HOME/.local/bin:$PATH
  for part in "$@"; do
    # shellcheck disable=SC2086 # a part with its options
    /sandbox/bin/reliability --service $part
  done
  exit
fi

cd "$(dirname "$0")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

strict=${RELIABILITY_STRICT---strict}
part=${1:-all} count=${2:-}
programs=${RELIABILITY_PROGRAMS:-}

build() {
  [ -z "$programs" ] || return 0
  ensure_rust
  ensure_packages cc:gcc git:git npm:npm node:nodejs flock:util-linux
  # Apart from each other: what the tests ask of the product's libraries does not belong into the product.
  cargo build --release --locked --package codex-worker --package codex-supervisor --package codexctl --bins
  cargo build --release --locked --package e2e --bins
  programs=${CARGO_TARGET_DIR:-target}/release
}

measure() {
  build
  # shellcheck disable=SC2086 # no argument where it is empty
  E2E_NO_BUILD=1 "$programs/reliability" "$@" $strict
}

# Each argument is a part with its options.
measure_service() {
  build
  echo "under systemd:"
  scripts/systemd-sandbox --bind "$(readlink -f "$programs"):/sandbox/bin" --bind "$PWD/systemd:/sandbox/systemd" \
    --bind "$PWD/scripts:/sandbox/scripts" -- /sandbox/scripts/reliability.sh --inside "${@/%/ $strict}"
}

run() {
  case $1 in
    lifecycle) LIFECYCLE_SCHEDULES=${2:-100000} cargo test --quiet --locked --package codex-supervisor any_schedule ;;
    worker) measure worker --count "${2:-1000}" --tasks 20 ;;
    replace) measure replace --count "${2:-20}" && measure_service "replace --count ${2:-20}" ;;
    supervisor) measure supervisor --count "${2:-100}" && measure_service "supervisor --count ${2:-100}" ;;
    halfway) measure halfway --count "${2:-80}" && measure_service "halfway --count ${2:-80}" ;;
    both) measure both --count "${2:-100}" && measure_service "both --count ${2:-100}" ;;
    stop) measure stop --count "${2:-5}" && measure_service "stop --count 1" ;;
    stuck) measure stuck --count "${2:-20}" ;;
    freeze) measure freeze --count "${2:-4}" ;;
    watch) measure watch ;;
    busy) measure busy --count "${2:-6}" ;;
    peers)
      ensure_packages s6-supervise:s6 supervisord:supervisor
      measure peers --count "${2:-100}"
      ;;
    # What the suite runs, with everything said.
    service) shift && measure_service "$@" ;;
    *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit 2 ;;
  esac
}

case $part in
  all) for part in lifecycle worker replace supervisor halfway both stop stuck freeze busy watch peers; do run "$part"; done ;;
  service) run "$@" ;;
  *) run "$part" ${count:+"$count"} ;;
esac
