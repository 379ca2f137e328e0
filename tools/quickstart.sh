#!/usr/bin/env bash
# From nothing to a trained model: makes the environment, fetches pictures and
# ImageNet weights, trains a detector of trees in aerial photographs (or, with
# --task segmentation, a segmentor of nuclei in a microscope image) with an FPT
# neck, evaluates it and draws what it found. --task pretraining trains a backbone on
# the photographs without their boxes, for a detector of such photographs.
#
#   bash tools/quickstart.sh [--stack stock|onedl]
#                            [--task detection|segmentation|pretraining]
#                            [--neck fpt|fpn|ufp] [--method greenmim|uniform|simmim]
#                            [--epochs N] [--seed N] [--fresh]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python_of_stack.sh" "$@"

# Training on a CPU allocates and frees large maps at every step. Keeping that
# memory, in large pages, instead of handing it back to the system saves about
# a sixth of the time with glibc.
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-100000000000}
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
# mmengine 0.10 announces this at every start; environment.sh has pinned it.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore:pkg_resources is deprecated:UserWarning}
exec "$python" tools/quickstart.py ${rest[@]+"${rest[@]}"}
