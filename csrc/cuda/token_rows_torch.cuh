// Between torch's tensors and the rows of token_rows.cuh.
#pragma once

#include <type_traits>

#include "../common/cuda_torch.cuh"
#include "token_rows.cuh"

namespace stmeta::token_rows {

// x: [B, N, D], any strides.
template <typename T>
Rows<const T> rows_of(const Tensor& x) {
  return make_rows(data<const T>(x), x.strides().data(), x.size(2));
}

// Calls f with the rows of a positional embedding [N, D], which is fp32 or T; null rows if none.
template <typename T, typename F>
void with_position(const std::optional<Tensor>& pos, int64_t width, const F& f) {
  if (!pos) return f(dense_rows(static_cast<const float*>(nullptr), 0, width));
  const int64_t strides[] = {0, pos->stride(0), pos->stride(1)};
  if (!std::is_same_v<T, float> && pos->scalar_type() != ScalarType::Float) {
    return f(make_rows(data<const T>(*pos), strides, width));
  }
  f(make_rows(data<const float>(*pos), strides, width));
}

}  // namespace stmeta::token_rows
