#!/usr/bin/env bash
# For the scripts that measure GPUs: PYTHON is an interpreter that has torch, or nothing goes on.
for PYTHON in "${PYTHON:-python3}" python3 python; do
    "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null && break
    PYTHON=
done
if [ -z "$PYTHON" ]; then
    echo "neither python3 nor python on PATH has torch; name one that has: PYTHON=/path/to/python $0 ..." >&2
    exit 2
fi
export PYTHON OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
export TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-4} # several compile side by side
