#!/usr/bin/env bash
# One node with four GPUs, as on JUWELS Booster: four blocks on them, and the feedback on the CPU. From the repository root:
#
#   sbatch --partition=PARTITION --account=ACCOUNT launch/slurm_four_gpus.sh --config configs/cifar10_resnet50.yaml
#
# Otherwise as launch/slurm_one_node.sh; see docs/slurm.md.
#SBATCH --job-name=bllpipe
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=10
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=bllpipe-%j.out
source bllpipe/slurm/job.sh || exit
run_bllpipe --set feedback.device=cpu "$@"
