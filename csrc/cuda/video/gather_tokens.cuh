// CUDA kernels of stmeta::gather_tokens and their launches, which restore_tokens and
// shifted_patch_embed use as well. Reference: stmeta/ops/video/gather_tokens.py.
//
// Letters: B batch, N tokens, K kept tokens, R rows of a result, D width. Rows are dense.
#pragma once

#include <initializer_list>

#include "common/cuda_reduce.cuh"
#include "common/cuda_vector.cuh"

namespace stmeta::gather_tokens {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;  // rows that a thread loads before it stores the first

// A matrix of T or of fp32, or nothing. Both pointers null: nothing.
template <typename T>
struct Table {
  const T* same = nullptr;
  const float* single = nullptr;
  int64_t stride = 0;

  // x += N elements of a row
  template <int N>
  __device__ void add(int64_t row, int first, float (&x)[N]) const {
    float y[N] = {};
    if (single) {
      load_floats<N>(single + row * stride + first, y);
    } else if (same) {
      load_floats<N>(same + row * stride + first, y);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] += y[k];
  }
};

// out[b, i] = row of source + bias + row of pos. The row of source is row i; or row ids[b, i], or
// `fill` where that is not in [0, limit).
template <typename T>
struct Place {
  const T* source;  // may be `out`, where its rows are not picked by id
  int64_t stride_b, stride_row;
  bool source_by_id;
  const int64_t* ids;  // [B, R]; null: ids[b, i] = i
  int64_t limit;
  Table<T> fill;  // one row; nothing: zeros
  Table<T> bias;  // one row
  Table<T> pos;   // row ids[b, i], none where that is not in [0, limit); or row i
  bool pos_by_id;
  T* out;  // [B, R, D]
  int batch, rows, dim;

  int vectors = 0, block_rows = 0;  // of a row; of a block
  Divider by_vectors, by_rows;

  __host__ __device__ int total() const { return batch * rows; }
};

// Reads each row of source that is wanted once, and its id; writes B * R * D numbers.
template <int N, typename T>
__global__ void __launch_bounds__(kThreads) place_kernel(const __grid_constant__ Place<T> p) {
  const int items = p.block_rows * p.vectors;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * p.block_rows;
  for (int item = threadIdx.x; item < items; item += kThreads * kInFlight) {
    int64_t index[kInFlight], id[kInFlight];  // index: of the row in [B * R]
    int first[kInFlight], batch[kInFlight], row[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      uint32_t vector = item + u * kThreads;
      const bool inside = item + u * kThreads < items;
      index[u] = first_row + p.by_vectors.split(vector);
      first[u] = vector * N;
      if (!inside || index[u] >= p.total()) index[u] = -1;
      uint32_t rest = index[u] < 0 ? 0 : static_cast<uint32_t>(index[u]);
      batch[u] = p.by_rows.split(rest);
      row[u] = rest;
      id[u] = p.ids && index[u] >= 0 ? p.ids[index[u]] : row[u];
    }
    float x[kInFlight][N];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const bool known = static_cast<uint64_t>(id[u]) < static_cast<uint64_t>(p.limit);
#pragma unroll
      for (int k = 0; k < N; ++k) x[u][k] = 0.0f;
      if (index[u] < 0) continue;
      if (!p.source_by_id || known) {
        const int64_t from = p.source_by_id ? id[u] : row[u];
        load_floats<N>(p.source + batch[u] * p.stride_b + from * p.stride_row + first[u], x[u]);
      } else {
        p.fill.add(0, first[u], x[u]);
      }
      p.bias.add(0, first[u], x[u]);
      if (!p.pos_by_id || known) p.pos.add(p.pos_by_id ? id[u] : row[u], first[u], x[u]);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (index[u] >= 0) store_floats<N>(p.out + index[u] * p.dim + first[u], x[u]);
    }
  }
}

// Sums over the batch of the rows of a gradient that belong to one token. The row of token n is row
// n, or row ids[b, n], where it has none if that is not in [0, kept). What is null is not wanted.
template <typename T, typename Id>
struct Sums {
  const T* grad;
  int64_t stride_b, stride_row;
  bool by_id;
  const Id* ids;  // [B, N], or null: as if none were in [0, kept)
  int batch, tokens, kept, dim;
  T* moved;        // by_id: [B, N, D], each token's row, or zeros
                   // else:  [B, kept, D], each token's row, at ids[b, n] if that is below `kept`
  float* pos;      // [N, D], the sums
  float* partial;  // [blocks, D], the sum of the rows, by_id or not moved; for column_sum

