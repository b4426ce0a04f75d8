// The controller of stmeta::lrua_scan and stmeta::ntm_scan on a GPU: an LSTM beside a memory.
//
// A block takes one episode, from its first step to its last, and keeps the episode's state in
// shared memory. Weights of the controller come from L2 at every step. The blocks of a cluster
// share that out: each loads some of the columns, multiplies the vectors of all of the cluster's
// episodes by them, and hands every block the numbers of its own. So an SM loads an eighth of the
// weights, where there are clusters of eight. Blocks past the end of the batch only multiply.
//
// Letters, besides those of memory_tile.cuh: T steps, R heads that read, K = H + R * M or H (H:
// hidden here), P numbers of a head, or of all heads in ntm_scan.
#pragma once

#include "common/cuda_cluster.cuh"
#include "cuda/memory/lrua_step.cuh"

namespace stmeta::scan {

using namespace stmeta::memory;

// The columns that each block of a cluster multiplies by, [cluster][inner][wide]; zero past those
// that there are.
struct Matrix {
  const float* data;
  int inner, wide;
};

struct Sequence {
  const char* op;                      // the host's, for its errors
  Shape s;                             // an element is one tile
  int steps, hidden, recurrent_size;   // T, H, K
  int of_reads, of_heads;              // R * M, and the numbers of all heads
  int every;                           // steps between two checkpoints
  int cluster, slices;                 // blocks of a cluster; the limits parts of a product's sum
  const float *recurrent, *interface;  // [4H, K], [numbers, H]
  Matrix by_recurrent, by_interface;   // transposed in the forward
  const int64_t* lengths;              // [B], or null: T each
  float* past;                         // memories that the backward repeats
  bool read_first;
  float eps;

  __host__ __device__ int vectors() const { return of_reads; }
  __host__ __device__ int numbers() const { return of_heads; }
  __host__ __device__ int num_checkpoints() const { return (steps + every - 1) / every; }
  __host__ __device__ int64_t memory_size() const { return int64_t{s.rows} * s.width; }
  __host__ __device__ int64_t weight_size() const { return int64_t{s.heads} * s.rows; }
  int64_t blocks() const { return ceil_divide(s.batch, cluster) * cluster; }
  // The steps of an episode, whatever `lengths` says; none past the end of the batch.
  __device__ int length(int64_t batch) const {
    if (batch >= s.batch) return 0;
    if (lengths == nullptr) return steps;
    return static_cast<int>(max(int64_t{0}, min(lengths[batch], int64_t{steps})));
  }
  // The steps of the longest episode of the cluster that has this one.
  __device__ int longest(int64_t batch) const {
    if (!kClusters) return length(batch);
    int limits = 0;
    for (int i = 0; i < cluster; ++i) limits = max(limits, length(batch / cluster * cluster + i));
    return limits;
  }
};

// Parts of a sum, so that all threads of a block have something to add.
__host__ __device__ inline int slices_of(const Sequence& p, const Matrix& w) {
  return min(p.slices, max(1, p.s.threads / max(1, w.wide / kQuad)));  // no heads: no columns
}

// Floats of scratch that products and `column_sums` need.
__host__ __device__ inline int scratch_floats(const Sequence& p) {
  const int first = slices_of(p, p.by_recurrent) * p.by_recurrent.wide;
  const int second = slices_of(p, p.by_interface) * p.by_interface.wide;
  return max(max(first, second) * p.cluster, column_scratch(p.s));
}

// Floats of the vectors of a cluster that are multiplied at the same time.
__host__ __device__ inline int shared_vectors(const Sequence& p) {
  return p.cluster == 1 ? 0 : p.cluster * max(p.by_recurrent.inner, p.by_interface.inner);
}

// The place of an element whose weights and vectors are in arrays of its own.
__device__ inline Place own_place(const Shape& s) { return {0, 0, 0, s.rows}; }

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// ---- products ----

// The vectors x of all blocks, [inner, kBlocks]. Ends with a barrier.
template <int kBlocks>
__device__ inline const float* gather(const float* x, int inner, float* all) {
  if (kBlocks == 1) return x;
  cluster_sync();
  for (int i = threadIdx.x; i < inner * kBlocks; i += blockDim.x) {
    all[i] = of_block(x, i % kBlocks)[i / kBlocks];
  }
  __syncthreads();
  return all;
}

template <int kBlocks>
__device__ inline void multiply_by(const Sequence& p, const Matrix& w, int width, const float* x,
                                   float* all, float* scratch, float* out) {
  const int threads = static_cast<int>(blockDim.x), rank = kBlocks == 1 ? 0 : cluster_rank();
  const int quads = w.wide / kQuad, slices = slices_of(p, w);
  const float* mine = w.data + static_cast<int64_t>(rank) * w.inner * w.wide;
  const float* vectors = gather<kBlocks>(x, w.inner, all);
  for (int i = threadIdx.x; i < quads * slices; i += threads) {
    const int slice = i / quads, column = (i - slice * quads) * kQuad;
    const float* row = mine + static_cast<int64_t>(slice) * w.wide + column;
    float sum[kBlocks][kQuad] = {};
#pragma unroll 8
    for (int k = slice; k < w.inner; k += slices) {
      float v[kQuad], each[kBlocks];
      load_floats(row, v);
      load_floats(vectors + k * kBlocks, each);
      row += static_cast<int64_t>(slices) * w.wide;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int j = 0; j < kQuad; ++j) sum[b][j] += each[b] * v[j];
      }
    }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      store_floats(scratch + (slice * kBlocks + b) * w.wide + column, sum[b]);
    }
  }
  __syncthreads();
  const int columns = min(w.wide, width - rank * w.wide);  // of this block, if any
  for (int i = threadIdx.x; i < kBlocks * columns; i += threads) {
    const int b = i / columns, column = i - b * columns;
    float sum = 0.0f;
    for (int slice = 0; slice < slices; ++slice) {
      sum += scratch[(slice * kBlocks + b) * w.wide + column];
    }
    (kBlocks == 1 ? out : of_block(out, b))[rank * w.wide + column] = sum;
  }
  if (kBlocks == 1) {
    __syncthreads();
  } else {
    cluster_sync();
  }
}

