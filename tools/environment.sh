#!/usr/bin/env bash
# Make a virtual environment with torch, one OpenMMLab distribution and this
# package, and print the path of its python. Finished steps are skipped.
#
#   python=$(bash tools/environment.sh [--stack stock|onedl])
#
# stock goes to .venv, onedl to .venv-onedl. Set PYTHON for another interpreter and
# TORCH for another torch, for example TORCH="torch==2.13.0".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stack=stock
while [ $# -gt 0 ]; do
    case $1 in
        --stack) stack=${2:-}; shift; [ $# -eq 0 ] || shift ;;
        *) echo "environment.sh: unknown option $1" >&2; exit 2 ;;
    esac
done
case $stack in
    stock) venv=.venv ;;
    onedl) venv=.venv-onedl ;;
    *) echo "--stack must be stock or onedl, got '$stack'" >&2; exit 2 ;;
esac

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "" "Failed: $1" "$2" \
        "Then run the same command again; finished steps are kept."
    exit 1
}

python=$venv/bin/python
base=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$base" ] || fail "no Python found" "Install Python 3.11."
reader=$python
[ -x "$python" ] || reader=$base

# Read the requirements from the only file that defines the versions.
pins=fpt_plugin/openmmlab/pins.py
{ read -r torch; read -r mmcv; read -r setuptools; read -r mmdet; } < <(
    "$reader" -c 'import runpy, sys
pins, stack = runpy.run_path(sys.argv[1]), sys.argv[2]
print(pins["TORCH"], pins["BUILT"][stack], pins["BUILD_TOOLS"][stack],
      pins["REQUIREMENTS"][stack]["mmdet"], sep="\n")' "$pins" "$stack")
torch=${TORCH:-$torch}

# The environment is complete if this file contains the current requirements.
stamp=$venv/.fpt-plugin
wanted="$stack $torch $mmcv $(cat setup.py pyproject.toml "$pins" | cksum)"
if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "$PWD/$python"
    exit 0
fi

"$base" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' \
    || fail "$("$base" --version) is not supported" \
            "Install Python 3.11, or set its path: PYTHON=/path/to/python3.11"
"$base" -c 'import ensurepip, venv' 2>/dev/null \
    || fail "$base cannot make virtual environments" \
            "Install its venv package (Debian, Ubuntu: python3.11-venv)."

rm -f "$stamp"
[ -x "$python" ] || { say "Making $venv"; "$base" -m venv "$venv" >&2; }
export PIP_DISABLE_PIP_VERSION_CHECK=1

install() { # what, pip arguments...
    local what=$1; shift
    say "Installing $what"
    "$python" -m pip install --quiet --quiet "$@" >&2 || fail "could not install $what" \
        "pip's message is above. Is the package index reachable, and is there room on the disk?"
}

# Return whether mmcv and its compiled operators are installed. It does not import
# mmcv, whose requirements may still be missing.
built() {
    "$python" -c 'import importlib.util, pathlib, sys
spec = importlib.util.find_spec("mmcv")
sys.exit(spec is None or not any(pathlib.Path(spec.origin).parent.glob("_ext*")))'
}

# pip prints nothing while it compiles; read the progress from its log.
build_mmcv() {
    local log=$venv/mmcv-build.log pid started=$SECONDS
    command -v g++ >/dev/null || fail "no C++ compiler found" "Install g++."
    "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
        || fail "the headers of Python are missing" \
                "Install them (Debian, Ubuntu: python3.11-dev)."
    say "Installing $mmcv. It is compiled from source against the installed" \
        "torch: about 15 minutes on 2 cores, unless pip has a cached wheel." \
        "Log: $log"
    MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} "$python" -m pip install \
        -v --no-build-isolation --no-deps "$mmcv" >"$log" 2>&1 &
    pid=$!
    trap 'kill $pid 2>/dev/null' EXIT
    while kill -0 $pid 2>/dev/null; do
        sleep 1
        if [ $(((SECONDS - started) / 30)) -gt ${ticks:-0} ]; then
            ticks=$(((SECONDS - started) / 30))
            say "  $((SECONDS - started)) s" \
                "$(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$log" | tail -1)"
        fi
    done
    trap - EXIT
    wait $pid || { tail -n 20 "$log" >&2; fail "could not build $mmcv" \
        "The end of $log is above. If memory was too low, try MAX_JOBS=1."; }
    built || fail "$mmcv was built without its operators" \
        "See $log; remove $venv and try again."
}

install "torch ($torch)" "$torch"
# Requirements of mmcv's setup.py. mmcv is built without isolation, because an
# isolated build has no torch and would skip the operators.
install "build tools" "$setuptools" wheel ninja psutil numpy
built || build_mmcv
if [ "$stack" = onedl ]; then
    install "onedl-mmdetection" --no-build-isolation "$mmdet"
fi
install "this package with the $stack distribution, the tools of tests and docs" \
    --no-build-isolation -e ".[$stack,dev,docs]"
# opencv-python needs the system's libGL and glib, which many servers do not have;
# the headless package has the same module without them.
if ! "$python" -c 'import cv2' 2>/dev/null; then
    "$python" -m pip uninstall --quiet --yes opencv-python >&2
    install "opencv-python-headless (this system has no libGL)" \
        opencv-python-headless
fi
"$python" -c 'import cv2, mmcv.ops, mmdet, mmseg, fpt_plugin' \
    || fail "the environment does not import" "Remove $venv and try again."
echo "$wanted" >"$stamp"
say "The environment is ready: $venv"
echo "$PWD/$python"
