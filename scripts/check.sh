#!/usr/bin/env bash
# Everything that must hold before a change is pushed: format, lints, documentation, dependencies, tests.
# Missing programs that the tests need (a compiler, git, Node.js for the Codex CLI, a message bus, systemd) are installed
# with apt where that is possible without a question.
#
#   scripts/check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

step() { printf '\n== %s\n' "$*"; }

step "programs"
ensure_rust
ensure_packages cc:gcc git:git npm:npm node:nodejs flock:util-linux strace:strace dbus-daemon:dbus-daemon
component() { cargo "$1" --version > /dev/null 2>&1 || rustup component add "$2"; }
component fmt rustfmt
component clippy clippy
rustc --version
scripts/fetch-codex.sh

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "scripts"
if command -v shellcheck > /dev/null; then
  shellcheck --external-sources scripts/*.sh scripts/systemd-sandbox .ci/run
else
  echo "skipped: shellcheck is not installed (apt-get install shellcheck)"
fi

step "documentation"
RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet

step "dependencies"
if cargo deny --version > /dev/null 2>&1; then
  cargo deny --workspace check --hide-inclusion-graph bans licenses sources
  # The list of known weaknesses is on the network, everything else is here.
  if cargo deny fetch db; then
    cargo deny --workspace --offline check advisories
  else
    echo "skipped: the list of advisories cannot be fetched"
  fi
else
  echo "skipped: cargo-deny is not installed (cargo install cargo-deny)"
fi

step "programs under test"
# Apart from each other: what the tests ask of the product's libraries does not belong into the product.
cargo build --locked --package codex-worker --package codex-supervisor --package codexctl --bins
cargo build --locked --package e2e --bins

step "tests in the documentation"
cargo test --workspace --doc --locked --quiet

step "tests"
if cargo nextest --version > /dev/null 2>&1; then
  cargo nextest run --workspace --locked
else
  echo "cargo-nextest is not installed; using cargo test (cargo install cargo-nextest)"
  cargo test --workspace --lib --bins --tests --locked --no-fail-fast
fi
