#!/usr/bin/env bash
# Everything there is to know about one GPU, in less than nine minutes and without a network.
#
#   benchmarks/gpu.sh OUT [data/cifar10.npz]           tests, rates of BP and BLL, a short run on CIFAR-10 if it is there
#   benchmarks/gpu.sh OUT --device cpu --quick         a rehearsal on a machine without one; its figures mean nothing
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?"where the results go, such as benchmarks/results"}
shift
data=
if [ $# -gt 0 ] && [ -f "$1" ]; then
    data=$1
    shift
fi
mkdir -p "$out"
export CUBLAS_WORKSPACE_CONFIG=:4096:8 OMP_NUM_THREADS=1

echo "== $(date +%T) tests"
tests=passed
timeout 180 python -m pytest -q tests/gpu || tests="FAILED or cut short"

echo "== $(date +%T) rates"
timeout 250 python -m benchmarks.gpu --budget 170 --gaps --json "$out/gpu.json" "$@"

if [ -n "$data" ]; then
    echo "== $(date +%T) CIFAR-10, a few epochs"
    timeout 80 python -m bllpipe.launch --config configs/cifar10_resnet50.yaml --run-dir "$out/cifar10-gpu" \
        --set model.name=resnet18 --set data.name=npz --set data.path="$data" --set engine=streams --set epochs=3 \
        --set data.batch_size=512 --set precision.compute=bf16 --set gpu.capture=true \
        --set device=cuda || echo "the run on CIFAR-10 failed or was cut short"
fi
echo "== $(date +%T) done; tests $tests"
[ "$tests" = passed ]
