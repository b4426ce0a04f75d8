// CUDA kernel of the backward of stmeta::lrua_scan and its launch; see scan_controller.cuh.
//
// A block walks back through its episode. The memories of a segment of ceil(sqrt(T)) steps are made
// again from the checkpoint that the forward kept and from what was written; they lie in main
// memory (in L2, mostly), the gradient of the memory in shared memory.
#pragma once

#include "cuda/scan/lrua_scan_parts.cuh"

namespace stmeta::lrua_scan {

struct Backward : Scan {
  const float *grad_y, *grad_memory, *grad_weight, *grad_c;
  const float *add, *previous, *c;
  const float *activated, *cells, *heads, *weights;  // as the forward kept them
  const int64_t* rows;
  const float* checkpoints;
  float *d_gates, *d_heads, *d_written, *d_memory, *d_previous, *d_reads, *d_h, *d_c;
};

struct BackwardShared {
  float *grad_tile, *previous, *weights, *write, *grad, *next, *dots, *squares;
  float *d_input, *d_cell, *d_gates, *d_heads, *d_h;  // [K], [H], [4H], [R * P], [H]
  float *keys, *units, *add, *grad_read;              // [R, pitch]
  float *d_add, *d_units, *d_strength, *d_gate;       // [R, pitch] x2, [slots] x2
  float *strength, *gate;
  int* least;
  float *scratch, *all;

  __host__ __device__ BackwardShared(Arena& rows, Arena& rest, const Scan& p)
      : grad_tile(rows.take<float>(p.s.rows * p.s.pitch)),
        previous(rows.take<float>(p.s.rows * p.s.slots)),
        weights(rows.take<float>(p.s.rows * p.s.slots)),
        write(rows.take<float>(p.s.rows * p.s.slots)),
        grad(rows.take<float>(p.s.rows * p.s.slots)),
        next(rows.take<float>(p.s.rows * p.s.slots)),
        dots(rows.take<float>(p.s.rows * p.s.slots)),
        squares(rows.take<float>(p.s.rows)),
        d_input(rest.take<float>(p.recurrent_size)),
        d_cell(rest.take<float>(p.hidden)),
        d_gates(rest.take<float>(4 * p.hidden)),
        d_heads(rest.take<float>(p.numbers())),
        d_h(rest.take<float>(p.hidden)),
        keys(rest.take<float>(p.s.heads * p.s.pitch)),
        units(rest.take<float>(p.s.heads * p.s.pitch)),
        add(rest.take<float>(p.s.heads * p.s.pitch)),
        grad_read(rest.take<float>(p.s.heads * p.s.pitch)),
        d_add(rest.take<float>(p.s.heads * p.s.pitch)),
        d_units(rest.take<float>(p.s.heads * p.s.pitch)),
        d_strength(rest.take<float>(kMaxHeads)),
        d_gate(rest.take<float>(kMaxHeads)),
        strength(rest.take<float>(kMaxHeads)),
        gate(rest.take<float>(kMaxHeads)),
        least(rest.take<int>(kMaxHeads)),
        scratch(rest.take<float>(scratch_floats(p))),
        all(rest.take<float>(shared_vectors(p))) {}
};

// The element of the batch, and the memories of its segment, [every + 1, N, pitch].
struct Episode {
  int64_t b;
  float* past;
  int64_t size;

