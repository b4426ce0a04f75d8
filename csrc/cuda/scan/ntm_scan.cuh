// CUDA kernel of stmeta::ntm_scan and its launch. Reference: stmeta/ops/scan/ntm_scan.py; how it is
// cut: scan_controller.cuh. A cluster loads 4 * H * K + P * H weights from L2 at each step.
#pragma once

#include "cuda/scan/ntm_scan_parts.cuh"

namespace stmeta::ntm_scan {

struct Forward : Scan {
  const float *gates, *bias;                     // [B, T, 4H], [P]
  const float *memory, *previous, *first_reads;  // [B, N, M], [B, A, N], [B, R * M]
  const float *h, *c;                            // [B, H]
  float *y, *memory_out, *weight_out, *c_out;
  float *activated, *cells, *heads, *weights;  // [B, T, 4H], [B, T, H], [B, T, P], [B, T, A, N]
  float* checkpoints;                          // [B, checkpoints, N, M]
};

struct Shared {
  float *tile, *content, *weights, *squares;
  float *input, *cell, *gates, *heads;  // [K], [H], [4H], [P]
  float* sums;                          // [R, pitch]
  Asked asked;
  float *scratch, *all;

  __host__ __device__ Shared(Arena& rows, Arena& rest, const Scan& p)
      : tile(rows.take<float>(p.s.rows * p.s.pitch)),
        content(rows.take<float>(p.s.rows * p.s.slots)),
        weights(rows.take<float>(p.s.rows * p.s.slots)),
        squares(rows.take<float>(p.s.rows)),
        input(rest.take<float>(p.recurrent_size)),
        cell(rest.take<float>(p.hidden)),
        gates(rest.take<float>(4 * p.hidden)),
        heads(rest.take<float>(p.numbers())),
        sums(rest.take<float>(p.reads * p.s.pitch)),
        asked(rest, p),
        scratch(rest.take<float>(scratch_floats(p))),
        all(rest.take<float>(shared_vectors(p))) {}
};

// Ends with a barrier.
__device__ inline void begin(const Forward& p, int64_t b, const Shared& m) {
  load_memory(p, p.memory + b * p.memory_size(), m.tile);
  copy(p.h + b * p.hidden, p.hidden, m.input);
  if (p.recurrent_size > p.hidden)
    copy(p.first_reads + b * p.vectors(), p.vectors(), m.input + p.hidden);
  copy(p.c + b * p.hidden, p.hidden, m.cell);
  __syncthreads();
}

// The shifts of a head: softmax of their numbers, in place.
__device__ inline void shape_shift(int taps, const float* bias, float* shift) {
  for (int k = 0; k < taps; ++k) shift[k] += bias[k];
  float limits = shift[0], sum = 0.0f;
  for (int k = 1; k < taps; ++k) limits = fmaxf(limits, shift[k]);
  for (int k = 0; k < taps; ++k) sum += shift[k] = expf(shift[k] - limits);
  for (int k = 0; k < taps; ++k) shift[k] /= sum;
}

// Raw numbers of all heads become keys, softplus of strength and sharpness, gates, shifts, erase
// and add vectors, in place. Call after a barrier; ends with one.
__device__ inline void shape_heads(const Forward& p, float* heads) {
  const int width = p.s.width, writing = p.writing(), adding = writing + p.writes() * width;
  for (int i = threadIdx.x; i < p.numbers(); i += blockDim.x) {
    const int j = i < writing ? i % p.per_head : -1;
    if (j >= width + 3) continue;  // a shift
    float x = heads[i] + p.bias[i];
    if (i >= adding) {
      if (p.tanh_add) x = tanhf(x);
    } else if (i >= writing || j == width + 2) {
      x = sigmoid(x);
    } else if (j >= width) {
      x = fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));  // of a NaN a NaN, by the second
    } else if (p.tanh_key) {
      x = tanhf(x);
    }
    heads[i] = x;
  }
  for (int h = threadIdx.x; h < p.s.heads; h += blockDim.x) {
    const int first = h * p.per_head + width + 3;
    shape_shift(p.taps, p.bias + first, heads + first);
  }
  __syncthreads();
}

