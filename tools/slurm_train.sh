#!/usr/bin/env bash
# Trains on a Slurm cluster.
#
#   bash tools/slurm_train.sh PARTITION JOB CONFIG [arguments of tools/train.py]
#
# GPUS (8) is their number over all machines, GPUS_PER_NODE (8), CPUS_PER_TASK
# (5), SRUN_ARGS more arguments of srun.
source "$(dirname "${BASH_SOURCE[0]}")/srun_of.sh"
run_on_slurm train.py 3 "PARTITION JOB CONFIG" "$@"
