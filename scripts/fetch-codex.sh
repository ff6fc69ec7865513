#!/usr/bin/env bash
# Fetches the pinned Codex CLI from npm into target/codex-cli-VERSION (once) and prints the path of its program.
# The version and the hashes of its packages stand in scripts/codex-cli/package-lock.json.
#
#   scripts/fetch-codex.sh [--quiet]
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=$(sed -n 's/.*"@openai\/codex": "\([0-9.]*\)".*/\1/p' scripts/codex-cli/package.json)
folder=${CARGO_TARGET_DIR:-$PWD/target}/codex-cli-$VERSION
program=$folder/node_modules/.bin/codex

mkdir -p "$folder"
# Tests run in parallel and may all find it missing.
exec 9>"$folder/.lock"
flock 9
if [ ! -e "$folder/.complete" ]; then
  command -v npm >/dev/null || {
    echo "error: \`npm\` is missing, and with it the way to fetch Codex CLI $VERSION" >&2
    echo "  hint: apt-get install nodejs npm, or name a Codex program in CODEX_SUPERVISOR_CODEX" >&2
    exit 1
  }
  [ "${1:-}" = --quiet ] || echo "fetching Codex CLI $VERSION from npm into $folder (about 400 MB, once)" >&2
  cp scripts/codex-cli/package.json scripts/codex-cli/package-lock.json "$folder/"
  npm ci --prefix "$folder" --no-audit --no-fund --no-update-notifier --loglevel=error >&2
  "$program" --version | grep -Fx "codex-cli $VERSION" >/dev/null || {
    echo "error: $program is not version $VERSION" >&2
    exit 1
  }
  : > "$folder/.complete"
fi
echo "$program"