  int columns = 0, slices = 0;  // a block's vectors of a row; parts of the batch
};

// Adds up what the slices of the batch hold, in their order, and stores it.
template <int N>
__device__ inline void add_slices(int slices, int columns, bool active, float (&x)[N], float* out) {
  if (slices > 1) {
    auto* shared = reinterpret_cast<float*>(dynamic_shared());  // [slices, columns, N]
    if (active) store_floats<N>(shared + static_cast<int>(threadIdx.x) * N, x);
    __syncthreads();
    for (int slice = 1; active && slice < slices; ++slice) {
      if (static_cast<int>(threadIdx.x) >= columns) break;
      float y[N];
      load_floats<N>(shared + (slice * columns + static_cast<int>(threadIdx.x)) * N, y);
#pragma unroll
      for (int k = 0; k < N; ++k) x[k] += y[k];
    }
    __syncthreads();
  }
  if (active && static_cast<int>(threadIdx.x) < columns) store_floats<N>(out, x);
}

// The rows of token n in batch elements b, b + slices, ...: kInFlight of them.
template <int N, typename T, typename Id>
__device__ inline void add_rows(const Sums<T, Id>& p, int n, int first_b, int d, float (&sum)[N],
                                float (&rest)[N]) {
  int64_t id[kInFlight];
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) {
    const int b = first_b + u * p.slices;
    id[u] = p.ids && b < p.batch ? p.ids[static_cast<int64_t>(b) * p.tokens + n] : -1;
  }
  float x[kInFlight][N];
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) {
    const int b = first_b + u * p.slices;
    const bool known = static_cast<uint64_t>(id[u]) < static_cast<uint64_t>(p.kept);
#pragma unroll
    for (int k = 0; k < N; ++k) x[u][k] = 0.0f;
    if (b < p.batch && (!p.by_id || known)) {
      load_floats<N>(p.grad + b * p.stride_b + (p.by_id ? id[u] : n) * p.stride_row + d, x[u]);
    }
  }
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) {
    const int64_t b = first_b + u * p.slices;
    const bool known = static_cast<uint64_t>(id[u]) < static_cast<uint64_t>(p.kept);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      sum[k] += x[u][k];
      if (p.by_id || !known) rest[k] += x[u][k];
    }
    if (!p.moved || b >= p.batch) continue;
    if (p.by_id) {
      store_floats<N>(p.moved + (b * p.tokens + n) * p.dim + d, x[u]);
    } else if (known) {
      store_floats<N>(p.moved + (b * p.kept + id[u]) * p.dim + d, x[u]);
    }
  }
}

// One pass over the gradient. A block takes one token after another; its threads are slices of the
// batch times vectors of the row.
template <int N, typename T, typename Id>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ Sums<T, Id> p) {
  const int slice = static_cast<int>(threadIdx.x) / p.columns;
  const int column = static_cast<int>(threadIdx.x) % p.columns;
  const int d = (static_cast<int>(blockIdx.y) * p.columns + column) * N;
  const bool active = slice < p.slices && d < p.dim;
  float rest[N] = {};
  for (int n = blockIdx.x; n < p.tokens; n += gridDim.x) {
    float sum[N] = {};
    for (int b = slice; active && b < p.batch; b += p.slices * kInFlight) {
      add_rows(p, n, b, d, sum, rest);
    }
    float* out = p.pos + static_cast<int64_t>(n) * p.dim + d;
    if (p.pos) add_slices(p.slices, p.columns, active, sum, out);
  }
  float* out = p.partial + static_cast<int64_t>(blockIdx.x) * p.dim + d;
  if (p.partial) add_slices(p.slices, p.columns, active, rest, out);
}

// ---- host ----

// Elements of 16 bytes, if rows of `dim` elements at all of these addresses and strides allow them.
template <typename T>
int vector_of(int64_t dim, std::initializer_list<const void*> pointers,
              std::initializer_list<int64_t> strides) {
  constexpr int kVector = 16 / sizeof(T);
  const auto whole = [](int64_t n) { return n % kVector == 0; };
  const auto on_16 = [](const void* pointer) { return aligned(pointer, 16); };
  return whole(dim) && std::all_of(strides.begin(), strides.end(), whole) &&
                 std::all_of(pointers.begin(), pointers.end(), on_16)
             ? kVector
             : 1;
}

