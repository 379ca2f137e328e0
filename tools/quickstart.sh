#!/usr/bin/env bash
# Make the environment, download images and ImageNet weights, train a detector of
# trees in aerial photographs with an FPT neck (with --task segmentation, a segmentor
# of nuclei in a microscope image), evaluate it and draw its predictions. --task
# pretraining trains a backbone for the detector on the photographs without boxes.
#
#   bash tools/quickstart.sh [--stack stock|onedl]
#                            [--task detection|segmentation|pretraining]
#                            [--neck fpt|fpn|ufp] [--method greenmim|uniform|simmim]
#                            [--epochs N] [--seed N] [--fresh]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python_of_stack.sh" "$@"

# Training on a CPU allocates and frees large maps at every step. With glibc, keeping
# this memory in large pages instead of returning it to the system saves about a sixth
# of the time.
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-100000000000}
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
# mmengine 0.10 warns about this at every start; environment.sh pins setuptools.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore:pkg_resources is deprecated:UserWarning}
exec "$python" tools/quickstart.py ${rest[@]+"${rest[@]}"}