// out[n] = sum of x[k] * w[k, n], for n < width. All blocks of a cluster call it together, after a
// barrier of their own; ends with a barrier. M: `all` and `scratch`.
template <typename M>
__device__ inline void multiply(const Sequence& p, const Matrix& w, int width, const float* x,
                                const M& m, float* out) {
  if (kClusters && p.cluster == 8) {
    multiply_by<8>(p, w, width, x, m.all, m.scratch, out);
  } else if (kClusters && p.cluster == 4) {
    multiply_by<4>(p, w, width, x, m.all, m.scratch, out);
  } else {
    multiply_by<1>(p, w, width, x, m.all, m.scratch, out);
  }
}

// ---- between main memory and shared memory ----

__device__ inline void fill(float* to, int64_t count, float value) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = value;
}

// A memory [N, M] to or from a tile.
__device__ inline void load_memory(const Sequence& p, const float* from, float* tile) {
  const bool wide = p.s.width % kQuad == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  stage(p.s, own_place(p.s), Strided<float>{from, 0, p.s.width, 1, wide}, tile);
}

__device__ inline void store_memory(const Sequence& p, const float* tile, float* to) {
  unstage(p.s, own_place(p.s), tile, to);
}

// ---- the LSTM ----

// The raw numbers of the heads but for their bias, in `heads`; opens the gates of step `at`. P:
// `gates`, `activated`, `cells` and `y`; M: `input`, `cell`, `gates`, `heads` and what `multiply`
// takes. Call after a barrier; ends with one.
template <typename P, typename M>
__device__ inline void control(const P& p, int64_t at, const M& m) {
  const int hidden = p.hidden;
  multiply(p, p.by_recurrent, 4 * hidden, m.input, m, m.gates);
  const float* given = p.gates + at * 4 * hidden;
  float* activated = p.activated + at * 4 * hidden;
  for (int n = threadIdx.x; n < hidden; n += blockDim.x) {
    const auto raw = [&](int gate) {
      const int i = gate * hidden + n;
      return given[i] + m.gates[i];
    };
    const float in = sigmoid(raw(0)), forget = sigmoid(raw(1));
    const float value = tanhf(raw(2)), out = sigmoid(raw(3));
    const float cell = forget * m.cell[n] + in * value, h = out * tanhf(cell);
    activated[n] = in;
    activated[hidden + n] = forget;
    activated[2 * hidden + n] = value;
    activated[3 * hidden + n] = out;
    p.cells[at * hidden + n] = m.cell[n] = cell;
    p.y[at * (hidden + p.vectors()) + n] = m.input[n] = h;
  }
  __syncthreads();
  multiply(p, p.by_interface, p.numbers(), m.input, m, m.heads);
}

