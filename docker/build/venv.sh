#!/bin/sh
# Make the executor's venv from the locks: `venv.sh VENV`. Wheels alone, hashes checked; uv is one of them, so nothing
# here depends on the machine's architecture. PYTHON, with pip, is the interpreter (default: python3).
set -eu
venv=$1
python=${PYTHON:-python3}
cd "$(dirname "$0")/../.."

"$python" -m venv --without-pip "$venv"
"$python" -m pip --quiet --disable-pip-version-check --python "$venv/bin/python" \
    install --require-hashes --only-binary :all: --requirement requirements/uv.txt
"$venv/bin/uv" pip sync --quiet --require-hashes --only-binary :all: --compile-bytecode --python "$venv" \
    requirements/runtime.txt
