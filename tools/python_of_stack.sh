# Sourced with a command's arguments: takes --stack out of them, makes that
# environment, and leaves its python in $python and the other arguments in
# $rest. The working folder becomes the checkout.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stack=stock
rest=()
while [ $# -gt 0 ]; do
    case $1 in
        --stack) stack=${2:-}; shift; [ $# -eq 0 ] || shift ;;
        *) rest+=("$1"); shift ;;
    esac
done
python=$(bash tools/environment.sh --stack "$stack")
