#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer beside the usual one, and
# runs the tests of the CPU kernels on it: tests/sanitize.sh [python]. Needs GCC.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

STMETA_SANITIZE=1 "$python" setup.py --quiet build_ext \
  --build-lib build/sanitize --build-temp build/sanitize-objects

libraries=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)
# Python never frees everything, so leaks are not looked for. --capture=sys lets reports through.
export STMETA_EXTENSION ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
STMETA_EXTENSION=$(ls build/sanitize/stmeta/_C*.so)
LD_PRELOAD=$libraries "$python" -m pytest tests/ops tests/data/decode/test_yuv.py --capture=sys -m "not slow and not gpu" \
  --ignore-glob='*_cuda.py' --ignore-glob='*_triton.py' --ignore-glob='*_gpu.py' \
  --ignore=tests/ops/rules/test_dispatch.py