template <typename T>
void place(Place<T> p, Stream stream) {
  require(int64_t{p.batch} * p.rows < (int64_t{1} << 31), "tokens: B * N must be below 2^31");
  if (p.total() == 0 || p.dim == 0) return;
  constexpr int kVector = 16 / sizeof(T);
  const int n = vector_of<T>(p.dim,
                             {p.source, p.out, p.fill.same, p.fill.single, p.bias.same,
                              p.bias.single, p.pos.same, p.pos.single},
                             {p.stride_b, p.stride_row, p.pos.stride});
  p.vectors = p.dim / n;
  // As many rows as the threads load at once, but for small problems: those need more blocks.
  const int least = std::max(1, kThreads / p.vectors);
  const int64_t shared_out = ceil_divide(p.total(), busy_blocks(kThreads));
  p.block_rows = static_cast<int>(std::clamp<int64_t>(shared_out, least, least * kInFlight));
  p.by_vectors = Divider(p.vectors), p.by_rows = Divider(p.rows);
  const dim3 grid(static_cast<unsigned>(ceil_divide(p.total(), p.block_rows)));
  launch(n == 1 ? place_kernel<1, T> : place_kernel<kVector, T>, grid, kThreads, 0, stream, p);
}

// Blocks of `sum`, which is also the number of rows of its partial sums.
inline int sum_blocks(int64_t tokens) {
  return static_cast<int>(std::min(busy_blocks(kThreads), tokens));
}

template <typename T, typename Id>
void sum(Sums<T, Id> p, Stream stream) {
  if (p.tokens == 0 || p.dim == 0) return;
  constexpr int kVector = 16 / sizeof(T);
  const int n =
      vector_of<T>(p.dim, {p.grad, p.moved, p.pos, p.partial}, {p.stride_b, p.stride_row});
  const int vectors = p.dim / n;
  p.columns = std::min(vectors, kThreads);
  const auto wanted = static_cast<int>(ceil_divide(p.batch, kInFlight));
  p.slices = std::clamp(wanted, 1, kThreads / p.columns);
  const auto warps = static_cast<int>(ceil_divide(p.columns * p.slices, kWarp));
  const dim3 grid(sum_blocks(p.tokens), static_cast<unsigned>(ceil_divide(vectors, p.columns)));
  const size_t shared = p.slices > 1 ? sizeof(float) * p.slices * p.columns * n : 0;
  launch(n == 1 ? sum_kernel<1, T, Id> : sum_kernel<kVector, T, Id>, grid, warps * kWarp, shared,
         stream, p);
}

// What the ops ask of their sizes.
inline int count(int64_t size) {
  require(size < (int64_t{1} << 31), "tokens: every size must be below 2^31");
  return static_cast<int>(size);
}

template <typename T>
Table<T> make_table(const void* data, bool single, int64_t stride) {
  return single ? Table<T>{nullptr, static_cast<const float*>(data), stride}
                : Table<T>{static_cast<const T*>(data), nullptr, stride};
}

// x: [B, N, D] of these sizes and strides; pos [N, D]; ids and out: [B, kept] and [B, kept, D].
template <typename T>
void forward(const T* x, const int64_t* sizes, const int64_t* strides, const Table<T>& pos,
             const int64_t* ids, int64_t kept, T* out, Stream stream) {
  Place<T> p{};
  p.source = x;
  p.stride_b = strides[0], p.stride_row = strides[1];
  p.source_by_id = p.pos_by_id = true;
  p.ids = ids;
  p.limit = sizes[1];
  p.pos = pos;
  p.out = out;
  p.batch = count(sizes[0]), p.rows = count(kept), p.dim = count(sizes[2]);
  place(p, stream);
}

// grad: [B, K, D] of these sizes and strides; ids: [B, tokens]; results may be null: not wanted.
template <typename T>
void backward(const T* grad, const int64_t* sizes, const int64_t* strides, const int64_t* ids,
              int64_t tokens, T* grad_x, float* grad_pos, Stream stream) {
  Sums<T, int64_t> p{};
  p.grad = grad;
  p.stride_b = strides[0], p.stride_row = strides[1];
  p.by_id = true;
  p.ids = ids;
  p.batch = count(sizes[0]), p.tokens = count(tokens), p.kept = count(sizes[1]);
  p.dim = count(sizes[2]);
  p.moved = grad_x, p.pos = grad_pos;
  sum(p, stream);
}

}  // namespace stmeta::gather_tokens
