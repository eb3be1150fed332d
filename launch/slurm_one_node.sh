#!/usr/bin/env bash
# One node with a GPU for every block and one for the feedback: five for four blocks. From the repository root:
#
#   sbatch --partition=PARTITION --account=ACCOUNT launch/slurm_one_node.sh --config configs/cifar10_resnet50.yaml
#   sbatch --gpus-per-node=8 --time=12:00:00 launch/slurm_one_node.sh --set blocks=7
#
# Options before the script are SLURM's and go before the lines below; those behind it are bllpipe's. The run is
# runs/slurm-JOB unless --run-dir says otherwise. The job requeues itself at its time limit; see docs/slurm.md.
#SBATCH --job-name=bllpipe
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=5
#SBATCH --cpus-per-task=10
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=bllpipe-%j.out
source bllpipe/slurm/job.sh || exit
run_bllpipe "$@"
