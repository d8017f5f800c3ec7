#!/usr/bin/env bash
# Makes .venv with everything locked. What is missing it installs (as root, by apt) or names.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
  for name in python3.13 python3.12 python3.11 python3; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  return 1
}

install_by_apt() {
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "Installing $* by apt"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
  else
    echo "Missing: $*. Install it with: sudo apt-get install $*" >&2
    exit 1
  fi
}

python=$(find_python) || { install_by_apt python3 python3-venv; python=$(find_python) || {
  echo "Missing: Python 3.11 or newer" >&2; exit 1; }; }
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  install_by_apt "python$version-venv"
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "Installing the locked packages into .venv (the first time: several gigabytes, mostly PyTorch)"
.venv/bin/python -m pip install -q --disable-pip-version-check "$(grep -oE '^uv==[^ ]+' requirements.lock)"
.venv/bin/uv pip install -q --python .venv/bin/python -r requirements.lock
.venv/bin/uv pip install -q --python .venv/bin/python --no-deps -r examples/requirements.txt
.venv/bin/uv pip install -q --python .venv/bin/python --no-deps -e .
