// CUDA kernels of stmeta::shifted_patch_embed and their launches, around a matrix product that the
// caller gives. Reference: stmeta/ops/video/shifted_patch_embed.py.
//
// Tokens are made for some clips at a time, as many as fit half of L2 (one at least), so that the
// product reads them from there. The backward makes them again, without the affine part of
// LayerNorm: with G = grad^T xhat and s = the sum of grad, every gradient is a pass over G.
//
// Letters: those of patch_shift.cuh, and D for the width of an embedded token.
#pragma once

#include "cuda/video/gather_tokens.cuh"
#include "cuda/video/patch_shift.cuh"

namespace stmeta::shifted_patch_embed {

using patch_shift::Problem;

constexpr int kVector = 4;  // columns of [D, F] that a thread takes
constexpr int kWarps = 16;  // of a block that shares the rows of [D, F]
constexpr int kAddThreads = 256;

// xhat = (x - mean) * rstd of each token x, with the statistics of the forward.
template <typename In, typename T>
__global__ void __launch_bounds__(patch_shift::kThreads, 2)
    xhat_kernel(const __grid_constant__ Problem p, const __grid_constant__ patch_shift::Window w,
                const In* __restrict__ video,
                const float* __restrict__ mean,       // [B, K], or null: xhat = x
                const float* __restrict__ rstd,       // [B, K]
                bool wide, T* __restrict__ tokens) {  // [B, K, F]
  using patch_shift::kGroup;
  using patch_shift::kGroups;
  const patch_shift::Shared shared(w, p);
  const int chunk = static_cast<int>(blockDim.x) * kGroup * kGroups;
  prepare(p, w, shared, 0, patch_shift::whole_groups(p.features));
  __syncthreads();
  for (int index = blockIdx.x; index < p.total(); index += gridDim.x) {
    stage_token(p, w, video, find_token(p, index), shared);
    const float centre = mean ? mean[index] : 0.0f, scale = mean ? rstd[index] : 1.0f;
    __syncthreads();
    T* row = tokens + static_cast<int64_t>(index) * p.features;
    for (int first = 0; first < p.features; first += chunk) {
      float x[kGroups][kGroup] = {};
      take(shared, first, p.features, x);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) x[g][k] = (x[g][k] - centre) * scale;
        store_row(row, first + patch_shift::own_feature(g), p.features, wide, x[g]);
      }
    }
    __syncthreads();  // the window may be overwritten from here on
  }
}

// total += part.
template <int kBlock>
__global__ void __launch_bounds__(kBlock)
    add_kernel(const float* __restrict__ part, float* __restrict__ total, int64_t size, bool wide) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBlock * kVector;
  int64_t first = (static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x) * kVector;
  for (; first < size; first += step) {
    const int count = static_cast<int>(min(int64_t{kVector}, size - first));
    float x[kVector], y[kVector];
    load_row(part + first, 0, count, 1, wide, x);
    load_row(total + first, 0, count, 1, wide, y);
#pragma unroll
    for (int k = 0; k < kVector; ++k) y[k] += x[k];
    store_row(total + first, 0, count, wide, y);
  }
}

// What follows from G = grad^T xhat, in its place, and s: the gradient of
//   weight: norm_weight G + s norm_bias^T;  norm_weight[f]: sum_d W G;  norm_bias[f]: sum_d W s.
template <typename T>
struct Finish {
  const T* weight;     // [D, F]
  const float* sum;    // [D]: s
  const float* gamma;  // [F]: norm_weight
  const float* beta;   // [F]: norm_bias
  float* product;      // [D, F]
  float* grad_gamma;   // [F], or null
  float* grad_beta;    // [F], or null
  int dim, features;
  bool wide;  // see load_row
};

