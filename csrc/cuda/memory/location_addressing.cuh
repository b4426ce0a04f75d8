// CUDA kernels of stmeta::location_addressing and their launches, and the pieces of them that
// ntm_step is made of. Reference: stmeta/ops/memory/location_addressing.py.
// A block takes all heads of an element; its numbers stay in shared memory, or, where they do not
// fit, in scratch in main memory. Forward: 3 * B * H * N moved. Backward: 5 * B * H * N.
#pragma once

#include "cuda/memory/memory_launch.cuh"

namespace stmeta::location_addressing {

using namespace stmeta::memory;

template <typename T>
struct Location {
  const T* previous;  // [B, H, N]
  const T* gate;      // [B, H]
  const T* shift;     // [B, H, S]
  const T* sharpen;   // [B, H]
  int taps;           // S
};

// The taps of a thread's head; none for heads that are not there.
template <typename T>
struct Taps {
  const T* shift;
  int count, reach, rows, slots;

  __device__ Taps(const Shape& s, const Place& at, const Location<T>& p, int h)
      : shift(p.shift + (static_cast<int64_t>(at.batch) * s.heads + h) * p.taps),
        count(h < s.heads ? p.taps : 0),
        reach(p.taps / 2),
        rows(s.rows),
        slots(s.slots) {}

  // sum over taps of shift[tap] * x[n - offset], around the ring; x is at the head of row 0.
  __device__ float forward(const float* x, int n) const {
    int from = n + reach;
    if (from >= rows) from -= rows;
    float sum = 0.0f;
    for (int tap = 0; tap < count; ++tap) {
      sum += to_float(shift[tap]) * x[from * slots];
      from = from > 0 ? from - 1 : rows - 1;
    }
    return sum;
  }

  // sum over taps of shift[tap] * x[n + offset].
  __device__ float backward(const float* x, int n) const {
    int from = n - reach;
    if (from < 0) from += rows;
    float sum = 0.0f;
    for (int tap = 0; tap < count; ++tap) {
      sum += to_float(shift[tap]) * x[from * slots];
      from = from + 1 < rows ? from + 1 : 0;
    }
    return sum;
  }
};

// ratio^exponent for ratio <= 1, of which a negative one counts as 0; x^0 = 1.
__device__ inline float power(float ratio, float exponent) {
  return powf(ratio < 0.0f ? 0.0f : ratio, exponent);
}

// `gated` holds the content weights [N, slots] and becomes gate * content + (1 - gate) * previous;
// a barrier follows.
template <typename T>
__device__ inline void interpolate(const Shape& s, const Place& at, const Location<T>& p,
                                   float* gated) {
  const int h = own_head(s);
  const float gate = of_head(s, at, p.gate, h);
  for (int i = threadIdx.x; i < s.rows * s.slots; i += blockDim.x) {
    const int n = i / s.slots;
    const float before = h < s.heads ? to_float(p.previous[head_index(s, at, n, h)]) : 0.0f;
    const float step = gated[i] - before;  // from the nearer end: exact at both
    gated[i] = gate < 0.5f ? before + gate * step : gated[i] - (1.0f - gate) * step;
  }
  __syncthreads();
}

// shifted = gated moved by the taps; gives the largest of the head, at least 0.
template <typename T>
__device__ inline float move(const Shape& s, const Taps<T>& taps, const float* gated,
                             float* shifted) {
  float largest = 0.0f;
  for (int i = threadIdx.x; i < s.rows * s.slots; i += blockDim.x) {
    shifted[i] = taps.forward(gated + own_head(s), i / s.slots);
    largest = larger(largest, shifted[i]);
  }
  return head_largest(s, largest);
}

// gated: content weights [N, slots], overwritten; weights: result. Barriers inside; needs none
// before where the same thread made `gated`.
template <typename T>
__device__ inline void locate(const Shape& s, const Place& at, const Location<T>& p, float* gated,
                              float* weights) {
  const int h = own_head(s), count = s.rows * s.slots;
  interpolate(s, at, p, gated);
  const float largest = move(s, Taps<T>(s, at, p, h), gated, weights);
  const float sharpen = of_head(s, at, p.sharpen, h);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    weights[i] = largest == 0.0f ? 0.0f : power(weights[i] / largest, sharpen);
    sum += weights[i];
  }
  sum = head_sum(s, sum);
  for (int i = threadIdx.x; largest != 0.0f && i < count; i += blockDim.x) weights[i] /= sum;
}

template <typename T>
struct LocationGrads {
  T* previous;  // [B, H, N]
  T* gate;      // [B, H]
  T* shift;     // [B, H, S]
  T* sharpen;   // [B, H]
};

// Gradient of the weights becomes that of the shifted weights, in `shifted`; gives that of sharpen.
// With r = v / vmax and p = r^sharpen: w = p / sum p. Uses up `grad`.
__device__ inline float unsharpen(const Shape& s, float sharpen, float largest, float* grad,
                                  float* shifted) {
  const int count = s.rows * s.slots;
  const bool nowhere = largest == 0.0f;  // nothing passes
  float sum = 1.0f;
  // Subtracts the mean, and then what rounding left of it: that would not average out.
  for (int pass = 0; pass < 2; ++pass) {
    float sums[2] = {};  // of p, and of grad * p
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const float p = nowhere ? 0.0f : power(shifted[i] / largest, sharpen);
      sums[0] += p;
      sums[1] += p * grad[i];
    }
    head_sums(s, sums);
    if (!nowhere) sum = sums[0];
    for (int i = threadIdx.x; i < count; i += blockDim.x) grad[i] -= sums[1] / sum;
  }
  float slope = 0.0f;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const float ratio = nowhere ? 0.0f : shifted[i] / largest;
    if (ratio > 0.0f) slope += grad[i] * (power(ratio, sharpen) / sum) * logf(ratio);
    // At 0 it passes, as in the reference's clamp.
    shifted[i] = nowhere || ratio < 0.0f
                     ? 0.0f
                     : sharpen * grad[i] * power(ratio, sharpen - 1.0f) / sum / largest;
  }
  return head_sum(s, slope);  // and a barrier, for `shifted`
}

