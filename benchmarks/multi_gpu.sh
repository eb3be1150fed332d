#!/usr/bin/env bash
# Four or more GPUs of one machine: BLL's ranks beside 1F1B, a zero-bubble schedule, DeepSpeed and data parallelism.
#
#   benchmarks/multi_gpu.sh OUT [BLOCKS]               BLOCKS is 4 unless it is given
#   benchmarks/multi_gpu.sh OUT 2 --device cpu --quick a rehearsal on a machine without GPUs; its figures mean nothing
set -uo pipefail # no -e: what fails is told, and the rest goes on
cd "$(dirname "$0")/.." || exit
. benchmarks/gpu_python.sh
out=${1:?"where the results go, such as benchmarks/results"}
blocks=${2:-4}
shift $(($# > 1 ? 2 : 1))
failed=0
mkdir -p "$out"

if [ "$*" = "--device cpu --quick" ]; then
    "$PYTHON" -m benchmarks.throughput --work cpu --blocks "$blocks" --microbatches "$blocks" --engines bll ddp \
        --steps 4 --repeats 1 --set model.name=resnet18 --set model.width=2 --set data.image_size=8 \
        --set data.batch_size=8 --set data.synthetic_images=64 --json "$out/multi-gpu.json" || exit
    echo "a rehearsal on a CPU: these figures say nothing of GPUs"
    exit
fi
"$PYTHON" - "$blocks" <<'PYTHON' || exit
import sys

import torch

needed, found = int(sys.argv[1]), torch.cuda.device_count()
if found < needed:
    sys.exit(f"{needed} blocks need {needed} GPUs, found {found}; rehearse with: benchmarks/multi_gpu.sh OUT 2 --device cpu --quick")
PYTHON
echo "== $(date +%T) tests"
timeout 300 "$PYTHON" -m pytest -v --tb=short tests/gpu/test_ranks.py 2>&1 | tee "$out/multi-gpu-tests.log" || failed=1
for batch in 128 512; do
    echo "== $(date +%T) B=$batch"
    "$PYTHON" -m benchmarks.throughput --work gpu --blocks "$blocks" --microbatches "$blocks" $((2 * blocks)) \
        --engines bll 1f1b zbv deepspeed ddp --steps 100 --repeats 3 \
        --set model.name=resnet50 --set model.width=64 --set data.batch_size=$batch --set data.synthetic_images=8192 \
        --set precision.compute=bf16 --set precision.wire=bf16 --json "$out/multi-gpu-$batch.json" || failed=1
done
exit "$failed"
