// What the forward and the backward of stmeta::ntm_scan share on a GPU; scan_controller.cuh says
// how a block takes a sequence.
//
// Letters: A heads in all, of which the first R read and the last W write; S taps; P numbers of all
// heads: of each its key, strength, sharpness, gate and shifts; then erase [W, M] and add [W, M].
#pragma once

#include "cuda/memory/ntm_step.cuh"
#include "cuda/scan/scan_launch.cuh"

namespace stmeta::ntm_scan {

using namespace stmeta::scan;
using location_addressing::Location;
using ntm_step::Access;

struct Scan : Sequence {
  int reads, taps, per_head;  // R, S, M + 3 + S
  bool tanh_key, tanh_add;

  __host__ __device__ int writes() const { return s.heads - reads; }
  // Where the erase vectors are among the numbers of all heads.
  __host__ __device__ int writing() const { return s.heads * per_head; }
  __device__ ntm_step::Heads heads_of() const { return {reads, writes(), read_first}; }
};

// What the heads of a step ask of the memory, in shared memory.
struct Asked {
  float *keys, *units, *erase, *add;         // [A, M], [A, pitch], [W, pitch] x2
  float *strength, *gate, *sharpen, *shift;  // [A] x3, [A, S]

  __host__ __device__ Asked(Arena& rest, const Scan& p)
      : keys(rest.take<float>(p.s.heads * p.s.width)),
        units(rest.take<float>(p.s.heads * p.s.pitch)),
        erase(rest.take<float>(p.writes() * p.s.pitch)),
        add(rest.take<float>(p.writes() * p.s.pitch)),
        strength(rest.take<float>(p.s.heads)),
        gate(rest.take<float>(p.s.heads)),
        sharpen(rest.take<float>(p.s.heads)),
        shift(rest.take<float>(p.s.heads * p.taps)) {}

  __device__ Location<float> location(const Scan& p, const float* previous) const {
    return {previous, gate, shift, sharpen, p.taps};
  }
};

// The erase and add vectors, of the shaped numbers of all heads. No barriers.
__device__ inline void spread_writing(const Scan& p, const float* heads, const Asked& a) {
  const float* erase = heads + p.writing();
  load_vectors(p.s, 0, erase, p.writes(), a.erase);
  load_vectors(p.s, 0, erase + p.writes() * p.s.width, p.writes(), a.add);
}

// All of them but the units. No barriers.
__device__ inline void spread_heads(const Scan& p, const float* heads, const Asked& a) {
  const int width = p.s.width;
  for (int i = threadIdx.x; i < p.s.heads * width; i += blockDim.x) {
    a.keys[i] = heads[i / width * p.per_head + i % width];
  }
  for (int i = threadIdx.x; i < p.s.heads * p.taps; i += blockDim.x) {
    a.shift[i] = heads[i / p.taps * p.per_head + width + 3 + i % p.taps];
  }
  for (int h = threadIdx.x; h < p.s.heads; h += blockDim.x) {
    const float* last = heads + h * p.per_head + width;
    a.strength[h] = last[0];
    a.sharpen[h] = 1.0f + last[1];
    a.gate[h] = last[2];
  }
  spread_writing(p, heads, a);
}

// The units, and the content weights [N, slots] on a memory [N, pitch]. Call after a barrier; a
// thread keeps its weights, see content_addressing::softmax.
__device__ inline void compare(const Scan& p, const float* memory, const Asked& a, float* squares,
                               float* weights) {
  content_addressing::load_keys(p.s, 0, a.keys, p.eps, a.units);  // and a barrier
  const Rows<float> rows{memory, p.s.pitch};
  row_dots(p.s, p.s.rows, rows, a.units, p.s.heads, false, weights, squares);
  __syncthreads();
  content_addressing::to_scores(p.s, own_place(p.s), squares, a.strength, p.eps, weights);
  content_addressing::softmax(p.s, weights);
}

// ---- host ----

// Sizes of a scan; pointers and options are the caller's to set.
inline Scan make_scan(int64_t batch, int64_t rows, int64_t width, int64_t heads, int64_t reads,
                      int64_t steps, int64_t hidden, int64_t recurrent_size, int64_t taps) {
  Scan p{};
  require(1 <= reads && reads < heads, "ntm_scan: R must be in [1, R + W)");
  require(taps % 2 == 1 && 1 <= taps && taps <= std::max<int64_t>(rows, 1),
          "ntm_scan: taps must be odd and in [1, N]");
  const int64_t per_head = width + 3 + taps;
  size_sequence(p, "ntm_scan", batch, rows, width, heads, steps, hidden, recurrent_size,
                reads * width, heads * per_head + 2 * (heads - reads) * width);
  p.reads = static_cast<int>(reads), p.taps = static_cast<int>(taps);
  p.per_head = static_cast<int>(per_head);
  return p;
}

}  // namespace stmeta::ntm_scan
