// What the forward and the backward of stmeta::memory_scan share on a GPU.
//
// A block takes one episode, from its first step to its last, and keeps the episode's state in
// shared memory. Weights of the controller come from L2 at every step, packed so that neighbouring
// threads load neighbouring numbers. Where the rows of a memory do not fit shared memory, they lie
// in main memory and the rest stays as it is.
//
// Letters, besides those of memory_tile.cuh: T steps, R heads, K = H + R * M or H (H: hidden here),
// P numbers of a head.
#pragma once

#include "lrua_step.cuh"

namespace stmeta::memory_scan {

using namespace stmeta::memory;

constexpr int kSlices = 16;  // the most parts that the sum of a product is cut into

// [inner, wide], zero past the columns that there are.
struct Matrix {
  const float* data;
  int inner, wide;
};

struct Scan {
  Shape s;                             // an element is one tile
  int steps, hidden, fed, per_head;    // T, H, K, P
  int every;                           // steps between two marks
  const float *recurrent, *interface;  // [4H, K], [R * P, H]
  Matrix by_recurrent, by_interface;   // transposed in the forward
  const int64_t* lengths;              // [B], or null: T each
  bool read_first, shared, strength, write_key;
  float decay, eps;

  __host__ __device__ int vectors() const { return s.heads * s.width; }
  __host__ __device__ int numbers() const { return s.heads * per_head; }
  __host__ __device__ int marks() const { return (steps + every - 1) / every; }
  __host__ __device__ int64_t memory_size() const { return int64_t{s.rows} * s.width; }
  __host__ __device__ int64_t weight_size() const { return int64_t{s.heads} * s.rows; }
  // The steps of an episode, whatever `lengths` says.
  __device__ int length(int64_t batch) const {
    if (lengths == nullptr) return steps;
    return static_cast<int>(max(int64_t{0}, min(lengths[batch], int64_t{steps})));
  }
};

__host__ __device__ inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

// Parts of a sum, so that all threads of a block have something to add.
__host__ __device__ inline int slices_of(const Matrix& w, int threads) {
  return min(kSlices, max(1, threads / max(1, w.wide / kQuad)));
}

// Floats of scratch that products and `column_sums` need.
__host__ __device__ inline int scratch_floats(const Scan& p) {
  const int first = slices_of(p.by_recurrent, p.s.threads) * p.by_recurrent.wide;
  const int second = slices_of(p.by_interface, p.s.threads) * p.by_interface.wide;
  return max(max(first, second), column_scratch(p.s));
}

// The place of an element whose weights and vectors are in arrays of its own.
__device__ inline Place own_place(const Shape& s) { return {0, 0, 0, s.rows}; }

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// out[n] = first(n) + sum of x[k] * w[k, n], for n < width. Call after a barrier; ends with one.
template <typename First>
__device__ inline void multiply(const Matrix& w, int width, const float* x, const First& first,
                                float* scratch, float* out) {
  const int threads = static_cast<int>(blockDim.x);
  const int quads = w.wide / kQuad, slices = slices_of(w, threads);
  for (int i = threadIdx.x; i < quads * slices; i += threads) {
    const int slice = i / quads, column = (i - slice * quads) * kQuad;
    const float* row = w.data + static_cast<int64_t>(slice) * w.wide + column;
    float sum[kQuad] = {};
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      if (slice == 0 && column + j < width) sum[j] = first(column + j);
    }
#pragma unroll 8
    for (int k = slice; k < w.inner; k += slices) {
      float v[kQuad];
      load_floats(row, v);
      row += static_cast<int64_t>(slices) * w.wide;
#pragma unroll
      for (int j = 0; j < kQuad; ++j) sum[j] += x[k] * v[j];
    }
    store_floats(scratch + slice * w.wide + column, sum);
  }
  __syncthreads();
  for (int n = threadIdx.x; n < width; n += threads) {
    float sum = scratch[n];
    for (int slice = 1; slice < slices; ++slice) sum += scratch[slice * w.wide + n];
    out[n] = sum;
  }
  __syncthreads();
}

// units[h] = key / (|key| + eps), by a warp for each head.
__device__ inline void make_units(const Shape& s, const float* keys, float eps, float* units) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int h = static_cast<int>(threadIdx.x) / kWarp; h < s.heads; h += warps) {
    const float* key = keys + h * s.pitch;
    float square = 0.0f;
    for (int m = lane; m < s.pitch; m += kWarp) square += key[m] * key[m];
    const float scale = 1.0f / (sqrtf(warp_sum(square)) + eps);
    for (int m = lane; m < s.pitch; m += kWarp) units[h * s.pitch + m] = key[m] * scale;
  }
}

// write[n, r] = gate * previous + (1 - gate) * least.
__device__ inline void write_weights(const Scan& p, const float* previous, const float* gate,
                                     const int* least, float* write) {
  const int h = own_head(p.s);
  for (int i = threadIdx.x; i < p.s.rows * p.s.slots; i += blockDim.x) {
    float value = 0.0f;
    if (h < p.s.heads) {
      const bool to = lrua_step::is_least(p.s, p.shared, least, i / p.s.slots, h);
      value = gate[h] * previous[i] + (1.0f - gate[h]) * (to ? 1.0f : 0.0f);
    }
    write[i] = value;
  }
}

