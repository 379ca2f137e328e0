# Sourced by dist_train.sh and dist_test.sh.
set -euo pipefail

# run_distributed SCRIPT COUNT USAGE ARGUMENTS...: run a script of this folder in
# several processes. Argument number COUNT is their number on this machine, all
# others are the script's.
run_distributed() {
    local script=$1 count=$2 usage=$3
    shift 3
    local processes=${*:$count:1}
    if [ $# -lt "$count" ] || ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
        echo "usage: bash ${0##*/} $usage [arguments]; PROCESSES must be a" \
            "positive whole number, got '$*'" >&2
        exit 2
    fi
    exec "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" \
        --master_addr "${MASTER_ADDR:-127.0.0.1}" \
        --master_port "${PORT:-29500}" --nproc_per_node "$processes" \
        "$(dirname "${BASH_SOURCE[0]}")/$script" \
        "${@:1:count-1}" --launcher pytorch "${@:count+1}"
}