  __device__ float* memory(int step) const { return past + step * size; }
};

// ---- what a step did ----

// The write of a step, as the forward made it. Barriers on both sides.
__device__ inline void load_write(const Backward& p, int64_t b, int t, const BackwardShared& m) {
  const Shape& s = p.s;
  const int64_t at = b * p.steps + t;
  const float* heads = p.heads + at * p.numbers();
  const int from = p.write_key ? 0 : s.width;
  __syncthreads();
  for (int i = threadIdx.x; i < s.heads * s.pitch; i += blockDim.x) {
    const int r = i / s.pitch, column = i % s.pitch;
    const float* head = heads + r * p.per_head;
    const bool live = column < s.width;
    m.keys[i] = live ? head[column] : 0.0f;
    m.add[i] = live ? head[from + column] : 0.0f;
    if (live && p.write_key && p.add) m.add[i] += p.add[at * p.vectors() + r * s.width + column];
  }
  for (int r = threadIdx.x; r < s.heads; r += blockDim.x) {
    m.strength[r] = heads[(r + 1) * p.per_head - 2];
    m.gate[r] = heads[(r + 1) * p.per_head - 1];
    m.least[r] = static_cast<int>(p.rows[at * s.heads + r]);
  }
  const float* previous =
      t == 0 ? p.previous + b * p.weight_size() : p.weights + (at - 1) * p.weight_size();
  load_heads(s, own_place(s), previous, m.previous);
  __syncthreads();
  write_weights(p, m.previous, m.gate, m.least, m.write);
  __syncthreads();
}

// The memories before each step of [begin, end), and the one after the last.
__device__ inline void repeat(const Backward& p, const Episode& e, int begin, int end,
                              const BackwardShared& m) {
  const float* checkpoint =
      p.checkpoints + (e.b * p.num_checkpoints() + begin / p.every) * p.memory_size();
  load_memory(p, checkpoint, e.memory(0));
  for (int t = begin; t < end; ++t) {
    load_write(p, e.b, t, m);
    write_rows(p.s, e.memory(t - begin), m.least, m.write, m.add, e.memory(t - begin + 1));
  }
}

// ---- a step back ----

// The staged gradient, of the memory after the write, becomes that of the memory before it. Gives
// d_add, d_gate, and in `next` the gradient of the previous weights. Call after a barrier.
__device__ inline void write_backward(const Backward& p, const BackwardShared& m) {
  const Shape& s = p.s;
  const Rows<float> rows{m.grad_tile, s.pitch};
  row_dots(s, s.rows, rows, m.add, s.heads, false, m.dots, nullptr);
  column_sums(s, s.rows, rows, m.write, s.heads, m.scratch, m.d_add);  // barriers, for `dots`
  lrua_step::clear(s, own_place(s), m.least, m.grad_tile);
  const int h = own_head(s);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < s.rows * s.slots; i += blockDim.x) {
    float d = 0.0f;
    if (h < s.heads) {
      const bool to = lrua_step::is_least(s, p.shared, m.least, i / s.slots, h);
      sum += m.dots[i] * (m.previous[i] - (to ? 1.0f : 0.0f));
      d = m.gate[h] * m.dots[i];
    }
    m.next[i] = d;
  }
  sum = head_sum(s, sum);
  if (static_cast<int>(threadIdx.x) < s.slots) m.d_gate[threadIdx.x] = sum;
}

// The reads and the addressing; adds to the gradient of the memory that was read. `grad` is the
// gradient of the step's weights, but for what comes through the reads. Call after a barrier.
__device__ inline void read_backward(const Backward& p, int64_t at, const float* memory,
                                     const BackwardShared& m) {
  const Shape& s = p.s;
  const Rows<float> rows{memory, s.pitch};
  row_dots(s, s.rows, rows, m.grad_read, s.heads, true, m.grad, nullptr);
  __syncthreads();
  const float* weights = p.weights + at * p.weight_size();
  content_addressing::softmax_backward(s, own_place(s), weights, m.grad);
  add_outer(s, s.rows, m.weights, m.grad_read, s.heads, true, m.grad_tile);
  __syncthreads();
  const content_addressing::RowsBackward parts{m.units,     m.grad,    m.dots,    m.squares,
                                               m.grad_tile, m.scratch, m.d_units, m.d_strength};
  content_addressing::backward_rows(s, own_place(s), rows, m.strength, p.eps, true, parts);
}

// Gradients of the raw numbers of all heads, by a warp for each head; see memory::finish_keys.
__device__ inline void finish_heads(const Backward& p, int64_t at, const BackwardShared& m) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, width = p.s.width;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int h = static_cast<int>(threadIdx.x) / kWarp; h < p.s.heads; h += warps) {
    const int first = h * p.s.pitch;
    float square = 0.0f, product = 0.0f;
    for (int i = lane; i < width; i += kWarp) {
      square += m.keys[first + i] * m.keys[first + i];
      product += m.keys[first + i] * m.d_units[first + i];
    }
    const float length = sqrtf(warp_sum(square)), scale = 1.0f / (length + p.eps);
    product = warp_sum(product);
    const float along = length > 0.0f ? product * scale * scale / length : 0.0f;
    float* d = m.d_heads + h * p.per_head;
    for (int i = lane; i < width; i += kWarp) {
      const float key = m.d_units[first + i] * scale - along * m.keys[first + i];
      const float add = m.d_add[first + i];
      d[i] = p.write_key ? key + add : key;
      if (!p.write_key) d[width + i] = add;
      p.d_written[at * p.vectors() + h * width + i] = add;
    }
    if (lane > 0) continue;
    // strength = 1 + 10 softplus(x), of which the slope is 10 (1 - e^-softplus(x))
    const float slope = p.strength ? -10.0f * expm1f((1.0f - m.strength[h]) / 10.0f) : 0.0f;
    d[p.per_head - 2] = slope * m.d_strength[h];
    d[p.per_head - 1] = m.d_gate[h] * m.gate[h] * (1.0f - m.gate[h]);
  }
}

