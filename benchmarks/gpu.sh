#!/usr/bin/env bash
# Tests and benchmarks on a GPU: one JSON and one Markdown table.
#
#   bash benchmarks/gpu.sh [--device cuda|cpu] [--tiny] [--out FILE] [...]
#
# Runs the tests marked cuda, then every suite of `benchmark gpu`, which takes
# the same arguments (see --help). Needs torch, mmengine, mmcv or mmcv-lite,
# pytest, hypothesis and rich. PYTHON sets the interpreter. Both parts always
# run; the exit status is 1 if a test or a candidate failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

device=cuda
selected=()
arguments=("$@")
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=${2:-} ; shift ;;
        --device=*) device=${1#*=} ;;
        --tiny) selected=(-k 'float32 and not hybrid and not dilated') ;;
    esac
    shift
done

"$python" - <<'END' || exit
import platform
import torch
print('python', platform.python_version(), 'torch', torch.__version__,
      'CUDA', torch.version.cuda)
if torch.cuda.is_available():
    print(torch.cuda.get_device_properties(0))
END
command -v nvidia-smi > /dev/null && nvidia-smi --format=csv \
    --query-gpu=name,driver_version,memory.total,memory.used,clocks.max.sm

report=$(mktemp)
trap 'rm -f "$report"' EXIT
status=0
# After SIGINT pytest still writes its report.
FPT_TEST_DEVICE=$device timeout --signal=INT --kill-after=15 140 \
    "$python" -m pytest -q -p no:cacheprovider --tb=short --show-capture=no \
    --disable-warnings --durations 5 --junit-xml "$report" \
    -m cuda ${selected[@]+"${selected[@]}"} tests/cuda || status=1
tests=()
[ -s "$report" ] && tests=(--tests "$report")
"$python" -m fpt_plugin benchmark gpu ${arguments[@]+"${arguments[@]}"} \
    ${tests[@]+"${tests[@]}"} || status=1
exit $status
