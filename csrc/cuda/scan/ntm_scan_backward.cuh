// CUDA kernel of the backward of stmeta::ntm_scan and its launch; see ntm_scan_parts.cuh.
//
// A block walks back through its sequence. The memories of a segment of ceil(sqrt(T)) steps are
// made again from the checkpoint that the forward kept and from what was erased and added; they lie
// in main memory (in L2, mostly), the gradient of the memory in shared memory.
#pragma once

#include "cuda/memory/ntm_step_backward.cuh"
#include "cuda/scan/ntm_scan_parts.cuh"

namespace stmeta::ntm_scan {

struct Backward : Scan {
  const float *grad_y, *grad_memory, *grad_weight, *grad_c;
  const float *previous, *c;
  const float *activated, *cells, *heads, *weights, *checkpoints;  // as the forward kept them
  float *d_gates, *d_heads, *d_memory, *d_previous, *d_reads, *d_h, *d_c;
};

struct BackwardShared {
  float *grad_tile, *weights, *grad, *other, *squares;
  float *content, *carried;                           // [A, N]
  float *d_input, *d_cell, *d_gates, *d_heads, *d_h;  // [K], [H], [4H], [P], [H]
  float *grad_read, *d_units, *d_keys, *d_erase, *d_add;
  float *d_strength, *d_gate, *d_sharpen, *d_shift;
  Asked asked;
  float *scratch, *all;

  __host__ __device__ BackwardShared(Arena& rows, Arena& rest, const Scan& p)
      : grad_tile(rows.take<float>(p.s.rows * p.s.pitch)),
        weights(rows.take<float>(p.s.rows * p.s.slots)),
        grad(rows.take<float>(p.s.rows * p.s.slots)),
        other(rows.take<float>(p.s.rows * p.s.slots)),
        squares(rows.take<float>(p.s.rows)),
        content(rows.take<float>(p.weight_size())),
        carried(rows.take<float>(p.weight_size())),
        d_input(rest.take<float>(p.recurrent_size)),
        d_cell(rest.take<float>(p.hidden)),
        d_gates(rest.take<float>(4 * p.hidden)),
        d_heads(rest.take<float>(p.numbers())),
        d_h(rest.take<float>(p.hidden)),
        grad_read(rest.take<float>(p.reads * p.s.pitch)),
        d_units(rest.take<float>(p.s.heads * p.s.pitch)),
        d_keys(rest.take<float>(p.s.heads * p.s.width)),
        d_erase(rest.take<float>(p.writes() * p.s.pitch)),
        d_add(rest.take<float>(p.writes() * p.s.pitch)),
        d_strength(rest.take<float>(p.s.slots)),
        d_gate(rest.take<float>(p.s.heads)),
        d_sharpen(rest.take<float>(p.s.heads)),
        d_shift(rest.take<float>(p.s.heads * p.taps)),
        asked(rest, p),
        scratch(rest.take<float>(scratch_floats(p))),
        all(rest.take<float>(shared_vectors(p))) {}

  __device__ Access access(const Scan& p) const {
    return {p.heads_of(), weights, asked.erase, asked.add};
  }
  __device__ ntm_step::AccessGrads access_grads() const {
    return {grad_read, grad, grad_tile, d_erase, d_add, scratch};
  }
};

// The element of the batch, and the memories of its segment, [every, N, pitch].
struct Episode {
  int64_t b;
  float* past;
  int64_t size;

