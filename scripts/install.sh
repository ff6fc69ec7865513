#!/usr/bin/env bash
# Installs codex-supervisor for the current user, or removes it again. No root, nothing outside the home folder.
#
#   scripts/install.sh [--prefix DIR] [--no-build | --from DIR] [--enable]
#   scripts/install.sh --uninstall [--prefix DIR]
#
#   --prefix DIR  programs go to DIR/bin; default ~/.local
#   --no-build    install what `cargo build --release` made before
#   --from DIR    install the programs in DIR
#   --enable      start the supervisor now and at each login (without it: at the first use)
#   --uninstall   stop the supervisor, remove programs and units, say what stays
set -euo pipefail

programs=(codex-supervisor codex-worker codexctl)
units=(codex-supervisor.service codex-supervisor.socket)

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

fail() {
  echo "error: $1" >&2
  [ -z "${2:-}" ] || echo "  hint: $2" >&2
  exit "${3:-1}"
}

has_service_manager() { command -v systemctl > /dev/null && systemctl --user show-environment > /dev/null 2>&1; }

# Replaces the target in one step: it may be running, and Codex may be about to run it.
place() {
  local source=$1 target=$2 mode=$3
  install -m "$mode" "$source" "$target.new"
  mv -f "$target.new" "$target"
  echo "installed $target"
}

install_programs() {
  local program
  mkdir -p "$bin"
  for program in "${programs[@]}"; do place "$from/$program" "$bin/$program" 755; done
}

install_units() {
  local unit text line
  mkdir -p "$unit_folder"
  for unit in "${units[@]}"; do
    text=$(mktemp)
    while IFS= read -r line; do
      # systemd reads % as the start of a specifier, and splits at spaces unless quoted.
      if [[ $line == ExecStart=%h/.local/bin/codex-supervisor* && $bin != "$HOME/.local/bin" ]]; then
        line="ExecStart=\"${bin//%/%%}/codex-supervisor\"${line#ExecStart=%h/.local/bin/codex-supervisor}"
      fi
      printf '%s\n' "$line"
    done < "$root/systemd/$unit" > "$text"
    place "$text" "$unit_folder/$unit" 644
    rm -f "$text"
  done
}

do_install() {
  if [ -z "$from" ]; then
    from=${CARGO_TARGET_DIR:-$root/target}/release
    missing_hint="run it without \`--no-build\`"
    if [ "$build" = yes ]; then
      command -v cargo > /dev/null || fail "\`cargo\` is missing" "install Rust from https://rustup.rs"
      (cd "$root" && cargo build --release --locked "${programs[@]/#/--package=}")
    fi
  else
    missing_hint="\`--from\` names the folder that holds ${programs[*]}"
  fi
  # All or nothing: what is missing is found before the first file is placed.
  local file
  for file in "${programs[@]}"; do
    [ -x "$from/$file" ] || fail "there is no program \`$from/$file\`" "$missing_hint"
  done
  for file in "${units[@]}"; do
    [ -r "$root/systemd/$file" ] || fail "there is no unit \`$root/systemd/$file\`" "run the script from a whole checkout"
  done
  install_programs
  install_units
  if has_service_manager; then
    local runs=no
    systemctl --user daemon-reload
    ! systemctl --user is-active --quiet codex-supervisor.service || runs=yes
    if [ "$enable" = yes ]; then
      systemctl --user enable "${units[@]}"
      # The socket comes first: systemd refuses it to a service that runs already and has bound its own.
      [ $runs = yes ] || systemctl --user start codex-supervisor.socket
      systemctl --user start codex-supervisor.service
      echo "the supervisor runs, now and after each login"
    fi
    [ $runs = no ] || echo "the supervisor that runs is the one from before: \`codexctl restart\` changes to this one"
  else
    [ "$enable" = no ] || fail "there is no service manager (\`systemctl --user\`) that could start the supervisor" \
      "everything is installed; \`codexctl start\` starts it by hand"
    echo "there is no service manager (\`systemctl --user\`): codexctl starts the supervisor itself, and nobody restarts it"
  fi
  case :$PATH: in
    *:"$bin":*) ;;
    *) echo "$bin is not on your PATH: add it, or call $bin/codexctl" ;;
  esac
  echo "next: codexctl endpoint add --preset PRESET    (\`codexctl presets\` lists them)"
}

do_uninstall() {
  local file removed=no
  if has_service_manager; then
    # The socket first: it would start the service again.
    for file in codex-supervisor.socket codex-supervisor.service; do
      [ ! -e "$unit_folder/$file" ] || systemctl --user disable --now "$file"
    done
  fi
  # One that runs without systemd. It is asked by the very program that is about to go.
  [ ! -x "$bin/codexctl" ] || "$bin/codexctl" stop > /dev/null
  for file in "${programs[@]/#/$bin/}" "${units[@]/#/$unit_folder/}"; do
    if [ -e "$file" ]; then
      rm -f "$file"
      echo "removed $file"
      removed=yes
    fi
  done
  ! has_service_manager || systemctl --user daemon-reload
  [ -z "${XDG_RUNTIME_DIR:-}" ] || rmdir "$XDG_RUNTIME_DIR/codex-supervisor" 2> /dev/null || true
  [ "$removed" = yes ] || echo "nothing was installed in $bin"
  for file in "${XDG_CONFIG_HOME:-$HOME/.config}" "${XDG_STATE_HOME:-$HOME/.local/state}" "${XDG_CACHE_HOME:-$HOME/.cache}"; do
    [ ! -d "$file/codex-supervisor" ] || echo "stays: $file/codex-supervisor"
  done
  [ ! -d "${XDG_CONFIG_HOME:-$HOME/.config}/codex-supervisor/credentials" ] ||
    echo "stays: your keys, in ${XDG_CONFIG_HOME:-$HOME/.config}/codex-supervisor/credentials"
}

: "${HOME:?is not set}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prefix=$HOME/.local build=yes enable=no uninstall=no from=''
while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --from)
      [ -n "${2:-}" ] || fail "\`$1\` needs a folder" '' 2
      if [ "$1" = --prefix ]; then prefix=$2; else from=$2; fi
      shift
      ;;
    --no-build) build=no ;;
    --enable) enable=yes ;;
    --uninstall) uninstall=yes ;;
    --help | -h)
      usage
      exit
      ;;
    *) fail "\`$1\` is not an option" "\`scripts/install.sh --help\`" 2 ;;
  esac
  shift
done
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
bin=${prefix%/}/bin
unit_folder=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user

if [ "$uninstall" = yes ]; then do_uninstall; else do_install; fi
