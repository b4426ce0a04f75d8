// CUDA kernels of stmeta::gather_tokens and their launches. Reference: stmeta/ops/gather_tokens.py.
#pragma once

#include <cmath>

#include "token_rows.cuh"

namespace stmeta::gather_tokens {

using namespace token_rows;

// Reads the kept rows of x and pos, writes B * K rows.
template <typename T, typename P>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Layout layout, Rows<const T> x, Rows<const P> pos,  // pos.data null: none
                   const int64_t* __restrict__ ids,                    // [B, K]
                   Divider by_kept, int64_t count, int64_t tokens, Rows<T> out) {
  const int64_t index = int64_t{blockIdx.x} * layout.rows() + layout.own_row();
  if (index >= count) return;
  uint32_t k = static_cast<uint32_t>(index);
  const uint32_t b = by_kept.split(k);
  const int64_t n = ids[index];
  const bool inside = n >= 0 && n < tokens;  // nobody has checked them on a GPU
  for (int f = layout.first(); f < layout.width; f += layout.step()) {
    float value[kGroup], shift[kGroup] = {};
    if (inside) {
      load_row(x.row(b, n), f, layout.width, x.stride_d, x.wide, value);
      if (pos.data) load_row(pos.row(0, n), f, layout.width, pos.stride_d, pos.wide, shift);
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) value[i] = inside ? value[i] + shift[i] : NAN;
    store_row(out.row(b, k), f, layout.width, out.wide, value);
  }
}

// A block takes the same tokens of the samples blockIdx.y, blockIdx.y + gridDim.y, ...; where
// grad_pos is wanted, gridDim.y is 1 and the samples are summed in order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Layout layout, Rows<const T> grad,    // [B, K, D]
                    const int64_t* __restrict__ restore,  // [B, N]
                    int64_t batch, int64_t tokens, int64_t kept,
                    Rows<T> grad_x,          // [B, N, D]; data null: none
                    Rows<float> grad_pos) {  // [N, D]; data null: none
  const int64_t n = int64_t{blockIdx.x} * layout.rows() + layout.own_row();
  if (n >= tokens) return;
  for (int f = layout.first(); f < layout.width; f += layout.step()) {
    float sum[kGroup] = {};
#pragma unroll 4
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
      const int64_t k = restore[b * tokens + n];
      float g[kGroup] = {};
      if (k >= 0 && k < kept) {
        load_row(grad.row(b, k), f, layout.width, grad.stride_d, grad.wide, g);
      }
      if (grad_x.data) store_row(grad_x.row(b, n), f, layout.width, grad_x.wide, g);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) sum[i] += g[i];
    }
    if (grad_pos.data) store_row(grad_pos.row(0, n), f, layout.width, grad_pos.wide, sum);
  }
}

// ---- host ----

template <typename T, typename P>
void forward(const Rows<const T>& x, const Rows<const P>& pos, const int64_t* ids, int64_t batch,
             int64_t tokens, int64_t kept, int64_t width, T* out, Stream stream) {
  check_sizes(batch, std::max(tokens, kept), width);
  if (batch * kept * width == 0) return;
  const Layout layout(width);
  const dim3 grid(static_cast<unsigned>(ceil_divide(batch * kept, layout.rows())));
  launch(forward_kernel<T, P>, grid, kThreads, 0, stream, layout, x, pos, ids, Divider(kept),
         batch * kept, tokens, dense_rows(out, kept, width));
}

// grad_x, grad_pos: null where not wanted.
template <typename T>
void backward(const Rows<const T>& grad, const int64_t* restore, int64_t batch, int64_t tokens,
              int64_t kept, int64_t width, T* grad_x, float* grad_pos, Stream stream) {
  check_sizes(batch, std::max(tokens, kept), width);
  if (tokens * width == 0 || !(grad_x || grad_pos)) return;
  const Layout layout(width);
  const int64_t blocks = ceil_divide(tokens, layout.rows());
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>(grad_pos ? 1 : batch_blocks(batch, blocks)));
  launch(backward_kernel<T>, grid, kThreads, 0, stream, layout, grad, restore, batch, tokens, kept,
         dense_rows(grad_x, tokens, width), dense_rows(grad_pos, tokens, width));
}

}  // namespace stmeta::gather_tokens
