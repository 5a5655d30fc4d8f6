#!/bin/sh
# The steps that build the container image, kept out of the Dockerfile so that they can be run and tested without Docker.
#
#   image.sh PREFIX [WHEELS]   installs zvmq with compiled cores into a virtual environment at PREFIX; the wheel that is
#                              made for it is left in the directory WHEELS
set -eu

prefix=$1
wheels=${2:-}
source=$(cd "$(dirname "$0")/.." && pwd)

# The build writes beside the sources, so it gets a copy of what it needs and nothing else.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
wheels=${wheels:-$work/wheels}
cd "$source"
mkdir "$work/source"
cp -R LICENSE README.md pyproject.toml setup.cfg setup.py admin bench broker cluster "$work/source"

"${PYTHON:-python3}" -m venv "$prefix"
# A development machine may hold the source tree in PYTHONPATH; the image must stand on what it installs.
unset PYTHONPATH
cd "$work"
export ZVMQ_COMPILE=1
"$prefix/bin/python" -m pip --quiet --disable-pip-version-check wheel --no-deps --wheel-dir "$wheels" "$work/source"
"$prefix/bin/python" -m pip --quiet --disable-pip-version-check install "$wheels"/*.whl
cd /
"$prefix/bin/vmq-broker" --version
