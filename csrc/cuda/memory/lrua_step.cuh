// CUDA kernels of stmeta::lrua_step and their launches. Reference: stmeta/ops/memory/lrua_step.py.
//
// Cut as ntm_step.cuh: one kernel where an element fits the shared memory of a block, else kernels
// over tiles of its rows with kernels over the weights of an element between them.
#pragma once

#include <cstring>

#include "cuda/memory/content_addressing.cuh"
#include "cuda/memory/erase_add.cuh"

namespace stmeta::lrua_step {

using namespace stmeta::memory;

// What the backward needs as well; the number of heads is R.
template <typename T>
struct Inputs {
  Strided<T> memory;  // [B, N, M]
  const T* previous;  // [B, R, N]
  const T* key;       // [B, R, M]
  const T* strength;  // [B, R]
  const T* gate;      // [B, R]
  const T* add;       // [B, R, M]
  bool read_first, shared;
  float eps;
};

template <typename T>
struct Forward : Inputs<T> {
  const T* usage;  // [B, N]
  T* out;          // [B, N, M]
  T* usage_out;    // [B, N]
  T* weight;       // [B, R, N]
  T* read;         // [B, R, M]
  int64_t* rows;   // [B, R]
  float decay;

  Finish<T> finish(const Shape& s) const {
    return {{read, nullptr}, {s.heads, 0}, nullptr, nullptr, {}, 0};
  }
};

// Sorts as the number does; NaN comes last, and the lower row first among equals.
__device__ inline uint64_t rank_of(float usage, int row) {
  uint32_t bits = 0;
  const float value = usage + 0.0f;  // -0 becomes 0
  memcpy(&bits, &value, sizeof bits);
  bits = value != value ? 0xffffffffu : bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(row);
}

// least[r] = the r-th least used row of an element; one search over N each. Ends with a barrier.
template <typename T>
__device__ inline void find_least(const Shape& s, const T* usage, int* least) {
  struct Tag {};
  auto& of_warp = block_array<Tag, uint64_t[kThreads / kWarp]>();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  uint64_t last = 0;  // below every rank: its bits are those of a NaN
  for (int r = 0; r < s.heads; ++r) {
    uint64_t best = ~uint64_t{0};
    for (int n = threadIdx.x; n < s.rows; n += blockDim.x) {
      const uint64_t rank = rank_of(to_float(usage[n]), n);
      if (rank < best && rank > last) best = rank;
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const uint64_t other = __shfl_xor_sync(0xffffffffu, best, offset);
      if (other < best) best = other;
    }
    if (static_cast<int>(threadIdx.x) % kWarp == 0) of_warp[warp] = best;
    __syncthreads();
    for (int w = 0; w < warps; ++w) best = of_warp[w] < best ? of_warp[w] : best;
    last = best;
    if (threadIdx.x == 0) least[r] = static_cast<int>(static_cast<uint32_t>(best));
    __syncthreads();
  }
}

// Whether row n is where head h writes by its gate; least: [R].
__device__ inline bool is_least(const Shape& s, bool shared, const int* least, int n, int h) {
  if (!shared) return least[h] == n;
  bool found = false;
  for (int r = 0; r < s.heads; ++r) found |= least[r] == n;
  return found;
}

// write[n, r] = gate * previous + (1 - gate) * least; [rows, slots].
template <typename T>
__device__ inline void write_weights(const Shape& s, const Place& at, const Inputs<T>& p,
                                     const int* least, float* write) {
  const int h = own_head(s);
  const float gate = of_head(s, at, p.gate, h);
  for (int i = threadIdx.x; i < at.rows * s.slots; i += blockDim.x) {
    const int n = i / s.slots;
    float value = 0.0f;
    if (h < s.heads) {
      const float to = is_least(s, p.shared, least, at.first + n, h) ? 1.0f : 0.0f;
      value = gate * to_float(p.previous[head_index(s, at, n, h)]) + (1.0f - gate) * to;
    }
    write[i] = value;
  }
}

// Clears the least used rows of a tile. Barriers on both sides.
template <typename T>
__device__ inline void clear(const Shape& s, const Place& at, const int* least, T* tile) {
  __syncthreads();
  for (int h = 0; h < s.heads; ++h) {
    const int n = least[h] - at.first;
    if (n < 0 || n >= at.rows) continue;
    for (int m = threadIdx.x; m < s.pitch; m += blockDim.x) {
      tile[n * s.pitch + m] = from_float<T>(0.0f);
    }
  }
  __syncthreads();
}

// The write, in place. Barriers inside.
template <typename T>
__device__ inline void write(const Shape& s, const Place& at, const int* least,
                             const float* weights, const float* add, T* tile) {
  clear(s, at, least, tile);
  erase_add::write<false, true>(s, at.rows, erase_add::Writes{weights, nullptr, add, s.heads},
                                tile);
}

template <typename T>
struct Shared {
  T* tile;
  int* least;
  float *weights, *write, *squares, *keys, *add, *sums, *scratch;

