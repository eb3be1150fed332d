#!/usr/bin/env bash
# The second five minutes on a GPU, without a network: accuracy of BP and BLL after the same number of epochs.
#
#   benchmarks/second.sh OUT SET [--data FOLDER ...]                SET: fashion_mnist or cifar10; OUT gets second.json
#   benchmarks/second.sh OUT SET --data F --device cpu --quick      a rehearsal without a GPU; its figures mean nothing
cd "$(dirname "$0")/.." || exit
. benchmarks/gpu_python.sh
out=${1:?"where the results go, such as runs/gpu"}
shift
mkdir -p "$out"
timeout --kill-after=5 "${LIMIT:-295}" "$PYTHON" -u -m benchmarks.gpu_second "$out" "$@" 2>&1 | tee "$out/second.log"
exit "${PIPESTATUS[0]}"
