#!/usr/bin/env bash
# Test in several processes, on one machine or on many, with torchrun.
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]
#
# See dist_train.sh for many machines.
source "$(dirname "${BASH_SOURCE[0]}")/torchrun_of.sh"
run_distributed test.py 3 "CONFIG CHECKPOINT PROCESSES" "$@"
