// CUDA kernels of stmeta::shifted_patch_embed that patch_shift.cuh and a matrix product leave over.
// Reference: stmeta/ops/shifted_patch_embed.py.
//
// Tokens are made some clips at a time, so that they stay in L2 until the product has read them.
// The backward makes them again, without LayerNorm's affine part: with G = grad^T xhat every
// gradient is a cheap pass over G.
#pragma once

#include <cmath>

#include "gather_tokens.cuh"
#include "patch_shift.cuh"

namespace stmeta::shifted_patch_embed {

using patch_shift::Problem;
using token_rows::dense_rows;
using token_rows::kGroup;
using token_rows::kThreads;
using token_rows::Layout;
using token_rows::Rows;

constexpr int64_t kChunkBytes = 16 << 20;  // of tokens
constexpr int kFinishWarps = 8;

// rows += bias + the position of their token, in place.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    add_kernel(Layout layout, Rows<T> rows, int64_t count,
               const int64_t* __restrict__ ids,  // [B, K], or null: row n is token n % N
               int64_t tokens,
               Rows<const float> bias, Rows<const float> pos) {  // data null: none
  const int64_t row = int64_t{blockIdx.x} * layout.rows() + layout.own_row();
  if (row >= count) return;
  const int64_t n = ids ? ids[row] : row % tokens;
  const bool inside = n >= 0 && n < tokens;  // nobody has checked them on a GPU
  for (int f = layout.first(); f < layout.width; f += layout.step()) {
    float x[kGroup], shift[kGroup] = {}, place[kGroup] = {};
    load_row(rows.row(0, row), f, layout.width, 1, rows.wide, x);
    if (bias.data) load_row(bias.data, f, layout.width, 1, bias.wide, shift);
    if (pos.data && inside) load_row(pos.row(0, n), f, layout.width, 1, pos.wide, place);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) x[i] = inside ? x[i] + shift[i] + place[i] : NAN;
    store_row(rows.row(0, row), f, layout.width, rows.wide, x);
  }
}

// partial[block] = sum of every gridDim.x-th group of rows.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    sum_rows_kernel(Layout layout, Rows<const T> rows, int64_t count, Rows<float> partial) {
  for (int begin = 0; begin < layout.width; begin += layout.step()) {
    const int f = begin + layout.first();
    float sum[kGroup] = {};
    if (f < layout.width) {
      int64_t row = int64_t{blockIdx.x} * layout.rows() + layout.own_row();
#pragma unroll 4
      for (; row < count; row += int64_t{gridDim.x} * layout.rows()) {
        float x[kGroup];
        load_row(rows.row(0, row), f, layout.width, 1, rows.wide, x);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) sum[i] += x[i];
      }
    }
    store_block_sum(layout, f, sum, partial.wide, partial.row(0, blockIdx.x));
  }
}

// product += part, or = part.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(const T* __restrict__ part, float* __restrict__ product, int64_t count,
                      bool first) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) product[i] = to_float(part[i]) + (first ? 0.0f : product[i]);
}

// The Linear and the LayerNorm before it.
template <typename T>
struct Parameters {
  int dim, features;
  const T* weight;            // [D, F]
  const float *gamma, *beta;  // [F]
  const float* sum;           // [D]: of the rows of grad
};

// The formulas of the backward: a lane takes a column, the warps share its rows. `product` is
// grad^T xhat, [D, F], and becomes the gradient of the weight.
template <typename T>
__global__ void __launch_bounds__(kFinishWarps* kWarp)
    finish_kernel(Parameters<T> p, float* __restrict__ product, float* __restrict__ grad_gamma,
                  float* __restrict__ grad_beta) {  // null: not wanted
  __shared__ float of_warp[2][kFinishWarps][kWarp];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int f = static_cast<int>(blockIdx.x) * kWarp + lane;
  float of_gamma = 0.0f, of_beta = 0.0f;
  if (f < p.features) {
    const float gamma = p.gamma[f], beta = p.beta[f];
#pragma unroll 4
    for (int d = warp; d < p.dim; d += kFinishWarps) {
      const int64_t at = static_cast<int64_t>(d) * p.features + f;
      const float g = product[at], weight = to_float(p.weight[at]);
      of_gamma += weight * g;
      of_beta += weight * p.sum[d];
      product[at] = gamma * g + p.sum[d] * beta;
    }
  }
  of_warp[0][warp][lane] = of_gamma, of_warp[1][warp][lane] = of_beta;
  __syncthreads();
  if (warp != 0 || f >= p.features) return;
  for (int w = 1; w < kFinishWarps; ++w) {
    of_gamma += of_warp[0][w][lane], of_beta += of_warp[1][w][lane];
  }
  if (grad_gamma) grad_gamma[f] = of_gamma;
  if (grad_beta) grad_beta[f] = of_beta;
}