// One step, with the weights [A, N] of the one before. Call after a barrier; ends with one.
__device__ inline void step(const Forward& p, int64_t at, const float* previous, const Shared& m) {
  const Shape& s = p.s;
  control(p, at, m);
  shape_heads(p, m.heads);
  copy(m.heads, p.numbers(), p.heads + at * p.numbers());
  spread_heads(p, m.heads, m.asked);
  __syncthreads();
  compare(p, m.tile, m.asked, m.squares, m.content);
  location_addressing::locate(s, own_place(s), m.asked.location(p, previous), m.content, m.weights);
  store_heads(s, own_place(s), m.weights, p.weights + at * p.weight_size());
  __syncthreads();
  const Access access{p.heads_of(), m.weights, m.asked.erase, m.asked.add};
  ntm_step::access_rows(s, s.rows, access, m.tile, m.scratch, m.sums);
  float* read = p.y + at * (p.hidden + p.vectors()) + p.hidden;
  for (int i = threadIdx.x; i < p.vectors(); i += blockDim.x) {
    const float x = m.sums[i / s.width * s.pitch + i % s.width];
    read[i] = x;
    if (p.recurrent_size > p.hidden) m.input[p.hidden + i] = x;
  }
  __syncthreads();
}

// What a step past the end of a sequence keeps.
__device__ inline void rest(const Forward& p, int64_t at, const float* previous, const Shared& m) {
  fill(p.y + at * (p.hidden + p.vectors()), p.hidden + p.vectors(), 0.0f);
  fill(p.activated + at * 4 * p.hidden, 4 * p.hidden, 0.0f);
  fill(p.heads + at * p.numbers(), p.numbers(), 0.0f);
  copy(m.cell, p.hidden, p.cells + at * p.hidden);
  copy(previous, p.weight_size(), p.weights + at * p.weight_size());
}

// A block is an element. work: [B, floats], where the rows do not fit shared memory.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ Forward p, float* work, int64_t floats) {
  const int64_t b = blockIdx.x;
  Arena on_chip{dynamic_shared()}, in_memory{reinterpret_cast<unsigned char*>(work + b * floats)};
  const Shared m(kWhole ? on_chip : in_memory, on_chip, p);
  if (kClusters && b >= p.s.batch) return only_assist(p, b, m);
  begin(p, b, m);
  const int length = p.length(b), longest = p.longest(b);
  const float* previous = p.previous + b * p.weight_size();
  for (int t = 0; t < p.steps; ++t) {
    const int64_t at = b * p.steps + t;
    if (t % p.every == 0) {
      store_memory(p, m.tile,
                   p.checkpoints + (b * p.num_checkpoints() + t / p.every) * p.memory_size());
    }
    if (t >= length) {
      rest(p, at, previous, m);
      if (t < longest) assist(p, m);
      continue;
    }
    step(p, at, previous, m);
    previous = p.weights + at * p.weight_size();
  }
  store_memory(p, m.tile, p.memory_out + b * p.memory_size());
  copy(previous, p.weight_size(), p.weight_out + b * p.weight_size());
  copy(m.cell, p.hidden, p.c_out + b * p.hidden);
}

// ---- host ----

constexpr std::array kForward = {forward_kernel<false>, forward_kernel<true>};

inline Plan plan(Forward& p, const BlockLimits& limits = {}) {
  return make_plan<Shared>(p, true, 0, kForward, limits);
}

// scratch: [plan.floats()]
inline void forward(const Forward& p, const Plan& plan, float* scratch, Stream stream) {
  run(p, true, kForward, plan, scratch, stream);
}

}  // namespace stmeta::ntm_scan
