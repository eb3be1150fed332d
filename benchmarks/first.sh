#!/usr/bin/env bash
# The first five minutes on a GPU, without a network: versions, whether it works, tests/gpu, rates of BP and BLL.
#
#   benchmarks/first.sh OUT [options]                  OUT gets first.json, gpu.json, gpu-tests.log and first.log
#   benchmarks/first.sh OUT --device cpu --quick       a rehearsal on a machine without one; its figures mean nothing
cd "$(dirname "$0")/.." || exit
. benchmarks/gpu_python.sh
out=${1:?"where the results go, such as runs/gpu"}
shift
mkdir -p "$out"
timeout --kill-after=5 "${LIMIT:-295}" "$PYTHON" -u -m benchmarks.gpu_first "$out" "$@" 2>&1 | tee "$out/first.log"
exit "${PIPESTATUS[0]}"
