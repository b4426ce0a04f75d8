// What stmeta::memory_scan and stmeta::ntm_scan share on a GPU (namespace scan), and then the
// forward and the backward of memory_scan.
//
// A block takes one episode, from its first step to its last, and keeps the episode's state in
// shared memory. Weights of the controller come from L2 at every step, packed so that neighbouring
// threads load neighbouring numbers. Where the rows of a memory do not fit shared memory, they lie
// in main memory and the rest stays as it is.
//
// Letters, besides those of memory_tile.cuh: T steps, R heads that read, K = H + R * M or H (H:
// hidden here), P numbers of a head, or of all heads in ntm_scan.
#pragma once

#include "lrua_step.cuh"

namespace stmeta::scan {

using namespace stmeta::memory;

constexpr int kSlices = 16;  // the most parts that the sum of a product is cut into

// [inner, wide], zero past the columns that there are.
struct Matrix {
  const float* data;
  int inner, wide;
};

struct Sequence {
  const char* op;                      // the host's, for its errors
  Shape s;                             // an element is one tile
  int steps, hidden, fed;              // T, H, K
  int of_reads, of_heads;              // R * M, and the numbers of all heads
  int every;                           // steps between two marks
  const float *recurrent, *interface;  // [4H, K], [numbers, H]
  Matrix by_recurrent, by_interface;   // transposed in the forward
  const int64_t* lengths;              // [B], or null: T each
  bool read_first;
  float eps;

