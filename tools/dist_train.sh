#!/usr/bin/env bash
# Train in several processes, on one machine or on many, with torchrun.
#
#   bash tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]
#
# PROCESSES is the number of processes on this machine, usually its number of GPUs.
# On many machines, run it on each with NNODES, NODE_RANK and MASTER_ADDR set.
# PORT (default 29500) and PYTHON (default python) can be set too.
source "$(dirname "${BASH_SOURCE[0]}")/torchrun_of.sh"
run_distributed train.py 2 "CONFIG PROCESSES" "$@"