// Reads W and G, writes the gradient of W. A block takes 128 columns; its warps share the rows.
template <typename T>
__global__ void __launch_bounds__(kWarps* kWarp)
    finish_kernel(const __grid_constant__ Finish<T> p) {
  __shared__ float of_warp[2][kWarps][kWarp * kVector];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int f = (static_cast<int>(blockIdx.x) * kWarp + lane) * kVector;
  float gamma[kVector], beta[kVector], sums[2][kVector] = {};
  load_row(p.gamma, f, p.features, 1, p.wide, gamma);
  load_row(p.beta, f, p.features, 1, p.wide, beta);
#pragma unroll 4
  for (int d = warp; d < p.dim; d += kWarps) {
    const int64_t row = static_cast<int64_t>(d) * p.features;
    float w[kVector], g[kVector];
    load_row(p.weight + row, f, p.features, 1, p.wide, w);
    load_row(p.product + row, f, p.features, 1, p.wide, g);
    const float s = p.sum[d];
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      sums[0][k] += w[k] * g[k];
      sums[1][k] += w[k] * s;
      g[k] = gamma[k] * g[k] + s * beta[k];
    }
    store_row(p.product + row, f, p.features, p.wide, g);
  }
  if (!p.grad_gamma && !p.grad_beta) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) store_floats<kVector>(&of_warp[i][warp][lane * kVector], sums[i]);
  __syncthreads();
  float* const targets[2] = {p.grad_gamma, p.grad_beta};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (warp != i || !targets[i]) continue;
    for (int w = 1; w < kWarps; ++w) {
      float x[kVector];
      load_floats<kVector>(&of_warp[i][w][lane * kVector], x);
      if (w == i) load_floats<kVector>(&of_warp[i][0][lane * kVector], x);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sums[i][k] += x[k];
    }
    store_row(targets[i], f, p.features, p.wide, sums[i]);
  }
}

// ---- host ----

// Clips whose tokens are made at a time; the chunks are of the same size, but for the last.
inline int chunk_clips(const Problem& p, size_t number_bytes) {
  const int64_t clip_bytes = int64_t{p.kept} * p.features * static_cast<int64_t>(number_bytes);
  const int64_t batch = std::max(p.batch, 1);
  const int64_t fit = l2_bytes() / 2 / std::max<int64_t>(clip_bytes, 1);
  const int64_t chunks = ceil_divide(batch, std::max<int64_t>(fit, 1));
  return static_cast<int>(ceil_divide(batch, chunks));
}

// Calls f(problem, video) for some clips after the other: make their tokens, which are rows
// [row, row + problem.total()) of all, and use them.
template <typename In, typename F>
void for_chunks(const Problem& p, const In* video, size_t number_bytes, const F& f) {
  if (p.total() == 0) return;
  const int clips = chunk_clips(p, number_bytes);
  for (int first = 0; first < p.batch; first += clips) {
    Problem part = p;
    part.batch = std::min(clips, p.batch - first);
    const int64_t row = int64_t{first} * p.kept;
    if (p.ids) part.ids = p.ids + row;
    f(part, video + first * p.stride_b, row);
  }
}

// The LayerNorm. gamma and beta: [F]; mean and rstd: [B, K] results; all null if there is none.
struct Norm {
  const float *gamma, *beta;
  float eps;
  float *mean, *rstd;
};

// out += bias + pos, for the rows of some clips; [D] and [N, D], or null.
template <typename T>
void add_positions(const Problem& p, const float* bias, const float* pos, int64_t dim, T* out,
                   Stream stream) {
  if (!bias && !pos) return;
  gather_tokens::Place<T> add{};
  add.source = add.out = out;
  add.stride_b = p.kept * dim, add.stride_row = dim;
  add.ids = p.ids;
  add.limit = p.sites;
  add.bias.single = bias;
  add.pos.single = pos, add.pos.stride = dim;
  add.pos_by_id = true;
  add.batch = p.batch, add.rows = p.kept, add.dim = gather_tokens::count(dim);
  gather_tokens::place(add, stream);
}

// tokens: scratch, [chunk_clips * K, F]; out: [B * K, D]. multiply(row, rows) must set rows
// [row, row + rows) of out to the tokens times W^T.
template <typename In, typename T, typename Multiply>
void forward(const Problem& p, const In* video, const Norm& norm, const float* bias,
             const float* pos, int64_t dim, T* tokens, T* out, Stream stream,
             const Multiply& multiply) {
  for_chunks(p, video, sizeof(T), [&](const Problem& part, const In* clips, int64_t row) {
    patch_shift::forward(part, clips, norm.gamma, norm.beta, norm.eps, tokens,
                         norm.gamma ? norm.mean + row : nullptr,
                         norm.gamma ? norm.rstd + row : nullptr, stream);
    multiply(row, int64_t{part.total()});
    add_positions(part, bias, pos, dim, out + row * dim, stream);
  });
}

