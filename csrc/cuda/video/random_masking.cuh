// CUDA kernel of stmeta::random_masking and its launch. Reference:
// stmeta/ops/video/random_masking.py.
//
// A block is a row of the batch. It finds the `keep` smallest of U numbers by their bits, two at a
// time from the highest on: count the numbers that begin alike, and go on where the last kept one
// lies. Some nine passes over numbers that stay in L1 decide for uniform noise, 16 always.
//
// Letters: B batch, U units of a row, N tokens of a row, K kept tokens.
#pragma once

#include "common/cuda_reduce.cuh"

namespace stmeta::random_masking {

constexpr int kThreads = 512;
constexpr int kUnits = 4;  // of a thread, before a block gets more threads

// Token n of a row belongs to unit n / run % units: units repeat, and have `run` tokens at a time.
struct Problem {
  int batch, units, keep;
  int repeats, run, tokens;
  Divider by_run, by_units;

  __host__ __device__ int kept() const { return keep * repeats * run; }
};

// Unsigned numbers in the order of the noise: -0 is 0, and NaN comes last, as in a sort.
__device__ inline uint32_t order_of(float noise) {
  if (noise != noise) return 0xffffffffu;
  const float x = noise == 0.0f ? 0.0f : noise;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The kept units: those whose bits under `mask` are below `bits`, and the first `ties` equal ones.
struct Choice {
  uint32_t bits = 0, mask = 0;
  int ties;
};

// Of four bins, the counts of the first three side by side; U is below 2^21.
constexpr int kCountBits = 21;

__device__ inline int count_of(uint64_t counts, int bin) {
  return static_cast<int>(counts >> (bin * kCountBits)) & ((1 << kCountBits) - 1);
}

__device__ inline Choice choose(const Problem& p, const float* __restrict__ noise) {
  Choice choice;
  choice.ties = p.keep;
  int matching = p.units;  // that begin with the bits of the choice
  for (int shift = 30; shift >= 0 && choice.ties < matching; shift -= 2) {
    uint64_t own = 0;
#pragma unroll 4
    for (int u = threadIdx.x; u < p.units; u += blockDim.x) {
      const uint32_t order = order_of(noise[u]);
      const uint32_t bin = order >> shift & 3u;
      if (((order ^ choice.bits) & choice.mask) == 0 && bin < 3) {
        own += uint64_t{1} << (bin * kCountBits);
      }
    }
    uint64_t counts;
    block_prefix(own, counts);
    uint32_t bin = 0;
    for (; bin < 3 && choice.ties > count_of(counts, bin); ++bin) {
      choice.ties -= count_of(counts, bin);
      matching -= count_of(counts, bin);
    }
    if (bin < 3) matching = count_of(counts, bin);
    choice.bits |= bin << shift;
    choice.mask |= 3u << shift;
  }
  return choice;
}

// places[u] = number of kept units before unit u if it is kept, else -1 - number of masked ones.
// A thread has units side by side, so that what it counts lies before what the next one counts.
__device__ inline void rank(const Problem& p, const float* __restrict__ noise, const Choice& choice,
                            int* places) {
  const int each = (p.units + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
  const int first = min(static_cast<int>(threadIdx.x) * each, p.units);
  const int last = min(first + each, p.units);
  uint64_t own = 0;  // units below the choice, and equal ones
  for (int u = first; u < last; ++u) {
    const uint32_t order = order_of(noise[u]) & choice.mask;
    if (order < choice.bits) own += 1;
    if (order == choice.bits) own += uint64_t{1} << kCountBits;
  }
  uint64_t total;
  const uint64_t before = block_prefix(own, total);
  int below = count_of(before, 0), equal = count_of(before, 1);
  for (int u = first; u < last; ++u) {
    const uint32_t order = order_of(noise[u]) & choice.mask;
    const int kept = below + min(equal, choice.ties);
    const bool keep = order < choice.bits || (order == choice.bits && equal < choice.ties);
    places[u] = keep ? kept : -1 - (u - kept);
    if (order < choice.bits) ++below;
    if (order == choice.bits) ++equal;
  }
}

// Reads B * U numbers, writes 17 bytes for each of B * N tokens.
template <int kMost>
__global__ void __launch_bounds__(kMost)
    masking_kernel(const __grid_constant__ Problem p, const float* __restrict__ noise,  // [B, U]
                   int* places,                        // [B, U], scratch
                   int64_t* __restrict__ ids_keep,     // [B, K]
                   int64_t* __restrict__ ids_restore,  // [B, N]
                   int64_t* __restrict__ ids_masked,   // [B, N - K]
                   uint8_t* __restrict__ mask) {       // [B, N]
  const int64_t row = blockIdx.x;
  noise += row * p.units;
  places += row * p.units;
  rank(p, noise, choose(p, noise), places);
  __syncthreads();
  const int kept = p.kept();
  for (int n = threadIdx.x; n < p.tokens; n += blockDim.x) {
    uint32_t step = n;
    uint32_t unit = p.by_run.split(step);
    const int repeat = p.by_units.split(unit);
    const int place = places[unit];
    const bool masked = place < 0;
    const int of_repeat = masked ? p.units - p.keep : p.keep;  // units of this kind
    const int index = (repeat * of_repeat + (masked ? -1 - place : place)) * p.run + step;
    if (masked) {
      ids_masked[row * (p.tokens - kept) + index] = n;
    } else {
      ids_keep[row * kept + index] = n;
    }
    ids_restore[row * p.tokens + n] = masked ? kept + index : index;
    mask[row * p.tokens + n] = masked;
  }
}

// ---- host ----

// units = [ut, up], grid = [T, P]: see the reference.
inline Problem make_problem(int64_t batch, int64_t keep, const int64_t* units,
                            const int64_t* grid) {
  const int64_t count = units[0] * units[1], tokens = grid[0] * grid[1];
  require(tokens < (int64_t{1} << kCountBits),
          "random_masking: the cuda backend takes less than 2^21 tokens; use 'triton'");
  require(0 <= keep && keep <= count, "random_masking: keep must be from 0 to the number of units");
  require(batch < (int64_t{1} << 31), "random_masking: B must be below 2^31");
  Problem p{};
  p.batch = static_cast<int>(batch), p.units = static_cast<int>(count);
  p.keep = static_cast<int>(keep), p.tokens = static_cast<int>(tokens);
  p.repeats = static_cast<int>(units[0] > 1 ? 1 : grid[0]);
  p.run = static_cast<int>(units[1] > 1 ? 1 : grid[1]);
  p.by_run = Divider(std::max(p.run, 1)), p.by_units = Divider(std::max(p.units, 1));
  return p;
}

// places: [B, U]; the results: [B, K], [B, N], [B, N - K], [B, N].
inline void forward(const Problem& p, const float* noise, int* places, int64_t* ids_keep,
                    int64_t* ids_restore, int64_t* ids_masked, uint8_t* mask, Stream stream) {
  if (p.batch == 0 || p.tokens == 0) return;
  const int64_t warps = ceil_divide(p.units, kWarp * kUnits);
  const int threads = static_cast<int>(std::min<int64_t>(warps * kWarp, kThreads));
  launch(masking_kernel<kThreads>, dim3(static_cast<unsigned>(p.batch)), threads, 0, stream, p,
         noise, places, ids_keep, ids_restore, ids_masked, mask);
}

}  // namespace stmeta::random_masking
