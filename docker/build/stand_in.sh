#!/bin/sh
# Add what the DataHub stand-in needs to a venv that has the project: `stand_in.sh VENV`.
set -eu
venv=$1
cd "$(dirname "$0")/../.."

"$venv/bin/uv" pip install --quiet --verify-hashes --only-binary :all: --compile-bytecode --python "$venv" \
    --constraint requirements/dev.txt graphql-core jsonpatch