template <typename In, typename T>
void make_xhat(const Problem& p, const In* video, const float* mean, const float* rstd, T* tokens,
               Stream stream) {
  const auto w = patch_shift::make_window(p, video);
  const int threads = patch_shift::threads_of(p);
  const auto kernel = xhat_kernel<In, T>;
  const size_t shared =
      patch_shift::shared_bytes(kernel, p, w, patch_shift::whole_groups(p.features));
  const bool wide = p.features % patch_shift::kGroup == 0 && aligned(tokens, 16);
  const int64_t blocks = std::min<int64_t>(p.total(), resident_blocks(kernel, threads, shared));
  launch(kernel, dim3(static_cast<unsigned>(blocks)), threads, shared, stream, p, w, video, mean,
         rstd, wide, tokens);
}

// total = grad^T xhat, [D, F], in fp32. mean, rstd: [B, K], or null without LayerNorm; tokens:
// scratch, [chunk_clips * K, F]; part: scratch, [D, F], needed for more than one chunk.
// multiply(row, rows, out) must set `out`, which is total or part, to the transposed rows
// [row, row + rows) of grad times the tokens.
template <typename In, typename T, typename Multiply>
void product(const Problem& p, const In* video, const float* mean, const float* rstd, int64_t dim,
             T* tokens, float* part, float* total, Stream stream, const Multiply& multiply) {
  const int64_t size = dim * p.features;
  const bool wide = size % kVector == 0 && aligned(part, 16) && aligned(total, 16);
  const int64_t blocks = std::min<int64_t>(ceil_divide(size, kAddThreads * kVector), 1 << 16);
  for_chunks(p, video, sizeof(T), [&](const Problem& chunk, const In* clips, int64_t row) {
    make_xhat(chunk, clips, mean ? mean + row : nullptr, rstd ? rstd + row : nullptr, tokens,
              stream);
    multiply(row, int64_t{chunk.total()}, row == 0 ? total : part);
    if (row == 0) return;
    launch(add_kernel<kAddThreads>, dim3(static_cast<unsigned>(blocks)), kAddThreads, 0, stream,
           part, total, size, wide);
  });
}

// Rows of `partial`, which sums needs.
inline int partial_rows(const Problem& p) { return gather_tokens::sum_blocks(p.sites); }

// Sums of grad, [B, K, D] contiguous: over all rows, [D]; and per token, [N, D] or null.
// slots: scratch, [B, N], needed with ids only; partial: scratch, [partial_rows, D].
template <typename T>
void sums(const Problem& p, const T* grad, int64_t dim, int* slots, float* partial, float* sum,
          float* grad_pos, Stream stream) {
  if (p.ids) {
    const dim3 samples(static_cast<unsigned>(p.batch));
    launch(patch_shift::slots_kernel<256>, samples, 256, 0, stream, p.ids, slots, p.kept, p.sites);
  }
  gather_tokens::Sums<T, int> rows{};
  rows.grad = grad;
  rows.stride_b = p.kept * dim, rows.stride_row = dim;
  rows.by_id = p.ids != nullptr;
  rows.ids = p.ids ? slots : nullptr;
  rows.batch = p.batch, rows.tokens = p.sites, rows.kept = p.kept;
  rows.dim = gather_tokens::count(dim);
  rows.pos = grad_pos, rows.partial = partial;
  gather_tokens::sum(rows, stream);
  column_sum(partial, sum, partial_rows(p), dim, stream);
}

template <typename T>
void finish(Finish<T> p, Stream stream) {
  const auto on_16 = [](const void* pointer) { return aligned(pointer, 16); };
  p.wide = p.features % kVector == 0 && on_16(p.weight) && on_16(p.gamma) && on_16(p.beta) &&
           on_16(p.product) && on_16(p.grad_gamma) && on_16(p.grad_beta);
  const dim3 grid(static_cast<unsigned>(ceil_divide(p.features, kWarp * kVector)));
  launch(finish_kernel<T>, grid, kWarps * kWarp, 0, stream, p);
}

}  // namespace stmeta::shifted_patch_embed
