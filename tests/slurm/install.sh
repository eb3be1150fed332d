#!/usr/bin/env bash
# Installs SLURM and munge from Debian's or Ubuntu's packages, if they are missing and it may; starts nothing.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
if command -v munged slurmctld slurmd sbatch >/dev/null; then exit 0; fi
if ! command -v apt-get >/dev/null; then
  echo "SLURM and munge are missing, and there is no apt-get to install them; the tests will be skipped" >&2
elif [[ $(id -u) == 0 ]]; then
  apt-get update -q && apt-get install -q -y --no-install-recommends slurm-wlm munge
elif sudo -n true 2>/dev/null; then
  sudo apt-get update -q && sudo apt-get install -q -y --no-install-recommends slurm-wlm munge
else
  echo "SLURM and munge are missing; as root type: apt-get install slurm-wlm munge. The tests will be skipped" >&2
fi
