// CUDA kernel of stmeta::random_masking and its launch. Reference: stmeta/ops/random_masking.py.
//
// A block takes a row of the batch. It finds the noise of the last unit to keep by a radix select,
// four bits at a time; ties are counted in the order of the units. Then it numbers the tokens.
#pragma once

#include <cstring>

#include "../common/cuda_base.cuh"

namespace stmeta::random_masking {

constexpr int kMaxThreads = 1024;
constexpr int kDigitBits = 4;
constexpr int kDigits = 1 << kDigitBits;

struct Problem {
  int batch, units, tokens, places, keep, kept;  // keep of units, kept of tokens
  bool per_frame, per_place;                     // whether units differ in time, in space
  Divider by_places;
};

struct Outputs {
  int64_t* ids_keep;     // [B, K]
  int64_t* ids_restore;  // [B, N]
  int64_t* ids_masked;   // [B, N - K]
  bool* mask;            // [B, N]
};

// An unsigned number that orders as the noise does; -0 is 0.
__device__ inline uint32_t key_of(float noise) {
  noise += 0.0f;
  uint32_t bits;
  memcpy(&bits, &noise, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Threshold {
  uint32_t key;
  int below;  // units with a smaller key
};

// The key of rank `keep - 1`. All threads call.
__device__ inline Threshold find_threshold(const float* __restrict__ noise, int units, int keep) {
  __shared__ int histogram[kDigits];
  Threshold at = {0, 0};
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    if (threadIdx.x < kDigits) histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int u = threadIdx.x; u < units; u += blockDim.x) {
      const uint32_t key = key_of(noise[u]);
      // Digits above this one agree. A shift by 32 is no shift, hence two.
      if ((key ^ at.key) >> shift >> kDigitBits == 0) {
        atomicAdd(histogram + (key >> shift) % kDigits, 1);
      }
    }
    __syncthreads();
    int digit = 0;
#pragma unroll
    for (int d = 0; d < kDigits - 1; ++d) {
      if (digit == d && at.below + histogram[d] < keep) {
        at.below += histogram[d];
        ++digit;
      }
    }
    at.key |= static_cast<uint32_t>(digit) << shift;
    __syncthreads();
  }
  return at;
}

// Sum of `value` over the threads before this one. All threads call.
__device__ inline int sum_before(int value) {
  __shared__ int of_thread[kWarp][kWarp + 1];  // one more, against bank conflicts
  __shared__ int of_warp[kWarp];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  of_thread[warp][lane] = value;
  __syncthreads();
  if (threadIdx.x < blockDim.x / kWarp) {
    int sum = 0;
    for (int i = 0; i < kWarp; ++i) sum += of_thread[threadIdx.x][i];
    of_warp[threadIdx.x] = sum;
  }
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < warp; ++i) sum += of_warp[i];
  for (int i = 0; i < lane; ++i) sum += of_thread[warp][i];
  __syncthreads();
  return sum;
}

// Items [first, last) of `count` that belong to this thread: a piece, so that ranks are in order.
struct Piece {
  int first, last;

  __device__ explicit Piece(int count) {
    const int each = (count + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
    first = min(static_cast<int>(threadIdx.x) * each, count);
    last = min(first + each, count);
  }
};

// flags[unit] = whether it is kept. All threads call; ends without a barrier.
__device__ inline void choose_units(const Problem& p, const float* __restrict__ noise, bool* flags) {
  const Threshold at = find_threshold(noise, p.units, p.keep);
  const Piece piece(p.units);
  int ties = 0;
  for (int u = piece.first; u < piece.last; ++u) ties += key_of(noise[u]) == at.key;
  int rank = at.below + sum_before(ties);
  for (int u = piece.first; u < piece.last; ++u) {
    const uint32_t key = key_of(noise[u]);
    flags[u] = key < at.key || (key == at.key && rank < p.keep);
    rank += key == at.key;
  }
}

__global__ void __launch_bounds__(kMaxThreads)
    forward_kernel(const __grid_constant__ Problem p, const float* __restrict__ noise,  // [B, units]
                   const __grid_constant__ Outputs out) {
  bool* flags = reinterpret_cast<bool*>(dynamic_shared());
  const int64_t b = blockIdx.x;
  choose_units(p, noise + b * p.units, flags);
  __syncthreads();
  const auto is_kept = [&](int token) {
    uint32_t place = token;
    const uint32_t frame = p.by_places.split(place);
    const int row = p.per_frame ? static_cast<int>(frame) : 0;
    return flags[p.per_place ? row * p.places + static_cast<int>(place) : row];
  };
  const Piece piece(p.tokens);
  int count = 0;
  for (int n = piece.first; n < piece.last; ++n) count += is_kept(n);
  int rank = sum_before(count);
  for (int n = piece.first; n < piece.last; ++n) {
    const bool kept = is_kept(n);
    const int64_t masked = n - rank;
    out.mask[b * p.tokens + n] = !kept;
    out.ids_restore[b * p.tokens + n] = kept ? rank : p.kept + masked;
    if (kept) {
      out.ids_keep[b * p.kept + rank++] = n;
    } else {
      out.ids_masked[b * (p.tokens - p.kept) + masked] = n;
    }
  }
}

// ---- host ----

inline Problem make_problem(int64_t batch, int64_t keep, const int64_t* units,
                            const int64_t* grid) {
  const int64_t count = units[0] * units[1], tokens = grid[0] * grid[1];
  require((units[0] == 1 || units[0] == grid[0]) && (units[1] == 1 || units[1] == grid[1]),
          "random_masking: each of units must be 1 or the number of the grid");
  require(keep >= 0 && keep <= count, "random_masking: keep must be in [0, units]");
  require(batch < (int64_t{1} << 31) && tokens < (int64_t{1} << 30),
          "random_masking: B must be below 2^31, and N below 2^30");
  Problem p{};
  p.batch = static_cast<int>(batch), p.units = static_cast<int>(count);
  p.tokens = static_cast<int>(tokens), p.places = static_cast<int>(grid[1]);
  p.keep = static_cast<int>(keep);
  p.kept = static_cast<int>(count > 0 ? keep * tokens / count : 0);
  p.per_frame = units[0] > 1, p.per_place = units[1] > 1;
  p.by_places = Divider(std::max(p.places, 1));
  return p;
}

inline void forward(const Problem& p, const float* noise, const Outputs& out, Stream stream) {
  if (p.batch == 0 || p.tokens == 0) return;
  const size_t shared = static_cast<size_t>(p.units);
  require(shared + 8 * 1024 <= shared_limit(),
          "random_masking: the units do not fit the shared memory of this GPU; use 'triton'");
  const int64_t warps = ceil_divide(std::max(p.units, p.tokens), kWarp);
  const int threads = static_cast<int>(std::min<int64_t>(warps * kWarp, kMaxThreads));
  launch(forward_kernel, dim3(static_cast<unsigned>(p.batch)), threads, shared, stream, p, noise,
         out);
}

}  // namespace stmeta::random_masking
