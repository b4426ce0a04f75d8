// A block reverses an array through shared memory. The first argument says with which barrier: 0
// none, 1 the one that this needs, 2 one that half of the threads miss, as they wait for the
// others. Driven by tests/ops/rules/test_cuda_host.py.
#include "case_io.h"
#include "common/cuda_base.cuh"

__global__ void reverse_kernel(const int64_t* in, int64_t* out, int64_t barrier) {
  __shared__ int64_t values[64];
  values[threadIdx.x] = in[threadIdx.x];
  if (barrier == 2 && threadIdx.x % 2 == 0) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, values[threadIdx.x], 1);
  } else if (barrier > 0) {
    __syncthreads();
  }
  out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

int main(int argc, char** argv) {
  Case io(argc, argv);
  const int64_t barrier = io.integer();
  const auto in = io.array<int64_t>();
  std::vector<int64_t> out(in.size());
  stmeta::launch(reverse_kernel, dim3(1), static_cast<int>(in.size()), 0, nullptr, in.data(),
                 out.data(), barrier);
  io.result(out);
}
