#!/bin/sh
# Use at most ten minutes of one GPU: images/s in training, and the longest schedules that fit.
#
#     sh benchmarks/gpu_run.sh cifar10-jpeg runs/gpu              # one GPU, torch >= 2.6
#     sh benchmarks/gpu_run.sh small runs/gpu --device cpu --compile --seconds 6 --batch-size 32    # a rehearsal
#
# cifar10-jpeg holds train/<class>/*.jpg and test/<class>/*.jpg. Further arguments go to gpu_run.py. Everything is
# written to the second folder: log.txt, throughput.json, result.json and a run folder for each training. Status 124 if
# the time ran out in what is measured at the end; the trainings are whole then.
set -eu
[ $# -ge 2 ] || { echo "usage: sh benchmarks/gpu_run.sh DATA_ROOT OUT [arguments of gpu_run.py]" >&2; exit 2; }
data=$1 out=$2
shift 2
[ -d "$data/train" ] || { echo "error: $data has no train folder: name the folder of the JPEG set" >&2; exit 2; }
[ ! -e "$out/log.txt" ] || { echo "error: $out holds a run already: name another folder" >&2; exit 2; }
mkdir -p "$out"
cache=$(mktemp -d)  # of decoded images
child=
# Whoever stops this script stops the run with it; a shell that waits for a program in front would not hear of it.
trap '[ -z "$child" ] || { kill "$child" 2>/dev/null && wait "$child"; } || :; rm -rf "$cache"' EXIT
trap 'exit 143' HUP INT TERM
export MINIVIT_CACHE="${MINIVIT_CACHE:-$cache}"
python=${PYTHON:-python3}
status=0
timeout -k 5 585 "$python" "$(dirname "$0")/gpu_run.py" --data-root "$data" --out "$out" "$@" > "$out/log.txt" 2>&1 &
child=$!
wait "$child" || status=$?
child=
tail -n 20 "$out/log.txt"
exit $status
