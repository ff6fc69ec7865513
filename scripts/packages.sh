# shellcheck shell=bash
# For other scripts to source: `ensure_packages COMMAND:PACKAGE…` installs the Debian packages of missing commands and
# says so; where it cannot, it names them and ends.

ensure_packages() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%:*}" > /dev/null || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  local sudo=()
  if [ "$(id -u)" != 0 ]; then
    sudo=(sudo -n)
    if ! sudo -n true 2> /dev/null; then
      echo "error: packages are missing: ${missing[*]}" >&2
      echo "  hint: sudo apt-get install ${missing[*]}" >&2
      exit 1
    fi
  fi
  if ! command -v apt-get > /dev/null; then
    echo "error: programs are missing, of the Debian packages ${missing[*]}" >&2
    echo "  hint: install them with this system's package manager" >&2
    exit 1
  fi
  echo "installing ${missing[*]}" >&2
  local log
  log=$(mktemp)
  # Two scripts may come here at once, and apt-get does not wait for another one that updates. The lock is that of
  # scripts/systemd-sandbox, too.
  # shellcheck disable=SC2016 # the inner shell expands it
  if ! "${sudo[@]}" flock /var/lib/dpkg sh -c \
    'apt-get update && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"' \
    sh "${missing[@]}" > "$log" 2>&1 < /dev/null; then
    tail -20 "$log" >&2
    rm -f "$log"
    echo "error: the packages could not be installed" >&2
    exit 1
  fi
  rm -f "$log"
}

# Rust is the one thing that is not installed for you: how you have it is your business.
ensure_rust() {
  if ! command -v cargo > /dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then PATH=$PATH:$HOME/.cargo/bin; fi
  if ! command -v cargo > /dev/null; then
    echo "error: \`cargo\` is missing" >&2
    echo "  hint: install Rust from https://rustup.rs" >&2
    exit 1
  fi
  local needed have
  needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  have=$(rustc --version | cut -d' ' -f2)
  if [ "$(printf '%s\n%s\n' "$needed" "${have%%-*}" | sort -V | head -1)" != "$needed" ]; then
    echo "error: Rust $have is too old, $needed is needed" >&2
    echo "  hint: rustup update" >&2
    exit 1
  fi
}