// grad: gradient of the weights, becomes that of the content weights; gated, shifted: scratch; all
// [N, slots]. Barriers inside; needs none before where the same thread made `grad`.
template <typename T>
__device__ inline void locate_backward(const Shape& s, const Place& at, const Location<T>& p,
                                       const T* content, const LocationGrads<T>& out, float* grad,
                                       float* gated, float* shifted) {
  const int h = own_head(s), count = s.rows * s.slots;
  const int64_t head = static_cast<int64_t>(at.batch) * s.heads + h;
  const bool first = static_cast<int>(threadIdx.x) < s.heads;  // it writes a head's numbers
  const Taps<T> taps(s, at, p, h);
  load_heads(s, at, content, gated);
  interpolate(s, at, p, gated);
  const float largest = move(s, taps, gated, shifted);
  const float sharpen = of_head(s, at, p.sharpen, h);
  const float grad_sharpen = unsharpen(s, sharpen, largest, grad, shifted);
  for (int tap = 0; tap < p.taps; ++tap) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      int from = i / s.slots + p.taps / 2 - tap;
      from = from < 0 ? from + s.rows : from >= s.rows ? from - s.rows : from;
      sum += shifted[i] * gated[from * s.slots + h];
    }
    sum = head_sum(s, sum);
    if (first) out.shift[head * p.taps + tap] = from_float<T>(sum);
  }
  const float gate = of_head(s, at, p.gate, h);
  float grad_gate = 0.0f;
  for (int i = threadIdx.x; h < s.heads && i < count; i += blockDim.x) {
    const int n = i / s.slots;
    const int64_t index = head_index(s, at, n, h);
    const float value = taps.backward(shifted + h, n);
    grad_gate += value * (to_float(content[index]) - to_float(p.previous[index]));
    grad[i] = gate * value;
    out.previous[index] = from_float<T>((1.0f - gate) * value);
  }
  grad_gate = head_sum(s, grad_gate);
  if (!first) return;
  out.gate[head] = from_float<T>(grad_gate);
  out.sharpen[head] = from_float<T>(grad_sharpen);
}

// ---- kernels of the op ----

// `count` arrays [N, slots]: in shared memory, or in the element's part of scratch.
struct Arrays {
  float* first;
  int64_t each;

  __device__ Arrays(const Shape& s, int count, float* scratch)
      : first(reinterpret_cast<float*>(dynamic_shared())),
        each(static_cast<int64_t>(s.rows) * s.slots) {
    if (scratch) first = scratch + blockIdx.x * count * each;
  }
  __device__ float* operator[](int i) const { return first + i * each; }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Location<T> p,
                   const T* __restrict__ content, T* __restrict__ weight, float* scratch) {
  const Place at = element_of(s);
  const Arrays arrays(s, 2, scratch);
  load_heads(s, at, content, arrays[0]);
  locate(s, at, p, arrays[0], arrays[1]);
  store_heads(s, at, arrays[1], weight);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Location<T> p,
                    const __grid_constant__ LocationGrads<T> out, const T* __restrict__ content,
                    const T* __restrict__ grad, T* __restrict__ grad_content, float* scratch) {
  const Place at = element_of(s);
  const Arrays arrays(s, 3, scratch);
  load_heads(s, at, grad, arrays[0]);
  locate_backward(s, at, p, content, out, arrays[0], arrays[1], arrays[2]);
  store_heads(s, at, arrays[0], grad_content);
}

// ---- host ----

inline Shape shape_of(int64_t batch, int64_t rows, int64_t heads) {
  Shape s = make_shape("location_addressing", batch, rows, 0, heads);
  s.threads = element_threads(s);
  return s;
}

// Numbers of scratch that `count` arrays need; none where they fit shared memory and `fit`.
inline int64_t scratch_size(const Shape& s, int count, bool fit) {
  const size_t bytes = size_t{sizeof(float)} * count * s.rows * s.slots;
  return fit && bytes <= usable_shared() ? 0 : count * s.weights();
}

inline size_t shared_bytes(const Shape& s, int count, const float* scratch) {
  return scratch ? 0 : size_t{sizeof(float)} * count * s.rows * s.slots;
}

// scratch: null where scratch_size(s, 2, true) is 0.
template <typename T>
void forward(const Shape& s, const Location<T>& p, const T* content, T* weight, float* scratch,
             Stream stream) {
  if (s.batch == 0) return;
  launch(forward_kernel<T>, dim3(static_cast<unsigned>(s.batch)), s.threads,
         shared_bytes(s, 2, scratch), stream, s, p, content, weight, scratch);
}

// scratch: null where scratch_size(s, 3, true) is 0.
template <typename T>
void backward(const Shape& s, const Location<T>& p, const LocationGrads<T>& out, const T* content,
              const T* grad, T* grad_content, float* scratch, Stream stream) {
  if (s.batch == 0) return;
  launch(backward_kernel<T>, dim3(static_cast<unsigned>(s.batch)), s.threads,
         shared_bytes(s, 3, scratch), stream, s, p, out, content, grad, grad_content, scratch);
}

}  // namespace stmeta::location_addressing
