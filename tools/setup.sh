#!/bin/sh
# Find a Python that the locked packages exist for and let it prepare .venv; arguments go to setup_env.py.
set -eu
cd "$(dirname "$0")/.."
for python in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3; do
    if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
        exec "$python" tools/setup_env.py "$@"
    fi
done
echo "ocpgem needs Python 3.11 or 3.12 and found neither; name one: PYTHON=/path/to/python make setup" >&2
exit 1
