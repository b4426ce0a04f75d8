// CUDA kernels of stmeta::restore_tokens and their launches. Reference:
// stmeta/ops/restore_tokens.py.
#pragma once

#include "token_rows.cuh"

namespace stmeta::restore_tokens {

using namespace token_rows;

// Reads the latent rows once, writes B * N rows.
template <typename T, typename P>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Layout layout, Rows<const T> latent, Rows<const float> mask_token,
                   Rows<const P> pos,                    // pos.data null: none
                   const int64_t* __restrict__ restore,  // [B, N]
                   Divider by_tokens, int64_t count, int64_t kept, Rows<T> out) {
  const int64_t index = int64_t{blockIdx.x} * layout.rows() + layout.own_row();
  if (index >= count) return;
  uint32_t n = static_cast<uint32_t>(index);
  const uint32_t b = by_tokens.split(n);
  const int64_t k = restore[index];
  for (int f = layout.first(); f < layout.width; f += layout.step()) {
    float value[kGroup], shift[kGroup] = {};
    if (k >= 0 && k < kept) {
      load_row(latent.row(b, k), f, layout.width, latent.stride_d, latent.wide, value);
    } else {
      load_row(mask_token.data, f, layout.width, 1, mask_token.wide, value);
    }
    if (pos.data) load_row(pos.row(0, n), f, layout.width, pos.stride_d, pos.wide, shift);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) value[i] += shift[i];
    store_row(out.row(b, n), f, layout.width, out.wide, value);
  }
}

// out[f] = sum of x over the rows of the block, in order. All threads call; `x` is zero where a
// thread has no row.
__device__ inline void store_block_sum(const Layout& layout, int f, const float (&x)[kGroup],
                                       bool wide, float* out) {
  alignas(16) __shared__ float of_row[kThreads * kGroup];
  store_floats<kGroup>(of_row + threadIdx.x * kGroup, x);
  __syncthreads();
  if (layout.own_row() == 0 && f < layout.width) {
    float sum[kGroup] = {};
    for (int row = 0; row < layout.rows(); ++row) {
      float own[kGroup];
      load_floats<kGroup>(of_row + row * layout.step() + f % layout.step(), own);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) sum[i] += own[i];
    }
    store_row(out, f, layout.width, wide, sum);
  }
  __syncthreads();
}

// One pass over the gradient. A block takes the same tokens of the samples blockIdx.y,
// blockIdx.y + gridDim.y, ...; where grad_pos is wanted, gridDim.y is 1 and the samples are summed
// in order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Layout layout, Rows<const T> grad,    // [B, N, D]
                    const int64_t* __restrict__ restore,  // [B, N]
                    int64_t batch, int64_t tokens, int64_t kept,
                    Rows<T> grad_latent,     // [B, K, D]; data null: none
                    Rows<float> partial,     // [blocks, D]: of the mask token; data null: none
                    Rows<float> grad_pos) {  // [N, D]; data null: none
  const int64_t n = int64_t{blockIdx.x} * layout.rows() + layout.own_row();
  for (int begin = 0; begin < layout.width; begin += layout.step()) {
    const int f = begin + layout.first();
    float sum[kGroup] = {}, of_mask[kGroup] = {};
    if (n < tokens && f < layout.width) {
#pragma unroll 4
      for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        const int64_t k = restore[b * tokens + n];
        const bool seen = k >= 0 && k < kept;
        float g[kGroup];
        load_row(grad.row(b, n), f, layout.width, grad.stride_d, grad.wide, g);
        if (seen && grad_latent.data) {
          store_row(grad_latent.row(b, k), f, layout.width, grad_latent.wide, g);
        }
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          sum[i] += g[i];
          of_mask[i] += seen ? 0.0f : g[i];
        }
      }
      if (grad_pos.data) store_row(grad_pos.row(0, n), f, layout.width, grad_pos.wide, sum);
    }
    if (partial.data) {
      const int64_t block = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
      store_block_sum(layout, f, of_mask, partial.wide, partial.row(0, block));
    }
  }
}

// ---- host ----

template <typename T, typename P>
void forward(const Rows<const T>& latent, const float* mask_token, const Rows<const P>& pos,
             const int64_t* restore, int64_t batch, int64_t tokens, int64_t kept, int64_t width,
             T* out, Stream stream) {
  check_sizes(batch, tokens, width);
  if (batch * tokens * width == 0) return;
  const Layout layout(width);
  const dim3 grid(static_cast<unsigned>(ceil_divide(batch * tokens, layout.rows())));
  launch(forward_kernel<T, P>, grid, kThreads, 0, stream, layout, latent,
         dense_rows(mask_token, 1, width), pos, restore, Divider(tokens), batch * tokens, kept,
         dense_rows(out, tokens, width));
}

// How the backward cuts its work.
struct BackwardGrid {
  Layout layout;
  int64_t token_blocks, batch_blocks;

  BackwardGrid(int64_t batch, int64_t tokens, int64_t width, bool sums_positions)
      : layout(width),
        token_blocks(ceil_divide(tokens, layout.rows())),
        batch_blocks(sums_positions ? 1 : token_rows::batch_blocks(batch, token_blocks)) {}
  int64_t blocks() const { return token_blocks * batch_blocks; }
};

// What is null is not wanted. partial: fp32 [grid.blocks(), D] with grad_mask.
template <typename T>
void backward(const BackwardGrid& cut, const Rows<const T>& grad, const int64_t* restore,
              int64_t batch, int64_t tokens, int64_t kept, T* grad_latent, float* partial,
              float* grad_mask, float* grad_pos, Stream stream) {
  const int64_t width = cut.layout.width;
  check_sizes(batch, tokens, width);
  if (width == 0 || !(grad_latent || grad_mask || grad_pos)) return;
  if (tokens > 0) {
    const dim3 grid(static_cast<unsigned>(cut.token_blocks),
                    static_cast<unsigned>(cut.batch_blocks));
    launch(backward_kernel<T>, grid, kThreads, 0, stream, cut.layout, grad, restore, batch, tokens,
           kept, dense_rows(grad_latent, kept, width), dense_rows(partial, 1, width),
           dense_rows(grad_pos, tokens, width));
  }
  if (grad_mask) column_sum(partial, grad_mask, cut.blocks(), width, stream);
}

}  // namespace stmeta::restore_tokens
