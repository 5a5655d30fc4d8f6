#!/bin/sh
# The steps that build the container image, kept out of the Dockerfile so that they can be run and tested without Docker.
#
#   image.sh PREFIX    installs zvmq with compiled cores into a virtual environment at PREFIX
set -eu

prefix=$1
source=$(cd "$(dirname "$0")/.." && pwd)

# The build writes beside the sources, so it gets a copy of what it needs and nothing else.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$source"
cp -R LICENSE README.md pyproject.toml setup.cfg setup.py admin bench broker cluster "$work"

"${PYTHON:-python3}" -m venv "$prefix"
# A development machine may hold the source tree in PYTHONPATH; the image must stand on what it installs.
unset PYTHONPATH
cd "$work"
ZVMQ_COMPILE=1 "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check "$work"
cd /
"$prefix/bin/vmq-broker" --version
