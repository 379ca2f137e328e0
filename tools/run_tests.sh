#!/usr/bin/env bash
# Make the environment (shared with the quickstart) and run the tests.
#
#   bash tools/run_tests.sh [--stack stock|onedl] [pytest arguments]
#
# Test files run in up to four parallel processes; -n 0 uses one process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python_of_stack.sh" "$@"
exec "$python" -m pytest -n logical --maxprocesses 4 --dist loadfile \
    ${rest[@]+"${rest[@]}"}
