#!/bin/sh
# Use at most ten minutes of one GPU: images/s in training, then the longest schedules that fit.
#
#     sh benchmarks/gpu_run.sh cifar10-jpeg runs/gpu              # one GPU, torch >= 2.6
#     sh benchmarks/gpu_run.sh small runs/gpu --device cpu --seconds 6 --batch-size 32
#
# cifar10-jpeg holds train/<class>/*.jpg and test/<class>/*.jpg. Further arguments go to gpu_run.py. Everything is
# written to the second folder: log.txt, throughput.json, result.json and a run folder for each training.
set -eu
[ $# -ge 2 ] || { echo "usage: sh benchmarks/gpu_run.sh DATA_ROOT OUT [arguments of gpu_run.py]" >&2; exit 2; }
data=$1 out=$2
shift 2
[ -d "$data/train" ] || { echo "error: $data has no train folder: name the folder of the JPEG set" >&2; exit 2; }
[ ! -e "$out/log.txt" ] || { echo "error: $out holds a run already: name another folder" >&2; exit 2; }
mkdir -p "$out"
cache=$(mktemp -d)  # of decoded images
trap 'rm -rf "$cache"' EXIT
export MINIVIT_CACHE="${MINIVIT_CACHE:-$cache}"
python=${PYTHON:-python3}
status=0
timeout 600 "$python" "$(dirname "$0")/gpu_run.py" --data-root "$data" --out "$out" "$@" > "$out/log.txt" 2>&1 || status=$?
tail -n 20 "$out/log.txt"
exit $status
