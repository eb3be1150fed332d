# shellcheck shell=bash
# What every SLURM job of bllpipe does. The scripts in launch/ source this file, those of `bllpipe slurm` hold a copy.
#
# For your site: type these in the shell from which you submit (SLURM hands its variables on), or uncomment them here.
#
# An environment with bllpipe in it, unless .venv is here, which is taken by itself:
#   module load Python CUDA && source /path/to/venv/bin/activate
# InfiniBand: the interface for what is not RDMA (see `ip -brief address` on a node), and the adapters for what is:
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5
# JUWELS Booster (4 GPUs a node, no network outside: fetch data on a login node; node0001i is node0001 on InfiniBand):
#   sbatch --account=PROJECT --partition=booster launch/slurm_four_gpus.sh ...
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 NCCL_IB_TIMEOUT=50 ADDRESS_SUFFIX=i CUDA_VISIBLE_DEVICES=0,1,2,3

set -euo pipefail
# shellcheck source=/dev/null
if [[ -z ${VIRTUAL_ENV:-} && -f .venv/bin/activate ]]; then source .venv/bin/activate; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}               # as many as cpu_threads says
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}        # which srun does not ask sbatch for
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240} # seconds torchrun waits for a checkpoint
trap : TERM                                                # outlive the ranks, to say how they ended

run_bllpipe() { # ARGUMENTS of bllpipe.launch: trains, and decides what comes next; ends the job
  set -- --run-dir "runs/slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" --resume auto "$@"
  local plan run_dir before code=0
  plan=$(python3 -m bllpipe.slurm "$SLURM_JOB_NUM_NODES" "${SLURM_GPUS_ON_NODE:-0}" "$@") || refuse $?
  read -r ranks run_dir <<<"$plan"
  before=$(cat "$run_dir/status.json" 2>/dev/null) || true
  wait_for_the_element_before
  place_ranks
  srun --export=ALL --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 \
    bash -c 'start_ranks "$@"' start_ranks "$@" || code=$?
  conclude "$run_dir" "$before" "$code"
}

place_ranks() { # the nodes, each with its address, in the order of these, in which torchrun numbers them
  local about='s/^NodeName=([^ ]+) .* NodeAddr=([^ ]+) .*/\2'${ADDRESS_SUFFIX:-}' \1/p'
  nodes=$(scontrol show node "$SLURM_JOB_NODELIST" --oneliner | sed -nE "$about" | LC_ALL=C sort)
  endpoint=${nodes%% *}:$((10000 + SLURM_JOB_ID % 20000))
  export nodes endpoint ranks
  export -f start_ranks
}

start_ranks() { # on every node: one torchrun with its share of the ranks; what is left over goes to the last nodes
  local number address name share
  while read -r number address name; do
    if [[ $name == "$SLURMD_NODENAME" ]]; then break; fi
  done < <(cat -n <<<"$nodes")
  share=$((ranks / SLURM_JOB_NUM_NODES + (number > SLURM_JOB_NUM_NODES - ranks % SLURM_JOB_NUM_NODES)))
  exec python3 -m bllpipe.slurm.torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="$share" \
    --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$endpoint" --rdzv_conf="is_host=$((number == 1))" \
    --local_addr="$address" -m bllpipe.launch "$@"
}

conclude() { # RUN_DIRECTORY STATUS_BEFORE EXIT_CODE: what status.json says, and what follows from it
  local after
  after=$(cat "$1/status.json" 2>/dev/null) || true
  if [[ $after == "$2" && $3 != 0 ]]; then
    say "the run ended before it began, with exit code $3"
    exit "$3"
  fi
  case $(fact status "$after") in
    completed) cancel_the_rest ;;
    preempted) stopped "$1" "$(fact step "$2")" "$(fact step "$after")" "$(fact reason "$after")" ;;
    *) exit $(($3 ? $3 : 1)) ;; # the next element of an array tries again
  esac
}

stopped() { # RUN_DIRECTORY STEP_BEFORE STEP REASON: goes on if it was a signal, and if anything was done
  say "stopped at step $3 of $1 ($4)"
  if [[ $4 != SIG* ]]; then return; fi
  if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) != RUNNING ]]; then return; fi # requeued or cancelled
  if ((${2:-0} == $3)); then
    say "no step was done since then; give the job more --time"
    exit 1
  elif [[ -z ${SLURM_ARRAY_JOB_ID:-} ]]; then
    say "the job is requeued, and will go on"
    scontrol requeue "$SLURM_JOB_ID"
  elif ((SLURM_ARRAY_TASK_ID == SLURM_ARRAY_TASK_MAX)); then
    say "this was the last element; submit it again with --run-dir $1 to go on"
    exit 1
  else
    say "the next element goes on"
  fi
}

fact() { # KEY TEXT_OF_STATUS
  sed -nE "s/^ \"$1\": \"?([^\",]*).*/\1/p" <<<"$2"
}

wait_for_the_element_before() { # which %1 keeps from running, but not from writing its last checkpoint
  [[ -n ${SLURM_ARRAY_JOB_ID:-} ]] || return 0
  for _ in {1..60}; do
    [[ -n $(squeue --noheader --jobs="$SLURM_ARRAY_JOB_ID" --states=COMPLETING --format=%A) ]] || return 0
    sleep 1
  done
}

cancel_the_rest() { # of an array, for which nothing is left to do
  [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || scancel --quiet --state=PENDING "$SLURM_ARRAY_JOB_ID" || true
}

refuse() { # EXIT_CODE: what is wrong with the config today is wrong tomorrow
  if [[ $1 == 2 ]]; then cancel_the_rest; fi
  exit "$1"
}

say() { echo "bllpipe: $*" >&2; }
