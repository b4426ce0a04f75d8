// How the CUDA memory ops cut their work, and the second stage of their sums.
//
// What a batch element's rows add up to (reads, gradients of keys, erase, add, ...) is `sums`, an
// array in shared memory: vectors [count, pitch], then kScalars numbers for each head [slots]. The
// block of an only tile finishes them; those of several tiles leave them in main memory as
// partials, which finish_kernel adds, tile by tile in order.
#pragma once

#include <string>

#include "cuda/memory/memory_tile.cuh"

namespace stmeta::memory {

constexpr int kScalars = 2;
constexpr int kVectors = 2;  // plain ones; the keys' come after them

// What becomes of the sums. Null pointers and zero counts: not there.
template <typename T>
struct Finish {
  T* vectors[kVectors];  // [B, count, M], the sums as they are
  int counts[kVectors];
  const T* key;          // [B, H, M]
  T* grad_key;           // [B, H, M], from the sums for keys of unit length
  T* scalars[kScalars];  // [B, H]
  float eps;

  __host__ __device__ int vector_count(const Shape& s) const {
    return counts[0] + counts[1] + (key ? s.heads : 0);
  }
  __host__ __device__ int size(const Shape& s) const {
    return vector_count(s) * s.pitch + kScalars * s.slots;
  }
};

// With u = k / (|k| + eps): dk = du / (|k| + eps) - (du . k) k / (|k| (|k| + eps)^2).
template <typename T>
__device__ inline void finish_keys(const Shape& s, int batch, const Finish<T>& f,
                                   const float* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int h = static_cast<int>(threadIdx.x) / kWarp; h < s.heads; h += warps) {
    const int64_t first = (static_cast<int64_t>(batch) * s.heads + h) * s.width;
    float square = 0.0f, product = 0.0f;
    for (int m = lane; m < s.width; m += kWarp) {
      const float k = to_float(f.key[first + m]);
      square += k * k;
      product += k * sums[h * s.pitch + m];
    }
    const float length = sqrtf(warp_sum(square)), scale = 1.0f / (length + f.eps);
    product = warp_sum(product);
    const float along = length > 0.0f ? product * scale * scale / length : 0.0f;
    for (int m = lane; m < s.width; m += kWarp) {
      const float k = to_float(f.key[first + m]);
      f.grad_key[first + m] = from_float<T>(sums[h * s.pitch + m] * scale - along * k);
    }
  }
}

template <typename T>
__device__ inline void finish(const Shape& s, int batch, const Finish<T>& f, const float* sums) {
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (f.vectors[i]) store_vectors(s, batch, sums, f.counts[i], f.vectors[i]);
    sums += f.counts[i] * s.pitch;
  }
  if (f.key) {
    finish_keys(s, batch, f, sums);
    sums += s.heads * s.pitch;
  }
  for (int h = threadIdx.x; h < s.heads; h += blockDim.x) {
#pragma unroll
    for (int i = 0; i < kScalars; ++i) {
      if (f.scalars[i]) {
        f.scalars[i][static_cast<int64_t>(batch) * s.heads + h] =
            from_float<T>(sums[i * s.slots + h]);
      }
    }
  }
}

// Ends a block whose sums are complete. Call after a barrier.
template <typename T>
__device__ inline void conclude(const Shape& s, const Place& at, const Finish<T>& f,
                                const float* sums, float* partials) {
  if (s.tiles == 1) return finish(s, at.batch, f, sums);
  copy(sums, f.size(s), partials + static_cast<int64_t>(blockIdx.x) * f.size(s));
}

// A block is a batch element. partials: [B, tiles, size].
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    finish_kernel(const __grid_constant__ Shape s, const __grid_constant__ Finish<T> f,
                  const float* __restrict__ partials) {
  float* sums = reinterpret_cast<float*>(dynamic_shared());
  const int size = f.size(s), batch = static_cast<int>(blockIdx.x);
  partials += static_cast<int64_t>(batch) * s.tiles * size;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    float sum = 0.0f;
#pragma unroll 4
    for (int t = 0; t < s.tiles; ++t) sum += partials[static_cast<int64_t>(t) * size + i];
    sums[i] = sum;
  }
  __syncthreads();
  finish(s, batch, f, sums);
}

// ---- host ----

