#!/usr/bin/env bash
# Shows the whole thing at work, offline and without an account: builds it, starts it in a throw-away home with a
# scripted provider, and lets the real Codex CLI do a small job through it. Ends with nothing running.
# Missing programs (a compiler, git, Node.js for the Codex CLI) are installed with apt where that is possible.
#
#   scripts/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; else bold='' plain=''; fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

step "1. What is needed"
ensure_rust
ensure_packages cc:gcc git:git npm:npm node:nodejs flock:util-linux
rustc --version
codex=$(scripts/fetch-codex.sh)
"$codex" --version

step "2. Build (the first time takes a few minutes)"
# Apart from each other: what the tests ask of the product's libraries does not belong into the product.
cargo build --release --locked --package codex-worker --package codex-supervisor --package codexctl --bins
cargo build --release --locked --package e2e --bins
programs=$PWD/${CARGO_TARGET_DIR:-target}/release
case ${CARGO_TARGET_DIR:-} in /*) programs=$CARGO_TARGET_DIR/release ;; esac

step "3. A throw-away home"
made=$(dirname "$programs")/demo
rm -rf "$made"
mkdir -p "$made"
git -C "$made" init --quiet # a project of its own, not a part of this one
# In /tmp, because the path of a socket must be short; Codex's own folder elsewhere, because it dislikes /tmp.
base=$(mktemp -d /tmp/codex-demo.XXXXXX)
codex_home=$made-codex-home
rm -rf "$codex_home"
mkdir -m 700 "$base"/{home,config,state,cache,run} "$codex_home"
echo "settings, state and sockets: $base (removed at the end)"
echo "files that Codex makes:      $made (kept)"
environment=(
  "HOME=$base/home" "XDG_CONFIG_HOME=$base/config" "XDG_STATE_HOME=$base/state" "XDG_CACHE_HOME=$base/cache"
  "XDG_RUNTIME_DIR=$base/run" "CODEX_HOME=$codex_home" "CODEX_SUPERVISOR_CODEX=$codex" "PATH=$programs:$PATH"
  "NO_PROXY=127.0.0.1,localhost" "LANG=C.UTF-8" "TERM=${TERM:-dumb}"
)
printf 'check_for_update_on_startup = false\n[analytics]\nenabled = false\n[features]\nplugins = false\napps = false\n' > "$codex_home/config.toml"

# Everything started below has this home in its environment, wherever it went.
left() {
  local file
  for file in /proc/[0-9]*/environ; do
    # Other users' processes cannot be read, and some end meanwhile.
    if { tr '\0' '\n' < "$file" | grep -qxF "HOME=$base/home"; } 2> /dev/null; then file=${file%/environ}; echo "${file#/proc/}"; fi
  done
}
ended=''
finish() {
  local status=$? pid
  trap - EXIT
  [ -n "$ended" ] || {
    echo "the demo did not end well; logs:" >&2
    tail -n 40 "$base"/state/codex-supervisor/logs/*.log "$base"/*.log >&2 2> /dev/null || true
    for pid in $(left); do kill "$pid" 2> /dev/null || true; done
  }
  rm -rf "$base" "$codex_home"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
demo() { printf '\n$ %s\n' "$*"; (cd "$made" && env -i "${environment[@]}" "$@"); }

step "4. A provider (scripted: it checks each request strictly, and answers like a model)"
: > "$base/provider.log"
env -i "${environment[@]}" "$programs/fake-provider" --scenario demo >> "$base/provider.log" 2>&1 &
provider=$!
for _ in {1..100}; do
  address=$(head -n 1 "$base/provider.log")
  [ -z "$address" ] || break
  sleep 0.1
done
[ -n "$address" ] || { echo "error: the provider did not start" >&2; exit 1; }
echo "it listens on $address and speaks Chat Completions; Codex speaks only Responses"

step "5. An endpoint for it"
echo 'demo-key' | demo codexctl endpoint add demo --base-url "http://$address/v1" --protocol chat-completions --model scripted
demo codexctl status

step "6. Codex does a job"
demo codexctl launch cli --endpoint demo -- exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox \
  "Write a greeting into greeting.txt, improve it, and show it to me." < /dev/null 2>&1 | tee "$base/codex.log"

step "7. What happened at each hop"
echo "Codex asked the worker four times, in its own language (Responses); the worker's log:"
demo codexctl logs demo
printf '\n%s\n' "the worker asked the provider, in the provider's language (Chat Completions); the provider, which answers 400 to
any request that is not well-formed, says:"
sed -n '2,$s/^/  /p' "$base/provider.log"
printf '\n%s\n' "Codex made this file:"
sed 's/^/  /' "$made/greeting.txt"
printf '\n%s\n' "the supervisor watched:"
sleep 0.6 # workers report every half second
demo codexctl status

step "8. Stop"
demo codexctl stop
kill "$provider"
wait "$provider" || { echo "error: the provider was not asked for everything its script holds" >&2; exit 1; }
for _ in {1..50}; do
  remaining=$(left)
  [ -n "$remaining" ] || break
  sleep 0.1
done
[ -z "$remaining" ] || { echo "error: processes are left: $remaining" >&2; exit 1; }
printf 'Hello from the shell.\nHello from apply_patch.\n' | diff - "$made/greeting.txt" || { echo "error: the file is not what it should be" >&2; exit 1; }
ended=1
echo "nothing is left running; the file is in $made"
