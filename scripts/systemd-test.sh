#!/usr/bin/env bash
# Shows that the product works as a user service: ready by notify, Codex works under it, a stop leaves nothing.
# The steps run in scripts/systemd-sandbox, as a user who has nothing but the programs.
#
#   scripts/systemd-test.sh FOLDER_WITH_PROGRAMS CODEX_PROGRAM
set -euo pipefail

fail() {
  echo "FAILED: $*" >&2
  systemctl --user status --no-pager --full codex-supervisor >&2 || true
  tail -n 50 "$HOME"/.local/state/codex-supervisor/logs/*.log >&2 || true
  exit 1
}

# Those of the helpers, and the bystander.
sleeps() { pgrep -u "$(id -u)" --count --full '^sleep 86400$'; }
helpers() { pgrep -u "$(id -u)" "$@" --full 86400; }
processes() { pgrep -u "$(id -u)" --list-full --full '/codex-(supervisor|worker)' || true; }

inside() {
  export PATH=$HOME/.local/bin:/sandbox/node:$PATH CODEX_SUPERVISOR_CODEX=$1 NO_PROXY=127.0.0.1,localhost
  mkdir -p "$HOME/.codex" "$HOME/work"
  printf 'check_for_update_on_startup = false\n[analytics]\nenabled = false\n[features]\nplugins = false\napps = false\n' > "$HOME/.codex/config.toml"

  echo "== install"
  /sandbox/scripts/install.sh --from /sandbox/bin || fail "install"

  echo "== start"
  systemctl --user start codex-supervisor || fail "the service does not start"
  [ "$(systemctl --user show --property=Type --value codex-supervisor)" = notify ] || fail "the service is not of type notify"
  [ "$(systemctl --user is-active codex-supervisor)" = active ] || fail "the service is not active"
  echo "active, status: $(systemctl --user show --property=StatusText --value codex-supervisor)"

  echo "== an endpoint at a scripted provider"
  local provider_log=$HOME/provider.log address
  : > "$provider_log"
  /sandbox/bin/fake-provider --script /sandbox/scenarios/systemd.toml >> "$provider_log" &
  local provider=$!
  for _ in {1..100}; do address=$(head -n 1 "$provider_log"); [ -z "$address" ] || break; sleep 0.1; done
  echo test-key | codexctl endpoint add scripted --base-url "http://$address/v1" --protocol chat-completions --model scripted ||
    fail "endpoint add"
  codexctl status || fail "status"

  echo "== Codex"
  cd "$HOME/work"
  codexctl launch cli --endpoint scripted -- exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox "Make it." \
    < /dev/null > "$HOME/codex.out" 2> "$HOME/codex.err" || { cat "$HOME/codex.out" "$HOME/codex.err" >&2; fail "Codex"; }
  grep -q 'It is made.' "$HOME/codex.out" || { cat "$HOME/codex.out" "$HOME/codex.err" >&2; fail "Codex's answer"; }
  [ "$(cat made.txt)" = 'made under systemd' ] || fail "the file was not made"
  grep 'answered' "$provider_log"

  echo "== a scope for the worker"
  local worker supervisor
  worker=$(pgrep -u "$(id -u)" --exact codex-worker) || fail "no worker"
  supervisor=$(pgrep -u "$(id -u)" --exact codex-superviso)
  grep -q "/codex-worker-scripted-[0-9]*-$worker.scope$" "/proc/$worker/cgroup" || fail "the worker is in $(cat "/proc/$worker/cgroup")"
  local scope limit=0
  scope=$(sed -n 's|^0::.*/||p' "/proc/$worker/cgroup")
  [ "$(systemctl --user show --property=MemoryHigh,MemoryMax --value "$scope" | tr '\n' ' ')" = "$((2 << 30)) $((3 << 30)) " ] ||
    fail "the worker's memory has other limits: $(systemctl --user show --property=MemoryHigh,MemoryMax "$scope")"
  printf '\n[daemon]\nworker_memory_bytes_max = %d\n' $((1 << 29)) >> "$HOME/.config/codex-supervisor/supervisor.toml"
  for _ in {1..100}; do
    limit=$(systemctl --user show --property=MemoryMax --value "$scope")
    [ "$limit" != $((3 << 29)) ] || break
    sleep 0.1
  done
  [ "$limit" = $((3 << 29)) ] || fail "the worker's memory has the limit $limit after another was set"
  codexctl status --json | grep -q '"protection": *"full"' || fail "the protection is not full: $(codexctl status)"

  echo "== what Codex leaves behind"
  # A Codex that leaves 300 helpers: with their parent gone, in sessions of their own, deaf to TERM. Half of them it
  # starts as it ends, when its launcher is gone: nothing but their scope tells then whose they are.
  cat > "$HOME/stand-in" << 'END'
#!/bin/bash
helpers() {
  for _ in {1..50}; do
    (setsid sh -c 'sleep 86400 & wait' &)
    (setsid sh -c 'trap "" TERM; while :; do sleep 86400; done' &)
    (setsid sleep 86400 &)
  done
}
helpers
trap 'helpers; exit 0' TERM
echo started >&2
while :; do sleep 0.05; done
END
  chmod +x "$HOME/stand-in"
  local launcher session codex_pid
  sleep 86400 & local bystander=$!
  CODEX_SUPERVISOR_CODEX=$HOME/stand-in codexctl launch cli --endpoint scripted < /dev/null 2> "$HOME/stand-in.err" &
  launcher=$!
  for _ in {1..300}; do ! grep -q started "$HOME/stand-in.err" || break; sleep 0.1; done
  session=$(systemctl --user list-units --no-legend --plain 'codex-session-*.scope' | cut -d' ' -f1)
  [ -n "$session" ] || fail "Codex has no scope of its own: $(systemctl --user list-units --no-legend --plain '*.scope')"
  # Its launcher tells the supervisor of it once it has started.
  for _ in {1..300}; do
    codex_pid=$(codexctl rpc session.list | grep -oE '"pid": ?[0-9]+' | head -n 1 | grep -oE '[0-9]+') && break
    sleep 0.1
  done
  [ -n "$codex_pid" ] || fail "Codex is not known: $(codexctl rpc session.list)"
  # Each helper has a `sleep`, and so has the bystander.
  for _ in {1..300}; do [ "$(sleeps)" -lt 151 ] || break; sleep 0.1; done
  [ "$(sleeps)" -ge 151 ] || fail "the helpers were not started"
  # The launcher would end them by itself; without it, the supervisor does.
  kill -KILL "$launcher"
  kill -TERM "$codex_pid"
  # A helper that is deaf is without a `sleep` for a moment.
  for _ in {1..300}; do [ "$(helpers --count)" != 1 ] || break; sleep 0.1; done
  [ "$(helpers)" = "$bystander" ] || fail "left, or ended: $(helpers --list-full)"
  kill "$bystander"
  echo "300 helpers ended, the bystander lives"

  echo "== restart"
  systemctl --user restart codex-supervisor || fail "the service does not restart"
  codexctl token scripted > /dev/null || fail "the endpoint does not come back after a restart"
  [ "$(pgrep -u "$(id -u)" --exact codex-worker)" = "$worker" ] || fail "the worker did not outlive a restart"

  echo "== crash"
  kill -KILL "$(pgrep -u "$(id -u)" --exact codex-superviso)"
  [ "$(pgrep -u "$(id -u)" --exact codex-worker)" = "$worker" ] || fail "the worker did not outlive a crash"
  # Not `is-active`: systemd has that of the one that was killed until it notices.
  for _ in {1..100}; do
    next=$(pgrep -u "$(id -u)" --exact codex-superviso) && [ "$next" != "$supervisor" ] && break
    sleep 0.1
  done
  codexctl token scripted > /dev/null || fail "the endpoint does not come back after a crash"
  [ "$(pgrep -u "$(id -u)" --exact codex-worker)" = "$worker" ] || fail "the worker was not taken over after a crash"
  [ "$(pgrep -u "$(id -u)" --exact codex-superviso)" != "$supervisor" ] || fail "the supervisor is the same"
  [ "$(pgrep -u "$(id -u)" --count --exact codex-superviso)" = 1 ] || fail "not one supervisor: $(processes)"

  echo "== stop"
  systemctl --user stop codex-supervisor.socket codex-supervisor || fail "the service does not stop"
  [ "$(systemctl --user is-active codex-supervisor)" = inactive ] || fail "the service is not inactive"
  [ -z "$(processes)" ] || fail "processes are left: $(processes)"
  local left
  left=$(find "$XDG_RUNTIME_DIR/codex-supervisor" -type s 2> /dev/null || true)
  [ -z "$left" ] || fail "sockets are left: $left"
  # systemd forgets a scope a moment after its last process has ended.
  for _ in {1..100}; do
    left=$(systemctl --user list-units --all --plain --no-legend 'codex-worker-*')
    [ -n "$left" ] || break
    sleep 0.1
  done
  [ -z "$left" ] || fail "scopes are left: $left"
  kill "$provider"
  wait "$provider" || fail "the provider's script was not played: $(cat "$provider_log")"

  echo "== uninstall"
  /sandbox/scripts/install.sh --uninstall || fail "uninstall"
  for left in "$HOME"/.local/bin/codex* "$HOME"/.config/systemd/user/codex*; do
    [ ! -e "$left" ] || fail "$left is left"
  done
  echo "nothing is left"
}

if [ "${1:-}" = --inside ]; then
  inside "$2"
  exit
fi

programs=$(readlink -f "$1") codex=$(readlink -f "$2")
cd "$(dirname "$0")/.."
# The program lies somewhere below its node_modules; the whole of that is shown inside.
node=$(dirname "$(node -p process.execPath)")
modules=${codex%%/node_modules/*}/node_modules
[ "$modules" != "$codex/node_modules" ] || { echo "error: $codex is no npm installation of Codex" >&2; exit 1; }
exec scripts/systemd-sandbox --bind "$programs:/sandbox/bin" --bind "$PWD/systemd:/sandbox/systemd" \
  --bind "$PWD/scripts:/sandbox/scripts" --bind "$PWD/tests/scenarios:/sandbox/scenarios" --bind "$modules:/sandbox/codex/node_modules" \
  --bind "$node:/sandbox/node" -- \
  /sandbox/scripts/systemd-test.sh --inside "/sandbox/codex/node_modules/${codex#"$modules"/}"