// What a block can have of dynamic shared memory, besides the arrays that kernels declare: at most
// 8 KB, of which a test makes sure.
inline size_t usable_shared() { return shared_limit() - 8192; }

// Of a block whose arrays `Layout` takes from an arena.
template <typename T, template <typename> typename Layout>
size_t shared_bytes(const Shape& s) {
  Arena arena{nullptr};
  static_cast<void>(Layout<T>(arena, s));
  return arena.used;
}

// Numbers of scratch that the partials take.
template <typename T>
int64_t partial_size(const Shape& s, const Finish<T>& f) {
  return s.tiles == 1 ? 0 : int64_t{s.batch} * s.tiles * f.size(s);
}

template <typename T>
void finish_partials(const Shape& s, const Finish<T>& f, const float* partials, Stream stream) {
  if (s.tiles == 1) return;
  launch(finish_kernel<T>, dim3(static_cast<unsigned>(s.batch)), s.threads,
         f.size(s) * sizeof(float), stream, s, f, partials);
}

// The shape of an op with one tile for each element.
inline Shape make_shape(const char* op, int64_t batch, int64_t rows, int64_t width, int64_t heads) {
  if (heads > kMaxHeads || width > kMaxWidth || rows > (int64_t{1} << 26) ||
      batch * std::max<int64_t>(rows, 1) >= (int64_t{1} << 31)) {
    throw std::runtime_error(
        std::string(op) + ": the cuda backend takes at most " + std::to_string(kMaxHeads) +
        " heads, rows of " + std::to_string(kMaxWidth) +
        ", 2^26 rows and less than 2^31 of them in all, got " + std::to_string(heads) +
        " heads and [B, N, M] = [" + std::to_string(batch) + ", " + std::to_string(rows) + ", " +
        std::to_string(width) + "]; use 'triton' or 'eager'");
  }
  Shape s{};
  s.batch = static_cast<int>(batch), s.rows = static_cast<int>(rows);
  s.width = static_cast<int>(width), s.heads = static_cast<int>(heads);
  s.pitch = std::max(8, (s.width + 7) / 8 * 8);
  s.slots = s.heads <= 4 ? 4 : s.heads <= 8 ? 8 : 16;
  s.lanes = lanes_for(s.pitch, kQuad);
  s.tile = std::max(s.rows, 1), s.tiles = 1;
  return s;
}

// Cuts an element into tiles of `tile` rows; `size(shape)` is the shared memory of a block.
// tile = 0: one tile where `whole` and it fits, else as large as two blocks on a multiprocessor
// allow.
template <typename Size>
void cut(Shape& s, int tile, bool whole, Size size) {
  const auto set = [&](int rows) {
    s.tile = std::max(1, std::min(rows, s.rows));
    s.tiles = static_cast<int>(std::max<int64_t>(1, ceil_divide(s.rows, s.tile)));
    const int64_t work = ceil_divide(int64_t{s.tile} * s.lanes, 2 * kWarp) * kWarp;
    s.threads = static_cast<int>(std::clamp<int64_t>(work, kWarp, kThreads));
    return size(s);
  };
  if (tile > 0) {
    set(tile);
  } else if (!whole || set(s.rows) > usable_shared()) {
    tile = kTile;
    while (set(tile) > usable_shared() / 2 && tile > 1) tile /= 2;
  }
  require(size(s) <= usable_shared(),
          "memory op: a row does not fit the shared memory of this GPU; use 'triton'");
  require(int64_t{s.batch} * s.tiles < (int64_t{1} << 31), "memory op: too many tiles");
}

// Of a block that works on the weights of an element.
inline int element_threads(const Shape& s) {
  const int64_t work = ceil_divide(int64_t{s.rows} * s.slots, 4 * kWarp) * kWarp;
  return static_cast<int>(std::clamp<int64_t>(work, kWarp, kThreads));
}

template <typename T>
Strided<T> make_strided(const Shape& s, const T* data, const int64_t* strides) {
  constexpr int kEach = 16 / sizeof(T);
  const bool wide = strides[2] == 1 && s.width % kEach == 0 && strides[0] % kEach == 0 &&
                    strides[1] % kEach == 0 && aligned(data, 16);
  return {data, strides[0], strides[1], strides[2], wide};
}

}  // namespace stmeta::memory