  __host__ __device__ Shared(Arena& arena, const Shape& s)
      : tile(arena.take<T>(s.tile * s.pitch)),
        least(arena.take<int>(kMaxHeads)),
        weights(arena.take<float>(s.tile * s.slots)),
        write(arena.take<float>(s.tile * s.slots)),
        squares(arena.take<float>(s.tile)),
        keys(arena.take<float>(s.heads * s.pitch)),
        add(arena.take<float>(s.heads * s.pitch)),
        sums(arena.take<float>(s.heads * s.pitch + kScalars * s.slots)),
        scratch(arena.take<float>(column_scratch(s))) {}
};

__device__ inline void load_least(const Shape& s, int batch, const int64_t* rows, int* least) {
  for (int h = threadIdx.x; h < s.heads; h += blockDim.x) {
    least[h] = static_cast<int>(rows[static_cast<int64_t>(batch) * s.heads + h]);
  }
}

__device__ inline void store_least(const Shape& s, int batch, const int* least, int64_t* rows) {
  for (int h = threadIdx.x; h < s.heads; h += blockDim.x) {
    rows[static_cast<int64_t>(batch) * s.heads + h] = least[h];
  }
}

// Scores of a block's rows, and the write: what is staged afterwards is `read_first` ? the memory
// as it was : the memory after the write. `shared.least` and `write` are there. Barriers inside.
template <typename T>
__device__ inline void score(const Shape& s, const Place& at, const Forward<T>& p,
                             const Shared<T>& shared, float* scores) {
  stage(s, at, p.memory, shared.tile);
  load_vectors(s, at.batch, p.add, s.heads, shared.add);
  content_addressing::load_keys(s, at.batch, p.key, p.eps, shared.keys);  // and a barrier
  if (!p.read_first) write(s, at, shared.least, shared.write, shared.add, shared.tile);
  const Rows<T> rows{shared.tile, s.pitch};
  row_dots(s, at.rows, rows, shared.keys, s.heads, false, scores, shared.squares);
  __syncthreads();
  content_addressing::to_scores(s, at, shared.squares, p.strength, p.eps, scores);
}

// Weights of an element from its scores, in place, and its usage. Ends with a barrier.
template <typename T>
__device__ inline void address(const Shape& s, const Place& at, const Forward<T>& p,
                               const float* write, float* scores) {
  content_addressing::softmax(s, scores);
  store_heads(s, at, scores, p.weight);
  __syncthreads();
  const int64_t first = static_cast<int64_t>(at.batch) * s.rows;
  for (int n = threadIdx.x; n < s.rows; n += blockDim.x) {
    float sum = 0.0f;
    for (int h = 0; h < s.heads; ++h) sum += scores[n * s.slots + h] + write[n * s.slots + h];
    p.usage_out[first + n] = from_float<T>(p.decay * to_float(p.usage[first + n]) + sum);
  }
  __syncthreads();
}

// Reads a staged tile. Ends with a barrier.
template <typename T>
__device__ inline void read(const Shape& s, const Place& at, const Shared<T>& shared) {
  for (int i = threadIdx.x; i < kScalars * s.slots; i += blockDim.x) {
    shared.sums[s.heads * s.pitch + i] = 0.0f;
  }
  const Rows<T> rows{shared.tile, s.pitch};
  column_sums(s, at.rows, rows, shared.weights, s.heads, shared.scratch, shared.sums);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    whole_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p,
                 const __grid_constant__ Finish<T> f) {
  Arena arena{dynamic_shared()};
  const Shared<T> shared(arena, s);
  const Place at = tile_of(s);
  find_least(s, p.usage + static_cast<int64_t>(at.batch) * s.rows, shared.least);
  store_least(s, at.batch, shared.least, p.rows);
  write_weights(s, at, p, shared.least, shared.write);
  score(s, at, p, shared, shared.weights);
  address(s, at, p, shared.write, shared.weights);
  read(s, at, shared);
  if (p.read_first) write(s, at, shared.least, shared.write, shared.add, shared.tile);
  __syncthreads();
  unstage(s, at, shared.tile, p.out);
  conclude(s, at, f, shared.sums, nullptr);
}

// A block is an element.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    least_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p) {
  __shared__ int least[kMaxHeads];
  const Place at = element_of(s);
  find_least(s, p.usage + static_cast<int64_t>(at.batch) * s.rows, least);
  store_least(s, at.batch, least, p.rows);
}