// A step of the other episodes of the cluster. Barriers on both sides.
template <typename M>
__device__ inline void assist(const Sequence& p, const M& m) {
  if (!kClusters) return;
  __syncthreads();
  multiply(p, p.by_recurrent, 4 * p.hidden, m.input, m, m.gates);
  multiply(p, p.by_interface, p.numbers(), m.input, m, m.heads);
}

// What a block past the end of the batch does.
template <typename M>
__device__ inline void only_assist(const Sequence& p, int64_t b, const M& m) {
  fill(m.input, p.recurrent_size, 0.0f);
  for (int t = p.longest(b); t > 0; --t) assist(p, m);
}

// Step t of element b back, from the gradients of its heads' numbers. Call after a barrier; ends
// with one.
template <typename P, typename M>
__device__ inline void uncontrol(const P& p, int64_t b, int t, const M& m) {
  const int hidden = p.hidden;
  const int64_t at = b * p.steps + t;
  multiply(p, p.by_interface, hidden, m.d_heads, m, m.d_h);
  const float* grad = p.grad_y + at * (hidden + p.vectors());
  const float* activated = p.activated + at * 4 * hidden;
  const float* before = t == 0 ? p.c + b * hidden : p.cells + (at - 1) * hidden;
  for (int n = threadIdx.x; n < hidden; n += blockDim.x) {
    const float in = activated[n], forget = activated[hidden + n];
    const float value = activated[2 * hidden + n], out = activated[3 * hidden + n];
    const float activated_cell = tanhf(p.cells[at * hidden + n]),
                d = grad[n] + m.d_input[n] + m.d_h[n];
    const float cell = m.d_cell[n] + d * out * (1.0f - activated_cell * activated_cell);
    m.d_gates[n] = cell * value * in * (1.0f - in);
    m.d_gates[hidden + n] = cell * before[n] * forget * (1.0f - forget);
    m.d_gates[2 * hidden + n] = cell * in * (1.0f - value * value);
    m.d_gates[3 * hidden + n] = d * activated_cell * out * (1.0f - out);
    m.d_cell[n] = cell * forget;
  }
  __syncthreads();
  copy(m.d_gates, 4 * hidden, p.d_gates + at * 4 * hidden);
  multiply(p, p.by_recurrent, p.recurrent_size, m.d_gates, m, m.d_input);
}

// The gradients that a controller starts from. No barriers.
template <typename M>
__device__ inline void rest_controller(const Sequence& p, const M& m) {
  fill(m.d_heads, p.numbers(), 0.0f);
  fill(m.d_gates, 4 * p.hidden, 0.0f);
  fill(m.d_input, p.recurrent_size, 0.0f);
}

// A step back of the other episodes of the cluster. Barriers on both sides.
template <typename M>
__device__ inline void assist_back(const Sequence& p, const M& m) {
  if (!kClusters) return;
  __syncthreads();
  multiply(p, p.by_interface, p.hidden, m.d_heads, m, m.d_h);
  multiply(p, p.by_recurrent, p.recurrent_size, m.d_gates, m, m.d_input);
  fill(m.d_input, p.recurrent_size, 0.0f);
  __syncthreads();
}

// After `rest_controller`.
template <typename M>
__device__ inline void only_assist_back(const Sequence& p, int64_t b, const M& m) {
  for (int t = p.longest(b); t > 0; --t) assist_back(p, m);
}

}  // namespace stmeta::scan
