// CUDA kernels of stmeta::allocation and their launches. Reference:
// stmeta/ops/memory/allocation.py.
//
// A block takes a row of the batch. It sorts keys of 8 bytes, usage first and then the row's
// number, which makes the order stable, and scans the products; all in shared memory, or, where the
// keys do not fit, in scratch in main memory. Products are doubles: hundreds of roundings would add
// up. Forward: 2 * B * N numbers and B * N of int32 moved. Backward: 3 * B * N, and B * N of int32.
#pragma once

#include "cuda/memory/memory_launch.cuh"

namespace stmeta::allocation {

constexpr int kThreads = 512;

struct Problem {
  int batch, rows, padded;  // B, N; N rounded up to a power of two
};

// Unsigned numbers in the order of the usages: -0 is 0, and NaN comes last, as in torch's sort.
__device__ inline uint32_t order_of(float usage) {
  if (usage != usage) return 0xffffffffu;
  const float x = usage == 0.0f ? 0.0f : usage;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ inline float usage_of(uint64_t item) {
  const uint32_t order = static_cast<uint32_t>(item >> 32);
  const uint32_t bits = order >> 31 ? order ^ 0x80000000u : ~order;
  float usage;
  memcpy(&usage, &bits, sizeof usage);
  return usage;
}

// `padded` items in ascending order (Batcher 1968, bitonic). Starts and ends with a barrier.
__device__ inline void sort_items(uint64_t* items, int padded) {
  __syncthreads();
  for (int size = 2; size <= padded; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = threadIdx.x; i < padded / 2; i += blockDim.x) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const uint64_t a = items[low], b = items[high];
        if ((a > b) == ((low & size) == 0)) {
          items[low] = b;
          items[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// x -> shift + scale * x.
struct Affine {
  double scale, shift;

  // `next` after this one.
  __device__ Affine then(const Affine& next) const {
    return {next.scale * scale, next.shift + next.scale * shift};
  }
};

__device__ inline Affine from_below(const Affine& own, int distance) {
  return {__shfl_up_sync(0xffffffffu, own.scale, distance),
          __shfl_up_sync(0xffffffffu, own.shift, distance)};
}

__device__ inline Affine flipped(const Affine& own) {
  return {__shfl_xor_sync(0xffffffffu, own.scale, kWarp - 1),
          __shfl_xor_sync(0xffffffffu, own.shift, kWarp - 1)};
}

// The maps of all threads before this one, the first one's first; with kReverse of those after it,
// the last one's first. Barriers as in block_sum.
template <bool kReverse>
__device__ inline Affine block_chain(Affine own) {
  __shared__ Affine of_warp[kWarp];
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (kReverse) own = flipped(own);
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const Affine before = from_below(own, distance);
    if (lane >= distance) own = before.then(own);
  }
  if (lane == kWarp - 1) of_warp[warp] = own;
  own = from_below(own, 1);
  if (lane == 0) own = {1.0, 0.0};
  if (kReverse) own = flipped(own);
  __syncthreads();
  Affine others{1.0, 0.0};
  for (int i = 0; i < (kReverse ? warps - 1 - warp : warp); ++i) {
    others = others.then(of_warp[kReverse ? warps - 1 - i : i]);
  }
  __syncthreads();
  return others.then(own);
}

// Rows, in order of usage, that lie side by side in one thread.
struct Chunk {
  int first, last;

  __device__ explicit Chunk(int rows) {
    const int threads = static_cast<int>(blockDim.x), each = (rows + threads - 1) / threads;
    first = min(static_cast<int>(threadIdx.x) * each, rows);
    last = min(first + each, rows);
  }
};

// 8 bytes for each row: in shared memory, or in the block's part of scratch.
template <typename Item>
__device__ inline Item* items_of(int count, void* scratch) {
  if (!scratch) return reinterpret_cast<Item*>(dynamic_shared());
  return static_cast<Item*>(scratch) + static_cast<int64_t>(blockIdx.x) * count;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Problem p, const T* __restrict__ usage,  // [B, N]
                   T* __restrict__ out, int* __restrict__ order,                    // [B, N]
                   void* scratch) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * p.rows;
  uint64_t* items = items_of<uint64_t>(p.padded, scratch);
  for (int n = threadIdx.x; n < p.padded; n += blockDim.x) {
    items[n] = n < p.rows ? uint64_t{order_of(to_float(usage[row + n]))} << 32 | n : ~uint64_t{0};
  }
  sort_items(items, p.padded);
  const Chunk chunk(p.rows);
  Affine own{1.0, 0.0};
  for (int j = chunk.first; j < chunk.last; ++j) own.scale *= usage_of(items[j]);
  double before = block_chain<false>(own).scale;
  for (int j = chunk.first; j < chunk.last; ++j) {
    const float u = usage_of(items[j]);
    const int n = static_cast<int>(items[j] & 0xffffffffu);
    out[row + n] = from_float<T>(static_cast<float>((1.0 - u) * before));
    order[row + j] = n;
    before *= u;
  }
}

// With P[j] = prod_{i < j} u[i] and S[j] = sum_{k > j} g[k] (1 - u[k]) prod_{j < i < k} u[i], rows
// in order: du[j] = P[j] (S[j] - g[j]). No quotient, as u may be 0.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Problem p, const T* __restrict__ usage,  // [B, N]
                    const T* __restrict__ grad, const int* __restrict__ order,       // [B, N]
                    T* __restrict__ out,                                             // [B, N]
                    void* scratch) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * p.rows;
  usage += row, grad += row, order += row, out += row;
  double* before = items_of<double>(p.rows, scratch);  // P, for the thread that has made it
  const Chunk chunk(p.rows);
  Affine product{1.0, 0.0}, sum{1.0, 0.0};
  for (int j = chunk.first; j < chunk.last; ++j) {
    product.scale *= to_float(usage[order[j]]);
  }
  for (int j = chunk.last - 1; j >= chunk.first; --j) {
    const double u = to_float(usage[order[j]]);
    sum = sum.then(Affine{u, to_float(grad[order[j]]) * (1.0 - u)});
  }
  double head = block_chain<false>(product).scale, tail = block_chain<true>(sum).shift;
  for (int j = chunk.first; j < chunk.last; ++j) {
    before[j] = head;
    head *= to_float(usage[order[j]]);
  }
  for (int j = chunk.last - 1; j >= chunk.first; --j) {
    const int n = order[j];
    const double u = to_float(usage[n]), g = to_float(grad[n]);
    out[n] = from_float<T>(static_cast<float>(before[j] * (tail - g)));
    tail = g * (1.0 - u) + u * tail;
  }
}

// ---- host ----

inline Problem make_problem(int64_t batch, int64_t rows) {
  require(rows <= (int64_t{1} << 29) && batch < (int64_t{1} << 31),
          "allocation: the cuda backend takes at most 2^29 rows, and B below 2^31; use 'eager'");
  Problem p{static_cast<int>(batch), static_cast<int>(rows), 1};
  while (p.padded < p.rows) p.padded *= 2;
  return p;
}

inline int threads_for(int64_t items) {
  return static_cast<int>(std::clamp<int64_t>(ceil_divide(items, kWarp) * kWarp, kWarp, kThreads));
}

inline size_t shared_bytes(int items) { return sizeof(uint64_t) * items; }

// Floats of scratch that `items` for each block need; none where they fit shared memory and `fit`.
inline int64_t scratch_size(const Problem& p, int items, bool fit) {
  return fit && shared_bytes(items) <= memory::usable_shared() ? 0 : int64_t{2} * p.batch * items;
}

// scratch: null where scratch_size(p, p.padded, true) is 0.
template <typename T>
void forward(const Problem& p, const T* usage, T* out, int* order, float* scratch, Stream stream) {
  if (p.batch == 0 || p.rows == 0) return;
  launch(forward_kernel<T>, dim3(static_cast<unsigned>(p.batch)), threads_for(p.padded / 2),
         scratch ? 0 : shared_bytes(p.padded), stream, p, usage, out, order,
         static_cast<void*>(scratch));
}

// scratch: null where scratch_size(p, p.rows, true) is 0.
template <typename T>
void backward(const Problem& p, const T* usage, const T* grad, const int* order, T* out,
              float* scratch, Stream stream) {
  if (p.batch == 0 || p.rows == 0) return;
  launch(backward_kernel<T>, dim3(static_cast<unsigned>(p.batch)), threads_for(p.rows),
         scratch ? 0 : shared_bytes(p.rows), stream, p, usage, grad, order, out,
         static_cast<void*>(scratch));
}

}  // namespace stmeta::allocation
