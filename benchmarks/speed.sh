#!/usr/bin/env bash
# All measurements of speed whose results are in benchmarks/results. About an hour on two cores that do nothing else.
#
#   benchmarks/speed.sh OUT [data/cifar10.npz]     (python is the one on PATH; make speed takes that of .venv)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?"where the results go, such as benchmarks/results"}
data=${2:-data/cifar10.npz}

measure() {
    echo "== $(date +%T) $*"
    python -m "$@"
}

throughput() {
    measure benchmarks.throughput "$@"
}

throughput --work emulated --blocks 4 --microbatches 4 8 16 \
    --engines bll gpipe 1f1b deepspeed interleaved zbv dualpipev \
    --milliseconds 240 --steps 16 --repeats 3 --json "$out/throughput-emulated.json"
throughput --work emulated --blocks 4 --slow 1 1.5 --jitter 0 0.2 --rings 1 2 4 --engines bll \
    --milliseconds 120 --steps 40 --repeats 2 --json "$out/throughput-emulated-uneven.json"
throughput --work emulated --blocks 2 8 --microbatches 16 --engines bll 1f1b zbv \
    --milliseconds 240 --steps 16 --repeats 2 --json "$out/throughput-emulated-ranks.json"
throughput --work cpu --blocks 2 --microbatches 2 4 8 --engines bll gpipe 1f1b deepspeed ddp interleaved zbv dualpipev \
    --steps 24 --repeats 3 --json "$out/throughput-cpu.json"
throughput --work emulated --blocks 1 2 4 --engines bll --milliseconds 0 --steps 1000 --repeats 3 \
    --json "$out/overhead-emulated.json"
measure benchmarks.endurance --steps 10000 --json "$out/endurance-emulated.json"
measure benchmarks.spans --json "$out/spans.json"
measure benchmarks.formats --steps 30 --json "$out/formats-cpu.json"
measure bllpipe.cli plan --config configs/cifar10_resnet50.yaml --set device=cpu --set data.batch_size=32 \
    --set cpu_threads=2 --blocks 4 --repetitions 5 --json "$out/plan-resnet50.json"
if [ -f "$data" ]; then
    measure benchmarks.time_to_accuracy --data-path "$data" --accuracy 55 --epochs 2 --seeds 0 1 2 --precision bf16 \
        --blocks '[layer2.1]' --engines bll strided bll-strided 1f1b ddp single \
        --json "$out/time-to-accuracy-cpu.json"
fi
