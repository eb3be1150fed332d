# shellcheck shell=bash
# The part that all SLURM jobs of bllpipe share. The scripts in launch/ source this file; `bllpipe slurm` copies it.
#
# For your site: set these in the shell that submits the job (SLURM passes its variables on), or uncomment them here.
#
# An environment with bllpipe; not needed if there is a .venv in this directory, which is activated by default:
#   module load Python CUDA && source /path/to/venv/bin/activate
# InfiniBand: the interface for TCP (see `ip -brief address` on a node), and the adapters for RDMA:
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5
# JUWELS Booster (4 GPUs a node, no network outside: fetch data on a login node; node0001i is node0001 on InfiniBand):
#   sbatch --account=PROJECT --partition=booster launch/slurm_four_gpus.sh ...
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 NCCL_IB_TIMEOUT=50 ADDRESS_SUFFIX=i CUDA_VISIBLE_DEVICES=0,1,2,3

set -euo pipefail
# shellcheck source=/dev/null
if [[ -z ${VIRTUAL_ENV:-} && -f .venv/bin/activate ]]; then source .venv/bin/activate; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}               # the same as cpu_threads
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}        # srun does not inherit it from sbatch
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240} # seconds torchrun waits for a checkpoint
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1                # or a torchrun that comes back waits in vain for an address
trap : TERM                                                # outlive the ranks, to report how they ended

run_bllpipe() { # ARGUMENTS of bllpipe.launch: trains, then requeues or ends the job
  set -- --run-dir "runs/slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" --resume auto "$@"
  local plan run_dir before code=0
  plan=$(python3 -m bllpipe.slurm "$SLURM_JOB_NUM_NODES" "${SLURM_GPUS_ON_NODE:-0}" "$@") || refuse $?
  read -r ranks run_dir <<<"$plan"
  before=$(cat "$run_dir/status.json" 2>/dev/null) || true
  wait_for_previous_element
  place_ranks
  srun --export=ALL --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 \
    bash -c 'start_ranks "$@"' start_ranks "$@" || code=$?
  finish "$run_dir" "$before" "$code"
}

place_ranks() { # lists the nodes with their addresses, sorted by address, which is how torchrun numbers them
  local about='s/^NodeName=([^ ]+) .* NodeAddr=([^ ]+) .*/\2'${ADDRESS_SUFFIX:-}' \1/p'
  nodes=$(scontrol show node "$SLURM_JOB_NODELIST" --oneliner | sed -nE "$about" | LC_ALL=C sort)
  endpoint=${nodes%% *}:$((10000 + SLURM_JOB_ID % 20000))
  export nodes endpoint ranks
  export -f start_ranks
}

start_ranks() { # on every node: one torchrun with an equal number of ranks, plus one on the last nodes
  local number address name share
  while read -r number address name; do
    if [[ $name == "$SLURMD_NODENAME" ]]; then break; fi
  done < <(cat -n <<<"$nodes")
  share=$((ranks / SLURM_JOB_NUM_NODES + (number > SLURM_JOB_NUM_NODES - ranks % SLURM_JOB_NUM_NODES)))
  exec python3 -m bllpipe.slurm.torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="$share" \
    --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$endpoint" --rdzv_conf="is_host=$((number == 1))" \
    --local_addr="$address" -m bllpipe.launch "$@"
}

finish() { # RUN_DIRECTORY STATUS_BEFORE EXIT_CODE: ends or requeues the job, by the status in status.json
  local after
  after=$(cat "$1/status.json" 2>/dev/null) || true
  if [[ $after == "$2" && $3 != 0 ]]; then
    log "the run ended before it began, with exit code $3"
    exit "$3"
  fi
  case $(field status "$after") in
    completed) cancel_pending_elements ;;
    preempted) stopped "$1" "$(field step "$2")" "$(field step "$after")" "$(field reason "$after")" ;;
    *) exit $(($3 ? $3 : 1)) ;; # the next element of an array tries again
  esac
}

stopped() { # RUN_DIRECTORY STEP_BEFORE STEP REASON: requeues the job if a signal stopped it and it made progress
  log "stopped at step $3 of $1 ($4)"
  if [[ $4 != SIG* ]]; then return; fi
  if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) != RUNNING ]]; then return; fi # requeued or cancelled
  if ((${2:-0} == $3)); then
    log "no step was done since then; give the job more --time"
    exit 1
  elif [[ -z ${SLURM_ARRAY_JOB_ID:-} ]]; then
    log "the job is requeued, and will go on"
    scontrol requeue "$SLURM_JOB_ID"
  elif ((SLURM_ARRAY_TASK_ID == SLURM_ARRAY_TASK_MAX)); then
    log "this was the last element; submit it again with --run-dir $1 to go on"
    exit 1
  else
    log "the next element goes on"
  fi
}

field() { # KEY STATUS: the value of a key of status.json
  sed -nE "s/^ \"$1\": \"?([^\",]*).*/\1/p" <<<"$2"
}

wait_for_previous_element() { # %1 starts this element while the previous one still writes its last checkpoint
  [[ -n ${SLURM_ARRAY_JOB_ID:-} ]] || return 0
  for _ in {1..60}; do
    [[ -n $(squeue --noheader --jobs="$SLURM_ARRAY_JOB_ID" --states=COMPLETING --format=%A) ]] || return 0
    sleep 1
  done
}

cancel_pending_elements() { # of an array, which have nothing to do
  [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || scancel --quiet --state=PENDING "$SLURM_ARRAY_JOB_ID" || true
}

refuse() { # EXIT_CODE: after a wrong config the next elements would fail too
  if [[ $1 == 2 ]]; then cancel_pending_elements; fi
  exit "$1"
}

log() { echo "bllpipe: $*" >&2; }
