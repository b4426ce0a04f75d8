// The host side of the memory ops: shapes, sources and outputs.
#pragma once

#include "common/cpu_host.h"
#include "cpu/memory/memory_problem.h"

namespace stmeta {

using Ints = std::vector<int64_t>;

// Raises unless a tensor has this shape, and the dtype of the memory, on the CPU.
inline void check_memory(const Tensor& tensor, const Ints& size, ScalarType dtype,
                         const char* name) {
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(
      Ints(sizes.begin(), sizes.end()) == size && tensor.scalar_type() == dtype && tensor.is_cpu(),
      name, " has a wrong shape, dtype or device");
}

// The rows [N, M] of each batch element: a copy only where the last axis is not dense.
inline Source rows_of(Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.stride(last) != 1 && tensor.size(last) > 1) {
    tensor = torch::stable::contiguous(tensor);
  }
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(last - 1)};
}

// A small tensor [B, rows, width], or [B, width] as one row.
inline Source small(Tensor& tensor) {
  tensor = torch::stable::contiguous(tensor);
  const int64_t last = tensor.dim() - 1;
  const int64_t width = tensor.size(last);
  return {tensor.const_data_ptr(), last == 1 ? width : tensor.size(1) * width, width};
}

inline MemorySizes memory_sizes(const Tensor& memory, int64_t heads, int64_t reads, int64_t writes,
                                int64_t taps) {
  STD_TORCH_CHECK(memory.dim() == 3, "memory must be [B, N, M]");
  STD_TORCH_CHECK(heads <= kMaxHeads, "the CPU kernel takes at most ", kMaxHeads,
                  " heads; use backend='eager'");
  check_product("memory", {memory.size(1), memory.size(2)});
  MemorySizes s = {
      memory.size(0), memory.size(1), memory.size(2), heads, reads, writes, taps, 0, 0};
  s.padded = round_up(s.rows, 16);
  s.wide = round_up(s.width, 16);
  return s;
}

inline Tensor like(const Tensor& memory, const Ints& size) {
  return new_tensor(memory, size, memory.scalar_type());
}

// f(begin, end, scratch) over batch elements.
template <typename F>
void over_batch(const MemorySizes& s, int64_t scratch_floats, const F& f) {
  parallel_flushing(s.batch, s.rows * s.width * (s.heads + s.reads + s.writes), scratch_floats, f);
}

}  // namespace stmeta
