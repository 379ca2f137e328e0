# Source this with a command's arguments. It removes --stack from them, makes that
# environment, and sets $python to its python and $rest to the other arguments. It
# changes the working folder to the checkout.
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
