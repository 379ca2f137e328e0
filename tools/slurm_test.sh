#!/usr/bin/env bash
# Test on a Slurm cluster.
#
#   bash tools/slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [arguments of tools/test.py]
#
# See slurm_train.sh for the variables.
source "$(dirname "${BASH_SOURCE[0]}")/srun_of.sh"
run_on_slurm test.py 4 "PARTITION JOB CONFIG CHECKPOINT" "$@"
