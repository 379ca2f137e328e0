#!/usr/bin/env bash
# Makes the environment (shared with the quickstart) and runs the tests.
#
#   bash tools/run_tests.sh [--stack stock|onedl] [pytest arguments]
#
# Files of tests run side by side in up to four processes; -n 0 for one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python_of_stack.sh" "$@"
exec "$python" -m pytest -n logical --maxprocesses 4 --dist loadfile \
    ${rest[@]+"${rest[@]}"}
