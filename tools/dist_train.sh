#!/usr/bin/env bash
# Trains in several processes, on one machine or on many, by torchrun.
#
#   bash tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]
#
# PROCESSES is the number on this machine, usually its GPUs. For many machines
# run it on each with NNODES, NODE_RANK and MASTER_ADDR set. PORT (29500) and
# PYTHON (python) can be set too.
source "$(dirname "${BASH_SOURCE[0]}")/torchrun_of.sh"
run_distributed train.py 2 "CONFIG PROCESSES" "$@"
