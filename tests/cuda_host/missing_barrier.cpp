// A block reverses an array through shared memory; the argument says whether with the barrier that
// this needs. Proves that ThreadSanitizer sees a missing one.
#include "../../csrc/common/cuda_base.cuh"
#include "case_io.h"

__global__ void reverse_kernel(const int64_t* in, int64_t* out, bool barrier) {
  __shared__ int64_t values[64];
  values[threadIdx.x] = in[threadIdx.x];
  if (barrier) __syncthreads();
  out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

int main(int argc, char** argv) {
  Case io(argc, argv);
  const bool barrier = io.integer() != 0;
  const auto in = io.array<int64_t>();
  std::vector<int64_t> out(in.size());
  stmeta::launch(reverse_kernel, dim3(1), static_cast<int>(in.size()), 0, nullptr, in.data(),
                 out.data(), barrier);
  io.result(out);
}
