// What the forward and the backward of stmeta::lrua_scan share on a GPU; scan_controller.cuh says
// how a block takes an episode.
#pragma once

#include "cuda/scan/scan_launch.cuh"

namespace stmeta::lrua_scan {

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
                      int64_t hidden, int64_t recurrent_size, bool write_key) {
  Scan p{};
  const int64_t per_head = (write_key ? 1 : 2) * width + 2;
  size_sequence(p, "lrua_scan", batch, rows, width, heads, steps, hidden, recurrent_size,
                heads * width, heads * per_head);
  require(heads <= rows || batch == 0, "lrua_scan: there must be at least as many rows as heads");
  p.write_key = write_key, p.per_head = static_cast<int>(per_head);
  return p;
}

}  // namespace stmeta::lrua_scan
