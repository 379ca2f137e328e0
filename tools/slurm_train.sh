#!/usr/bin/env bash
# Train on a Slurm cluster.
#
#   bash tools/slurm_train.sh PARTITION JOB CONFIG [arguments of tools/train.py]
#
# Variables: GPUS, their total number over all machines (default 8), GPUS_PER_NODE
# (default 8), CPUS_PER_TASK (default 5), SRUN_ARGS, further arguments of srun.
source "$(dirname "${BASH_SOURCE[0]}")/srun_of.sh"
run_on_slurm train.py 3 "PARTITION JOB CONFIG" "$@"
