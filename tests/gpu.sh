#!/usr/bin/env bash
# The tests that need a GPU, and its kernels under compute-sanitizer:
#
#   tests/gpu.sh [all|first|second] [python]
#
# all: everything, without time limits. first, second: what counts most, within 480 s and 240 s, for
# a machine that is had for minutes. It needs torch, numpy, pytest, and the extension built for this
# GPU; no network, no video library. What is not installed is left out, and said. A step that fails
# does not stop the next; the last line names those that did.
set -uo pipefail
cd "$(dirname "$0")/.."
part=all
case ${1:-} in all | first | second) part=$1 && shift ;; esac
python=${1:-python3}
failed=()

has() { "$python" -c "import $1" 2> /dev/null; }

# step SECONDS NAME COMMAND...: 0 seconds are no limit.
step() {
  local limit=$1 name=$2 start=$SECONDS
  shift 2
  echo "== $name"
  timeout "$limit" "$@" || failed+=("$name")
  echo "== $name: $((SECONDS - start)) s"
}

"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || {
  echo "tests/gpu.sh: needs a GPU that torch sees, and $python sees none" >&2
  exit 1
}

# Other versions of the plugins warn of other things. Files that import av are only for machines
# that have it: pytest imports whatever it is given.
folders=(tests/ops)
has av && folders=(tests)
mapfile -t files < <(grep -rlE 'mark\.gpu' "${folders[@]}" --include='test_*.py')
run=("$python" -m pytest -m gpu -q -o filterwarnings=default -p no:cacheprovider)

# workers N: as many test processes, where pytest-xdist is installed.
workers() { has xdist && echo "-n $1"; }

# sanitize SECONDS: the three checks at once, on the smoke test.
sanitize() {
  command -v compute-sanitizer > /dev/null || {
    echo "== compute-sanitizer is not on PATH (it comes with the CUDA toolkit): left out"
    return
  }
  local tool number tools=(memcheck racecheck synccheck) logs=() jobs=()
  logs=$(mktemp -d)
  for tool in "${tools[@]}"; do
    # torch's cache of device memory would hide what lies past the end of a tensor.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "$1" compute-sanitizer --tool "$tool" \
      --kernel-regex kns=stmeta --error-exitcode 1 --print-limit 5 \
      "$python" tests/gpu_smoke.py --backend cuda > "$logs/$tool" 2>&1 &
    jobs+=($!)
  done
  for number in "${!tools[@]}"; do
    wait "${jobs[number]}" || failed+=("compute-sanitizer ${tools[number]}")
    echo "== compute-sanitizer ${tools[number]}"
    tail -n 25 "$logs/${tools[number]}"
  done
  rm -r "$logs"
}

profile() {
  command -v ncu > /dev/null || {
    echo "== ncu is not on PATH (it comes with the CUDA toolkit): left out"
    return
  }
  step "$1" ncu ncu --section SpeedOfLight --section Occupancy --kernel-name-base demangled \
    --kernel-name regex:stmeta "$python" tests/gpu_smoke.py --backend cuda
}

explain=("$python" -c "from stmeta.ops import explain; print(explain())")
# shellcheck disable=SC2046  # no word or two
case $part in
  first)
    step 30 "what auto takes" "${explain[@]}"
    step 200 "tests of CUDA C++" "${run[@]}" $(workers 8) --maxfail 60 \
      -k "not triton and not 2_31" "${files[@]}"
    sanitize 110
    step 120 "eager and fused as CUDA graphs" "$python" benchmarks/gpu_quick.py --seconds 90
    ;;
  second)
    step 150 "tests of Triton" "${run[@]}" $(workers 14) --maxfail 60 \
      -k "triton and not 2_31" "${files[@]}"
    profile 80
    ;;
  all)
    step 0 "what auto takes" "${explain[@]}"
    step 0 "tests" "${run[@]}" "${files[@]}"
    sanitize 0
    ;;
esac

if ((${#failed[@]})); then
  printf -v names '%s; ' "${failed[@]}"
  echo "tests/gpu.sh: failed: ${names%; }" >&2
  exit 1
fi
echo "tests/gpu.sh: all passed"
