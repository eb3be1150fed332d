#!/usr/bin/env bash
# A run on this machine under torchrun: one rank for each replica of a block, and one for the feedback.
#
#   launch/local.sh --config configs/cifar10_small.yaml --set data.path=cifar10.npz
#   RANKS=3 launch/local.sh --set blocks=2
#   RANKS=4 launch/local.sh --set blocks=2 --set 'replicas=[2, 1]'
#
# The same as `python -m bllpipe.launch`, which counts the ranks by itself, but with torchrun's own options to change.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # as many as cpu_threads says; more only fight over the cores
exec torchrun --standalone --nproc_per_node="${RANKS:-5}" -m bllpipe.launch "$@"
