#!/usr/bin/env bash
# Makes the environment (shared with the quickstart) and runs the tests.
#
#   bash tools/run_tests.sh [--stack stock|onedl] [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stack=stock
rest=()
while [ $# -gt 0 ]; do
    case $1 in
        --stack) stack=${2:-}; shift; [ $# -eq 0 ] || shift ;;
        *) rest+=("$1"); shift ;;
    esac
done
python=$(bash tools/environment.sh --stack "$stack")
exec "$python" -m pytest ${rest[@]+"${rest[@]}"}
