#!/usr/bin/env bash
# A long run in short jobs: the elements of an array, one at a time, each of which goes on where the one before it
# stopped. The first that completes the run cancels the rest. From the repository root:
#
#   sbatch --partition=PARTITION --account=ACCOUNT launch/slurm_array.sh --config configs/cifar10_resnet50.yaml
#   sbatch --array=1-30%1 --time=01:00:00 launch/slurm_array.sh --config configs/cifar10_resnet50.yaml
#
# Keep the %1: two elements must never run at once. Otherwise as launch/slurm_four_gpus.sh; see docs/slurm.md.
#SBATCH --job-name=bllpipe
#SBATCH --array=1-10%1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=10
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=bllpipe-%A-%a.out
source bllpipe/slurm/job.sh || exit
run_bllpipe "$@"
