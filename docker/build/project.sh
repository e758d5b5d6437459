#!/bin/sh
# Build the project's wheel and install it in its venv: `project.sh VENV`. What builds it is in the locks, too.
set -eu
venv=$1
cd "$(dirname "$0")/../.."
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT

"$venv/bin/uv" build --quiet --wheel --out-dir "$wheels" --python "$venv" \
    --require-hashes --build-constraint requirements/dev.txt .
"$venv/bin/uv" pip install --quiet --no-deps --compile-bytecode --python "$venv" "$wheels"/*.whl
