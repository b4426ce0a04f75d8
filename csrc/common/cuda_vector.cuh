// Loads and stores of several elements at once, to and from fp32.
#pragma once

#include "cuda_base.cuh"

namespace stmeta {

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

__device__ inline float to_float(uint8_t v) { return static_cast<float>(v); }
__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ inline T from_float(float v);
template <>
__device__ inline float from_float<float>(float v) {
  return v;
}
template <>
__device__ inline __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// N elements in as few accesses of at most 16 bytes as possible. `source` must be aligned to
// min(16, N * sizeof(T)) bytes.
template <int N, typename T>
__device__ inline void load_floats(const T* source, float (&out)[N]) {
  constexpr int kEach = N * sizeof(T) <= 16 ? N : 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < N; i += kEach) {
    const auto pack = *reinterpret_cast<const Pack<T, kEach>*>(source + i);
#pragma unroll
    for (int k = 0; k < kEach; ++k) out[i + k] = to_float(pack.at[k]);
  }
}

template <int N, typename T>
__device__ inline void store_floats(T* target, const float (&x)[N]) {
  constexpr int kEach = N * sizeof(T) <= 16 ? N : 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < N; i += kEach) {
    Pack<T, kEach> pack;
#pragma unroll
    for (int k = 0; k < kEach; ++k) pack.at[k] = from_float<T>(x[i + k]);
    *reinterpret_cast<Pack<T, kEach>*>(target + i) = pack;
  }
}

// Elements [first, first + N) of a row of `count`, zero past its end. `wide`: the row is
// contiguous, aligned to 16 bytes, and N divides `count`.
template <int N, typename T>
__device__ inline void load_row(const T* row, int first, int count, int64_t stride, bool wide,
                                float (&out)[N]) {
  if (wide && first < count) {
    load_floats<N>(row + first, out);
    return;
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    out[k] = first + k < count ? to_float(row[(first + k) * stride]) : 0.0f;
  }
}

template <int N, typename T>
__device__ inline void store_row(T* row, int first, int count, bool wide, const float (&x)[N]) {
  if (wide && first < count) {
    store_floats<N>(row + first, x);
    return;
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (first + k < count) row[first + k] = from_float<T>(x[k]);
  }
}

inline bool aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace stmeta
