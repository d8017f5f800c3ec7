#!/usr/bin/env bash
# Resolves all dependencies anew, and from that the smaller locks of the images: the same versions.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  .venv/bin/uv pip compile --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
    --no-header -q "$@"
}
[ "${1:-}" = "--images-only" ] || compile --all-extras pyproject.toml -o requirements.lock
compile --extra operator -c requirements.lock pyproject.toml -o operator/requirements.lock
compile --extra prepare -c requirements.lock pyproject.toml -o trainer_image/prepare.lock
compile --extra trainer -c requirements.lock pyproject.toml -o trainer_image/trainer.lock
