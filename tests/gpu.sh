#!/usr/bin/env bash
# The tests that need a GPU, and then the CUDA kernels under compute-sanitizer, on small inputs:
# tests/gpu.sh [python]. The extension must be built for this GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || {
  echo "tests/gpu.sh: needs a GPU that torch sees, and $python sees none" >&2
  exit 1
}
command -v compute-sanitizer > /dev/null || {
  echo "tests/gpu.sh: needs compute-sanitizer on PATH; it comes with the CUDA toolkit" >&2
  exit 1
}

"$python" -m pytest -m gpu

# torch's cache of device memory would hide what lies past the end of a tensor.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in memcheck racecheck synccheck; do
  echo "compute-sanitizer --tool $tool"
  compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 1 --print-limit 5 \
    "$python" -m pytest tests/ops -m gpu -p no:cacheprovider \
    -k "test_sizes_on_a_gpu or test_layouts and cuda and dtype0"
done
