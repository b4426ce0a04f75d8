// Between torch's tensors and the CUDA memory ops.
#pragma once

#include <array>

#include "common/cuda_torch.cuh"
#include "cuda/memory/memory_launch.cuh"

namespace stmeta::memory {

// B, N, M and the number of heads.
inline std::array<int64_t, 4> sizes_of(const Tensor& memory, int64_t heads) {
  return {memory.size(0), memory.size(1), memory.size(2), heads};
}

// Contiguous, of the same shape and dtype.
inline Tensor new_like(const Tensor& x) {
  const auto sizes = x.sizes();
  return empty(x, std::vector<int64_t>(sizes.begin(), sizes.end()), x.scalar_type());
}

// [B, heads, M]
inline Tensor vectors_like(const Tensor& memory, int64_t heads) {
  return empty(memory, {memory.size(0), heads, memory.size(2)}, memory.scalar_type());
}

// [B, heads, N]
inline Tensor weights_like(const Tensor& memory, int64_t heads) {
  return empty(memory, {memory.size(0), heads, memory.size(1)}, memory.scalar_type());
}

inline Tensor scratch_like(const Tensor& memory, int64_t size) {
  return empty(memory, {size}, ScalarType::Float);
}

template <typename T>
Strided<T> strided(const Shape& s, const Tensor& x) {
  return make_strided(s, data<const T>(x), x.strides().data());
}

}  // namespace stmeta::memory