// Scores and writes; scores: fp32 [B, N, slots].
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    score_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p,
                 float* __restrict__ scores) {
  Arena arena{dynamic_shared()};
  const Shared<T> shared(arena, s);
  const Place at = tile_of(s);
  load_least(s, at.batch, p.rows, shared.least);
  __syncthreads();
  write_weights(s, at, p, shared.least, shared.write);
  score(s, at, p, shared, shared.weights);
  copy(shared.weights, at.rows * s.slots, weights_at(s, at, scores));
  if (p.read_first) write(s, at, shared.least, shared.write, shared.add, shared.tile);
  __syncthreads();
  unstage(s, at, shared.tile, p.out);
}

// A block is an element. scores become weights; write: scratch; fp32 [B, N, slots].
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    address_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p,
                   float* scores, float* write) {
  __shared__ int least[kMaxHeads];
  const Place at = element_of(s);
  load_least(s, at.batch, p.rows, least);
  __syncthreads();
  write_weights(s, at, p, least, weights_at(s, at, write));
  address(s, at, p, weights_at(s, at, write), weights_at(s, at, scores));
}

// memory: the one that is read.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    read_kernel(const __grid_constant__ Shape s, const __grid_constant__ Strided<T> memory,
                const __grid_constant__ Finish<T> f, const float* __restrict__ weights,
                float* __restrict__ partials) {
  Arena arena{dynamic_shared()};
  const Shared<T> shared(arena, s);
  const Place at = tile_of(s);
  stage(s, at, memory, shared.tile);
  copy(weights_at(s, at, weights), at.rows * s.slots, shared.weights);
  __syncthreads();
  read(s, at, shared);
  conclude(s, at, f, shared.sums, partials);
}

// ---- host ----

// tile: see cut().
template <typename T, template <typename> typename Layout>
Shape shape_of(int64_t batch, int64_t rows, int64_t width, int64_t heads, int tile) {
  Shape s = make_shape("lrua_step", batch, rows, width, heads);
  require(heads <= rows, "lrua_step: there must be at least as many rows as heads");
  cut(s, tile, true, shared_bytes<T, Layout>);
  return s;
}

// Numbers of scratch.
template <typename T>
int64_t scratch_size(const Shape& s, const Forward<T>& p) {
  return s.tiles == 1 ? 0 : 2 * s.weights() + partial_size(s, p.finish(s));
}

template <typename T>
void forward(const Shape& s, const Forward<T>& p, float* scratch, Stream stream) {
  if (s.batch == 0) return;
  const Finish<T> f = p.finish(s);
  const dim3 blocks(s.blocks()), elements(static_cast<unsigned>(s.batch));
  const size_t shared = shared_bytes<T, Shared>(s);
  if (s.tiles == 1) return launch(whole_kernel<T>, blocks, s.threads, shared, stream, s, p, f);
  const int64_t strides[] = {int64_t{s.rows} * s.width, s.width, 1};
  const Strided<T> source = p.read_first ? p.memory : make_strided<T>(s, p.out, strides);
  float *scores = scratch, *write = scores + s.weights(), *partials = write + s.weights();
  launch(least_kernel<T>, elements, element_threads(s), 0, stream, s, p);
  launch(score_kernel<T>, blocks, s.threads, shared, stream, s, p, scores);
  launch(address_kernel<T>, elements, element_threads(s), 0, stream, s, p, scores, write);
  launch(read_kernel<T>, blocks, s.threads, shared, stream, s, source, f, scores, partials);
  finish_partials(s, f, partials, stream);
}

}  // namespace stmeta::lrua_step