// ---- host ----

// Clips whose tokens are made at a time.
inline int64_t chunk_clips(const Problem& p, size_t number_bytes) {
  const int64_t bytes = int64_t{p.kept} * p.features * static_cast<int64_t>(number_bytes);
  return std::clamp<int64_t>(kChunkBytes / std::max<int64_t>(bytes, 1), 1, std::max(p.batch, 1));
}

// Calls f(problem of some clips, their video, their first row) for all clips in order.
template <typename In, typename F>
void for_chunks(const Problem& p, int64_t clips, const In* video, const F& f) {
  for (int64_t first = 0; first < p.batch; first += clips) {
    Problem part = p;
    part.batch = static_cast<int>(std::min(clips, p.batch - first));
    if (p.ids) part.ids = p.ids + first * p.kept;
    f(part, video + first * p.stride_b, first * p.kept);
  }
}

// rows: [B * K, D]; bias [D] and pos [N, D] may be null.
template <typename T>
void add(const Problem& p, int64_t dim, const float* bias, const float* pos, T* rows,
         Stream stream) {
  const int64_t count = p.total();
  if (count * dim == 0 || !(bias || pos)) return;
  const Layout layout(dim);
  const dim3 grid(static_cast<unsigned>(ceil_divide(count, layout.rows())));
  launch(add_kernel<T>, grid, kThreads, 0, stream, layout, dense_rows(rows, 1, dim), count, p.ids,
         int64_t{p.sites}, dense_rows(bias, 1, dim), dense_rows(pos, 1, dim));
}

inline int64_t sum_blocks(int64_t count, int64_t dim) {
  return std::min(busy_blocks(kThreads), ceil_divide(count, Layout(dim).rows()));
}

// sum [D] of `count` rows; partial: fp32 [sum_blocks, D].
template <typename T>
void sum_rows(const T* rows, int64_t count, int64_t dim, float* partial, float* sum,
              Stream stream) {
  const int64_t blocks = sum_blocks(count, dim);
  launch(sum_rows_kernel<T>, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, Layout(dim),
         dense_rows(rows, 1, dim), count, dense_rows(partial, 1, dim));
  column_sum(partial, sum, blocks, dim, stream);
}

// grad_pos [N, D] from grad [B, K, D]; slots: scratch [B, N], needed with ids only.
template <typename T>
void sum_positions(const Problem& p, const T* grad, int64_t dim, int* slots, float* grad_pos,
                   Stream stream) {
  if (p.ids) {
    const dim3 samples(static_cast<unsigned>(p.batch));
    launch(patch_shift::slots_kernel<256>, samples, 256, 0, stream, p.ids, slots, p.kept, p.sites);
  }
  gather_tokens::backward<T, int>(dense_rows(grad, p.kept, dim), p.ids ? slots : nullptr, p.batch,
                                  p.sites, p.kept, dim, nullptr, grad_pos, stream);
}

template <typename T>
void accumulate(const T* part, float* product, int64_t count, bool first, Stream stream) {
  const dim3 grid(static_cast<unsigned>(ceil_divide(count, kThreads)));
  launch(accumulate_kernel<T>, grid, kThreads, 0, stream, part, product, count, first);
}

template <typename T>
void finish(const Parameters<T>& p, float* product, float* grad_gamma, float* grad_beta,
            Stream stream) {
  const dim3 grid(static_cast<unsigned>(ceil_divide(p.features, kWarp)));
  launch(finish_kernel<T>, grid, kFinishWarps * kWarp, 0, stream, p, product, grad_gamma,
         grad_beta);
}

}  // namespace stmeta::shifted_patch_embed