  __host__ __device__ int vectors() const { return of_reads; }
  __host__ __device__ int numbers() const { return of_heads; }
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
__host__ __device__ inline int scratch_floats(const Sequence& p) {
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

// Opens the gates of step `at`. P: `gates`, `opened`, `cells` and `y`; M: `seen`, `cell`, `gates`
// and `scratch`. Call after a barrier; ends with one.
template <typename P, typename M>
__device__ inline void control(const P& p, int64_t at, const M& m) {
  const int hidden = p.hidden;
  const float* given = p.gates + at * 4 * hidden;
  multiply(p.by_recurrent, 4 * hidden, m.seen, [&](int n) { return given[n]; }, m.scratch, m.gates);
  float* opened = p.opened + at * 4 * hidden;
  for (int n = threadIdx.x; n < hidden; n += blockDim.x) {
    const float in = sigmoid(m.gates[n]), forget = sigmoid(m.gates[hidden + n]);
    const float value = tanhf(m.gates[2 * hidden + n]), out = sigmoid(m.gates[3 * hidden + n]);
    const float cell = forget * m.cell[n] + in * value, h = out * tanhf(cell);
    opened[n] = in;
    opened[hidden + n] = forget;
    opened[2 * hidden + n] = value;
    opened[3 * hidden + n] = out;
    p.cells[at * hidden + n] = m.cell[n] = cell;
    p.y[at * (hidden + p.vectors()) + n] = m.seen[n] = h;
  }
  __syncthreads();
}

// Step t of element b back, from the gradients of its heads' numbers. Call after a barrier; ends
// with one.
template <typename P, typename M>
__device__ inline void uncontrol(const P& p, int64_t b, int t, const M& m) {
  const int hidden = p.hidden;
  const int64_t at = b * p.steps + t;
  const float* grad = p.grad_y + at * (hidden + p.vectors());
  const auto given = [&](int n) { return grad[n] + m.d_seen[n]; };
  multiply(p.by_interface, hidden, m.d_heads, given, m.scratch, m.d_h);
  const float* opened = p.opened + at * 4 * hidden;
  const float* before = t == 0 ? p.c + b * hidden : p.cells + (at - 1) * hidden;
  for (int n = threadIdx.x; n < hidden; n += blockDim.x) {
    const float in = opened[n], forget = opened[hidden + n];
    const float value = opened[2 * hidden + n], out = opened[3 * hidden + n];
    const float shown = tanhf(p.cells[at * hidden + n]), d = m.d_h[n];
    const float cell = m.d_cell[n] + d * out * (1.0f - shown * shown);
    m.d_gates[n] = cell * value * in * (1.0f - in);
    m.d_gates[hidden + n] = cell * before[n] * forget * (1.0f - forget);
    m.d_gates[2 * hidden + n] = cell * in * (1.0f - value * value);
    m.d_gates[3 * hidden + n] = d * shown * out * (1.0f - out);
    m.d_cell[n] = cell * forget;
  }
  __syncthreads();
  copy(m.d_gates, 4 * hidden, p.d_gates + at * 4 * hidden);
  const auto none = [](int) { return 0.0f; };
  multiply(p.by_recurrent, p.fed, m.d_gates, none, m.scratch, m.d_seen);
}

// ---- host ----

// One thread for each number of the result: to[k, n] = from[k * row + n * column]. Static, as each
// op of a scan has its own.
static __global__ void __launch_bounds__(kThreads, 1)
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
inline int64_t pack(Sequence& p, bool turned, float* to, Stream stream) {
  const int gates = 4 * p.hidden;
  p.by_recurrent = packed(p.recurrent, turned, gates, p.fed, to, stream);
  const int64_t first = int64_t{p.by_recurrent.inner} * p.by_recurrent.wide;
  float* second = to == nullptr ? nullptr : to + first;
  p.by_interface = packed(p.interface, turned, p.numbers(), p.hidden, second, stream);
  return first + int64_t{p.by_interface.inner} * p.by_interface.wide;
}

// Sizes of a sequence of `heads` heads; pointers and options are the caller's to set.
inline void size_sequence(Sequence& p, const char* op, int64_t batch, int64_t rows, int64_t width,
                          int64_t heads, int64_t steps, int64_t hidden, int64_t fed, int64_t read,
                          int64_t numbers) {
  p.op = op;
  p.s = make_shape(op, batch, rows, width, heads);
  const int64_t large = int64_t{1} << 31;
  const auto check = [&](bool holds, const char* rule) {
    if (!holds) throw std::runtime_error(std::string(op) + ": " + rule);
  };
  check(rows * std::max(p.s.pitch, p.s.slots) < large && rows * heads < large && steps < large &&
            4 * hidden < large && numbers < large,
        "the cuda backend takes less than 2^31 numbers of an element, 2^29 hidden units and 2^31 "
        "steps; use 'eager'");
  check(fed == hidden || fed == hidden + read,
        "recurrent must be [4 H, K] with K = H or H + R * M");
  p.steps = static_cast<int>(steps), p.hidden = static_cast<int>(hidden);
  p.fed = static_cast<int>(fed), p.of_reads = static_cast<int>(read);
  p.of_heads = static_cast<int>(numbers);
  p.every = 1;
  while (int64_t{p.every} * p.every < steps) ++p.every;
  const int64_t tile = ceil_divide(rows * p.s.lanes, 2), work = std::max(tile, 4 * hidden);
  p.s.threads =
      static_cast<int>(std::clamp<int64_t>(ceil_divide(work, kWarp) * kWarp, kWarp, kThreads));
}

// What a kernel's block has, of arrays that `Layout` takes from one arena for the rows of the
// memory and from another for the rest.
struct Room {
  bool whole;      // the rows, too, are in shared memory
  size_t shared;   // bytes
  int64_t floats;  // of main memory, for each element
};

template <typename Layout, typename P>
Room room_of(const P& p, bool whole) {
  Arena all{nullptr}, rows{nullptr}, rest{nullptr};
  static_cast<void>(Layout(all, all, p));
  if (whole && all.used <= usable_shared()) return {true, all.used, 0};
  static_cast<void>(Layout(rows, rest, p));
  if (rest.used > usable_shared()) {
    throw std::runtime_error(
        std::string(p.op) + ": the controller and its heads must fit " +
        std::to_string(usable_shared()) + " bytes of shared memory on this GPU, got " +
        std::to_string(rest.used) + " bytes of " + std::to_string(p.hidden) + " hidden units and " +
        std::to_string(p.of_heads) + " numbers of the heads; use fewer of either, or 'eager'");
  }
  return {false, rest.used, static_cast<int64_t>(rows.used / sizeof(float))};
}

}  // namespace stmeta::scan

namespace stmeta::memory_scan {

using namespace stmeta::scan;

struct Scan : Sequence {
  int per_head;  // P
  bool shared, strength, write_key;
  float decay;
};

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

// Sizes of a scan; pointers and options are the caller's to set.
inline Scan make_scan(int64_t batch, int64_t rows, int64_t width, int64_t heads, int64_t steps,
                      int64_t hidden, int64_t fed, bool write_key) {
  Scan p{};
  const int64_t per_head = (write_key ? 1 : 2) * width + 2;
  size_sequence(p, "memory_scan", batch, rows, width, heads, steps, hidden, fed, heads * width,
                heads * per_head);
  require(heads <= rows || batch == 0, "memory_scan: there must be at least as many rows as heads");
  p.write_key = write_key, p.per_head = static_cast<int>(per_head);
  return p;
}

}  // namespace stmeta::memory_scan