// The memory's part of a step. Barriers on both sides.
__device__ inline void recall(const Backward& p, const Episode& e, int t, int begin,
                              const BackwardShared& m) {
  const Shape& s = p.s;
  const int64_t at = e.b * p.steps + t;
  load_write(p, e.b, t, m);
  make_units(s, m.keys, p.eps, m.units);
  load_heads(s, own_place(s), p.weights + at * p.weight_size(), m.weights);
  const float* grad = p.grad_y + at * (p.hidden + p.vectors()) + p.hidden;
  for (int i = threadIdx.x; i < s.heads * s.pitch; i += blockDim.x) {
    const int r = i / s.pitch, column = i % s.pitch, from = r * s.width + column;
    float x = 0.0f;
    if (column < s.width)
      x = grad[from] + (p.recurrent_size > p.hidden ? m.d_input[p.hidden + from] : 0.0f);
    m.grad_read[i] = x;
  }
  __syncthreads();
  const float* memory = e.memory(t - begin + (p.read_first ? 0 : 1));
  if (p.read_first) write_backward(p, m);
  read_backward(p, at, memory, m);
  __syncthreads();
  if (!p.read_first) write_backward(p, m);
  __syncthreads();
  finish_heads(p, at, m);
  __syncthreads();
  copy(m.d_heads, p.numbers(), p.d_heads + at * p.numbers());
}

// ---- the kernel ----

__device__ inline void start(const Backward& p, int64_t b, const BackwardShared& m) {
  load_memory(p, p.grad_memory + b * p.memory_size(), m.grad_tile);
  load_heads(p.s, own_place(p.s), p.grad_weight + b * p.weight_size(), m.grad);
  copy(p.grad_c + b * p.hidden, p.hidden, m.d_cell);
  const int64_t dead = b * p.steps + p.length(b), count = b * p.steps + p.steps - dead;
  fill(p.d_gates + dead * 4 * p.hidden, count * 4 * p.hidden, 0.0f);
  fill(p.d_heads + dead * p.numbers(), count * p.numbers(), 0.0f);
  fill(p.d_written + dead * p.vectors(), count * p.vectors(), 0.0f);
}

// Call after a barrier.
__device__ inline void end(const Backward& p, int64_t b, const BackwardShared& m) {
  store_memory(p, m.grad_tile, p.d_memory + b * p.memory_size());
  store_heads(p.s, own_place(p.s), m.grad, p.d_previous + b * p.weight_size());
  copy(m.d_input, p.hidden, p.d_h + b * p.hidden);
  copy(m.d_cell, p.hidden, p.d_c + b * p.hidden);
  float* reads = p.d_reads + b * p.vectors();
  if (p.recurrent_size > p.hidden) {
    copy(m.d_input + p.hidden, p.vectors(), reads);
  } else {
    fill(reads, p.vectors(), 0.0f);
  }
}

// A block is an element. p.past: [B, every + 1, N, pitch]; work as that of forward_kernel.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ Backward p, float* work, int64_t floats) {
  const int64_t b = blockIdx.x, size = static_cast<int64_t>(p.s.rows) * p.s.pitch;
  Arena on_chip{dynamic_shared()}, in_memory{reinterpret_cast<unsigned char*>(work + b * floats)};
  BackwardShared m(kWhole ? on_chip : in_memory, on_chip, p);
  const Episode e{b, p.past + b * (p.every + 1) * size, size};
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
      float* swapped = m.grad;
      m.grad = m.next;
      m.next = swapped;
    }
    stop = first;
  }
  __syncthreads();
  end(p, b, m);
}

// ---- host ----

constexpr std::array kBackward = {backward_kernel<false>, backward_kernel<true>};

inline Plan plan(Backward& p, const BlockLimits& limits = {}) {
  const int64_t past = int64_t{p.s.batch} * (p.every + 1) * p.s.rows * p.s.pitch;
  return make_plan<BackwardShared>(p, false, past, kBackward, limits);
}

// scratch: [plan.floats()]
inline void backward(const Backward& p, const Plan& plan, float* scratch, Stream stream) {
  run(p, false, kBackward, plan, scratch, stream);
}

}  // namespace stmeta::lrua_scan