  __device__ float* memory(int step) const { return past + step * size; }
};

// The memories before each step of [begin, end).
__device__ inline void repeat(const Backward& p, const Episode& e, int begin, int end,
                              const BackwardShared& m) {
  const Shape& s = p.s;
  load_memory(p, p.checkpoints + (e.b * p.num_checkpoints() + begin / p.every) * p.memory_size(),
              e.memory(0));
  const Lanes by(s.lanes);
  for (int t = begin; t + 1 < end; ++t) {
    const int64_t at = e.b * p.steps + t;
    __syncthreads();
    spread_writing(p, p.heads + at * p.numbers(), m.asked);
    load_heads(s, own_place(s), p.weights + at * p.weight_size(), m.weights);
    __syncthreads();
    const erase_add::Written<float> written{e.memory(t - begin), s.pitch, s.slots,
                                            m.access(p).writes(s)};
    float* to = e.memory(t - begin + 1);
    for (int n = by.row; n < s.rows; n += by.step) {
      for (int column = by.own * kQuad; column < s.pitch; column += by.count * kQuad) {
        float x[kQuad];
        written.load(n, column, x);
        store_floats(to + n * s.pitch + column, x);
      }
    }
  }
}

// ---- a step back ----

// What step t did, and the gradient of what it read. Barriers on both sides.
__device__ inline void see(const Backward& p, int64_t at, const BackwardShared& m) {
  const Shape& s = p.s;
  __syncthreads();
  spread_heads(p, p.heads + at * p.numbers(), m.asked);
  load_heads(s, own_place(s), p.weights + at * p.weight_size(), m.weights);
  load_heads(s, own_place(s), m.carried, m.grad);
  const float* grad = p.grad_y + at * (p.hidden + p.vectors()) + p.hidden;
  for (int i = threadIdx.x; i < p.reads * s.pitch; i += blockDim.x) {
    const int r = i / s.pitch, column = i % s.pitch, from = r * s.width + column;
    float x = 0.0f;
    if (column < s.width)
      x = grad[from] + (p.recurrent_size > p.hidden ? m.d_input[p.hidden + from] : 0.0f);
    m.grad_read[i] = x;
  }
  __syncthreads();
}

// From the gradient of the weights of all heads to what they came from; adds to the gradient of the
// memory. previous: the weights [A, N] before the step. Call after a barrier; ends with one.
__device__ inline void address_backward(const Backward& p, const float* memory,
                                        const float* previous, const BackwardShared& m) {
  const Shape& s = p.s;
  const Place own = own_place(s);
  compare(p, memory, m.asked, m.squares, m.other);
  store_heads(s, own, m.other, m.content);
  const location_addressing::LocationGrads<float> d{m.carried, m.d_gate, m.d_shift, m.d_sharpen};
  location_addressing::locate_backward(s, own, m.asked.location(p, previous), m.content, d, m.grad,
                                       m.other, m.weights);
  content_addressing::softmax_backward(s, own, m.content, m.grad);
  __syncthreads();
  const content_addressing::RowsBackward parts{m.asked.units, m.grad,    m.other,   m.squares,
                                               m.grad_tile,   m.scratch, m.d_units, m.d_strength};
  content_addressing::backward_rows(s, own, Rows<float>{memory, s.pitch}, m.asked.strength, p.eps,
                                    true, parts);
  __syncthreads();
}

// The gradient of number i of all heads, before it was shaped to `x`.
__device__ inline float unshape(const Backward& p, const float* heads, int i,
                                const BackwardShared& m) {
  const int width = p.s.width, pitch = p.s.pitch, all = p.writes() * width;
  const float x = heads[i];
  if (i >= p.writing()) {
    const int k = i - p.writing(), n = k < all ? k : k - all;
    const int from = n / width * pitch + n % width;
    if (k < all) return m.d_erase[from] * x * (1.0f - x);
    return p.tanh_add ? m.d_add[from] * (1.0f - x * x) : m.d_add[from];
  }
  const int h = i / p.per_head, j = i - h * p.per_head, first = i - j + width + 3;
  if (j < width) {
    const float d = m.d_keys[h * width + j];
    return p.tanh_key ? d * (1.0f - x * x) : d;
  }
  // The slope of softplus(x) is 1 - e^-softplus(x).
  if (j < width + 2) return -expm1f(-x) * (j == width ? m.d_strength[h] : m.d_sharpen[h]);
  if (j == width + 2) return m.d_gate[h] * x * (1.0f - x);
  const float* shift = m.d_shift + h * p.taps;
  float mean = 0.0f;
  for (int k = 0; k < p.taps; ++k) mean += heads[first + k] * shift[k];
  return x * (shift[i - first] - mean);
}

// The memory's part of step t. Barriers on both sides.
__device__ inline void recall(const Backward& p, const Episode& e, int t, int begin,
                              const BackwardShared& m) {
  const int64_t at = e.b * p.steps + t;
  const Shape& s = p.s;
  const float* memory = e.memory(t - begin);
  const float* previous =
      t == 0 ? p.previous + e.b * p.weight_size() : p.weights + (at - 1) * p.weight_size();
  see(p, at, m);
  const Access access = m.access(p);
  const ntm_step::AccessGrads grads = m.access_grads();
  ntm_step::access_backward(s, s.rows, access, memory, grads);
  ntm_step::pass_write(s, s.rows, access, grads);
  __syncthreads();  // the weights lend their place from here on
  address_backward(p, memory, previous, m);
  finish_keys(s, 0, Finish<float>{{}, {}, m.asked.keys, m.d_keys, {}, p.eps}, m.d_units);
  __syncthreads();
  const int64_t first = at * p.numbers();
  for (int i = threadIdx.x; i < p.numbers(); i += blockDim.x) {
    p.d_heads[first + i] = m.d_heads[i] = unshape(p, p.heads + first, i, m);
  }
  __syncthreads();
}

// ---- the kernel ----

__device__ inline void start(const Backward& p, int64_t b, const BackwardShared& m) {
  load_memory(p, p.grad_memory + b * p.memory_size(), m.grad_tile);
  copy(p.grad_weight + b * p.weight_size(), p.weight_size(), m.carried);
  copy(p.grad_c + b * p.hidden, p.hidden, m.d_cell);
  const int64_t dead = b * p.steps + p.length(b), count = b * p.steps + p.steps - dead;
  fill(p.d_gates + dead * 4 * p.hidden, count * 4 * p.hidden, 0.0f);
  fill(p.d_heads + dead * p.numbers(), count * p.numbers(), 0.0f);
}

// Call after a barrier.
__device__ inline void end(const Backward& p, int64_t b, const BackwardShared& m) {
  store_memory(p, m.grad_tile, p.d_memory + b * p.memory_size());
  copy(m.carried, p.weight_size(), p.d_previous + b * p.weight_size());
  copy(m.d_input, p.hidden, p.d_h + b * p.hidden);
  copy(m.d_cell, p.hidden, p.d_c + b * p.hidden);
  float* reads = p.d_reads + b * p.vectors();
  if (p.recurrent_size > p.hidden) {
    copy(m.d_input + p.hidden, p.vectors(), reads);
  } else {
    fill(reads, p.vectors(), 0.0f);
  }
}

// A block is an element. p.past: [B, every, N, pitch]; work as that of forward_kernel.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ Backward p, float* work, int64_t floats) {
  const int64_t b = blockIdx.x, size = static_cast<int64_t>(p.s.rows) * p.s.pitch;
  Arena on_chip{dynamic_shared()}, in_memory{reinterpret_cast<unsigned char*>(work + b * floats)};
  const BackwardShared m(kWhole ? on_chip : in_memory, on_chip, p);
  const Episode e{b, p.past + b * p.every * size, size};
  rest_controller(p, m);
  if (kClusters && b >= p.s.batch) return only_assist_back(p, b, m);
  start(p, b, m);
  int stop = p.longest(b);
  while (stop > 0) {
    const int first = (stop - 1) / p.every * p.every;
    const int last = kClusters ? min(stop, p.length(b)) : stop;
    if (first < last) repeat(p, e, first, last, m);
    for (int t = stop - 1; t >= first; --t) {
      if (t >= last) {
        assist_back(p, m);
        continue;
      }
      recall(p, e, t, first, m);
      uncontrol(p, b, t, m);
    }
    stop = first;
  }
  __syncthreads();
  end(p, b, m);
}

// ---- host ----

constexpr std::array kBackward = {backward_kernel<false>, backward_kernel<true>};

inline Plan plan(Backward& p, const BlockLimits& limits = {}) {
  const int64_t past = int64_t{p.s.batch} * p.every * p.s.rows * p.s.pitch;
  return make_plan<BackwardShared>(p, false, past, kBackward, limits);
}

// scratch: [plan.floats()]
inline void backward(const Backward& p, const Plan& plan, float* scratch, Stream stream) {
  run(p, false, kBackward, plan, scratch, stream);
}

}  // namespace stmeta::ntm_scan
