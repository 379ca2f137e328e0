# Sourced by slurm_train.sh and slurm_test.sh.
set -euo pipefail

# run_on_slurm SCRIPT COUNT USAGE ARGUMENTS...: run a script of this folder with
# srun. The first two arguments are the partition and the job's name, the others
# are the script's. At least COUNT arguments are required.
run_on_slurm() {
    local script=$1 count=$2 usage=$3
    shift 3
    if [ $# -lt "$count" ]; then
        echo "usage: bash ${0##*/} $usage [arguments], got '$*'" >&2
        exit 2
    fi
    local gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
    [ "$gpus" -ge "$per_node" ] || per_node=$gpus
    # SRUN_ARGS is split into words on purpose.
    # shellcheck disable=SC2086
    exec srun -p "$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="$gpus" \
        --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        "${PYTHON:-python}" -u "$(dirname "${BASH_SOURCE[0]}")/$script" \
        "${@:3}" --launcher slurm
}
