// Passes of the CUDA memory ops over a tile: dot products with its rows, sums of them, and outer
// products added to them.
//
// A thread takes the same four columns of the same rows in each pass, so that passes need a barrier
// only where weights or vectors change hands. Letters and arrays are those of memory_tile.cuh.
#pragma once

#include "cuda/memory/memory_tile.cuh"

namespace stmeta::memory {

// The rows of a tile, as passes read them.
template <typename T>
struct Rows {
  const T* tile;
  int pitch;

  __device__ void load(int n, int column, float (&x)[kQuad]) const {
    load_floats(tile + n * pitch + column, x);
  }
};

// Four columns of heads [first, first + 4); zero where there are none.
__device__ inline void take(const Shape& s, const float* vectors, int first, int heads, int column,
                            float (&x)[kHeads][kQuad]) {
#pragma unroll
  for (int k = 0; k < kHeads; ++k) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) x[k][j] = 0.0f;
    if (first + k < heads && column < s.pitch) {
      load_floats(vectors + (first + k) * s.pitch + column, x[k]);
    }
  }
}

__device__ inline void take(const float* weights, int first, int heads, float (&w)[kHeads]) {
#pragma unroll
  for (int k = 0; k < kHeads; ++k) w[k] = first + k < heads ? weights[first + k] : 0.0f;
}

// Adds the lanes' parts of dot products, and stores those of a row, or adds them to what is there.
template <int K>
__device__ inline void lane_sums(const Shape& s, float (&dot)[K]) {
  for (int offset = s.lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int k = 0; k < K; ++k) dot[k] += __shfl_xor_sync(0xffffffffu, dot[k], offset);
  }
}

// dots[n, h] (+)= row n . vector h, and squares[n] = |row n|^2 unless it is null, without heads
// too.
template <typename Source>
__device__ inline void row_dots(const Shape& s, int rows, const Source& source,
                                const float* vectors, int heads, bool add, float* dots,
                                float* squares) {
  const Lanes by(s.lanes);
  for (int base = 0; base < s.pitch; base += by.count * kQuad) {
    const int column = base + by.own * kQuad;
    for (int first = 0; first == 0 || first < heads; first += kHeads) {
      float v[kHeads][kQuad];
      take(s, vectors, first, heads, column, v);
      for (int start = 0; start < rows; start += by.step) {  // the same for all lanes of a warp
        const int n = start + by.row;
        float dot[kHeads + 1] = {}, x[kQuad] = {};
        if (n < rows && column < s.pitch) source.load(n, column, x);
#pragma unroll
        for (int j = 0; j < kQuad; ++j) {
#pragma unroll
          for (int k = 0; k < kHeads; ++k) dot[k] += x[j] * v[k][j];
          dot[kHeads] += x[j] * x[j];
        }
        lane_sums(s, dot);
        if (n >= rows || by.own > 0) continue;
        const bool more = base > 0;
#pragma unroll
        for (int k = 0; k < kHeads; ++k) {
          float* out = dots + n * s.slots + first + k;
          if (first + k < heads) *out = (add || more ? *out : 0.0f) + dot[k];
        }
        if (squares && first == 0) squares[n] = (more ? squares[n] : 0.0f) + dot[kHeads];
      }
    }
  }
}

// out[h] = sum over rows of weights[n, h] * row n. Barriers inside.
template <typename Source>
__device__ inline void column_sums(const Shape& s, int rows, const Source& source,
                                   const float* weights, int heads, float* scratch, float* out) {
  const Lanes by(s.lanes);
  for (int base = 0; base < s.pitch; base += by.count * kQuad) {
    const int column = base + by.own * kQuad;
    for (int first = 0; first < heads; first += kHeads) {
      float sum[kHeads][kQuad] = {};
      for (int n = by.row; n < rows && column < s.pitch; n += by.step) {
        float x[kQuad], w[kHeads];
        source.load(n, column, x);
        take(weights + n * s.slots, first, heads, w);
#pragma unroll
        for (int k = 0; k < kHeads; ++k) {
#pragma unroll
          for (int j = 0; j < kQuad; ++j) sum[k][j] += w[k] * x[j];
        }
      }
      store_columns(s, sum, base, first, heads, scratch, out);
    }
  }
}

// row n = add * row n + sum over heads of weights[n, h] * vector h; fp32.
__device__ inline void add_outer(const Shape& s, int rows, const float* weights,
                                 const float* vectors, int heads, bool add, float* tile) {
  const Lanes by(s.lanes);
  for (int column = by.own * kQuad; column < s.pitch; column += by.count * kQuad) {
    for (int first = 0; first == 0 || first < heads; first += kHeads) {
      float v[kHeads][kQuad];
      take(s, vectors, first, heads, column, v);
      for (int n = by.row; n < rows; n += by.step) {
        float x[kQuad] = {}, w[kHeads];
        float* row = tile + n * s.pitch + column;
        if (add || first > 0) load_floats(row, x);
        take(weights + n * s.slots, first, heads, w);
#pragma unroll
        for (int k = 0; k < kHeads; ++k) {
#pragma unroll
          for (int j = 0; j < kQuad; ++j) x[j] += w[k] * v[k][j];
        }
        store_floats(row, x);
      }
    }
  }
}

}  // namespace stmeta::memory