// The memory after the write; `to` may be `from`. No barriers.
__device__ inline void write_rows(const Shape& s, const float* from, const int* least,
                                  const float* write, const float* add, float* to) {
  const Lanes by(s.lanes);
  for (int n = by.row; n < s.rows; n += by.step) {
    const bool erased = lrua_step::is_least(s, true, least, n, 0);
    for (int column = by.own * kQuad; column < s.pitch; column += by.count * kQuad) {
      float x[kQuad] = {};
      if (!erased) load_floats(from + n * s.pitch + column, x);
      for (int h = 0; h < s.heads; ++h) {
        const float w = write[n * s.slots + h];
        float a[kQuad];
        load_floats(add + h * s.pitch + column, a);
#pragma unroll
        for (int j = 0; j < kQuad; ++j) x[j] += w * a[j];
      }
      store_floats(to + n * s.pitch + column, x);
    }
  }
}

__device__ inline void fill(float* to, int64_t count, float value) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = value;
}

// A memory [N, M] to or from a tile.
__device__ inline void load_memory(const Scan& p, const float* from, float* tile) {
  const bool wide = p.s.width % kQuad == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  stage(p.s, own_place(p.s), Strided<float>{from, 0, p.s.width, 1, wide}, tile);
}

__device__ inline void store_memory(const Scan& p, const float* tile, float* to) {
  unstage(p.s, own_place(p.s), tile, to);
}

// ---- host ----

// One thread for each number of the result: to[k, n] = from[k * row + n * column].
__global__ void __launch_bounds__(kThreads, 1)
    pack_kernel(const float* __restrict__ from, int64_t row, int64_t column, int inner, int width,
                int wide, float* __restrict__ to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<int64_t>(inner) * wide) return;
  const int k = static_cast<int>(i / wide), n = static_cast<int>(i % wide);
  to[i] = n < width ? from[k * row + n * column] : 0.0f;
}

inline Matrix packed(const float* from, bool turned, int rows, int columns, float* to,
                     Stream stream) {
  const int inner = turned ? columns : rows, width = turned ? rows : columns;
  const int wide = round_up(width, kQuad);
  const int64_t count = int64_t{inner} * wide;
  if (to != nullptr && count > 0) {
    constexpr int kEach = 256;
    launch(pack_kernel, dim3(static_cast<unsigned>(ceil_divide(count, kEach))), kEach, 0, stream,
           from, int64_t{turned ? 1 : columns}, int64_t{turned ? columns : 1}, inner, width, wide,
           to);
  }
  return {to, inner, wide};
}

// Makes both packed matrices; without `to` only their sizes. Gives the floats that they take.
inline int64_t pack(Scan& p, bool turned, float* to, Stream stream) {
  const int gates = 4 * p.hidden;
  p.by_recurrent = packed(p.recurrent, turned, gates, p.fed, to, stream);
  const int64_t first = int64_t{p.by_recurrent.inner} * p.by_recurrent.wide;
  float* second = to == nullptr ? nullptr : to + first;
  p.by_interface = packed(p.interface, turned, p.numbers(), p.hidden, second, stream);
  return first + int64_t{p.by_interface.inner} * p.by_interface.wide;
}

// Sizes of a scan; pointers and options are the caller's to set.
inline Scan make_scan(int64_t batch, int64_t rows, int64_t width, int64_t heads, int64_t steps,
                      int64_t hidden, int64_t fed, bool write_key) {
  Scan p{};
  p.s = make_shape("memory_scan", batch, rows, width, heads);
  const int64_t large = int64_t{1} << 31;
  require(heads <= rows || batch == 0, "memory_scan: there must be at least as many rows as heads");
  require(rows * std::max(p.s.pitch, p.s.slots) < large && steps < large && 4 * hidden < large,
          "memory_scan: the cuda backend takes less than 2^31 numbers of an element, 2^29 hidden "
          "units and 2^31 steps; use 'eager'");
  require(fed == hidden || fed == hidden + heads * width,
          "memory_scan: recurrent must be [4 H, K] with K = H or H + R * M");
  p.steps = static_cast<int>(steps), p.hidden = static_cast<int>(hidden);
  p.fed = static_cast<int>(fed), p.write_key = write_key;
  p.per_head = (write_key ? 1 : 2) * p.s.width + 2;
  p.every = 1;
  while (int64_t{p.every} * p.every < steps) ++p.every;
  const int64_t tile = ceil_divide(rows * p.s.lanes, 2), work = std::max(tile, 4 * hidden);
  p.s.threads =
      static_cast<int>(std::clamp<int64_t>(ceil_divide(work, kWarp) * kWarp, kWarp, kThreads));
  return p;
}

// What a kernel's block has, of arrays that `Layout` takes from one arena for the rows of the
// memory and from another for the rest.
struct Room {
  bool whole;      // the rows, too, are in shared memory
  size_t shared;   // bytes
  int64_t floats;  // of main memory, for each element
};

template <typename Layout>
Room room_of(const Scan& p, bool whole) {
  Arena all{nullptr}, rows{nullptr}, rest{nullptr};
  static_cast<void>(Layout(all, all, p));
  if (whole && all.used <= usable_shared()) return {true, all.used, 0};
  static_cast<void>(Layout(rows, rest, p));
  require(rest.used <= usable_shared(),
          "memory_scan: the controller's state does not fit the shared memory of this GPU; use "
          "fewer hidden units, or 'eager'");
  return {false, rest.used, static_cast<int64_t>(rows.used / sizeof(float))};
}

}  // namespace stmeta::memory_scan
