#!/usr/bin/env bash
# Several nodes: the ranks are dealt out in equal shares, the feedback is on the last node. From the repository root:
#
#   sbatch --partition=PARTITION --account=ACCOUNT launch/slurm_nodes.sh --config configs/cifar10_resnet50.yaml
#   sbatch --nodes=4 --gpus-per-node=4 launch/slurm_nodes.sh --set model.name=resnet152 --set blocks=16
#   sbatch --nodes=2 --gpus-per-node=4 launch/slurm_nodes.sh --set replicas=2   # two GPUs a block
#
# Otherwise as launch/slurm_one_node.sh; see docs/slurm.md.
#SBATCH --job-name=bllpipe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=10
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=bllpipe-%j.out
source bllpipe/slurm/job.sh || exit
run_bllpipe "$@"
