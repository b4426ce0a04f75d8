// CUDA kernel of stmeta::lrua_scan and its launch. Reference: stmeta/ops/scan/lrua_scan.py; how
// it is cut: scan_controller.cuh. A cluster loads 4 * H * K + R * P * H weights from L2 at each
// step.
#pragma once

#include "cuda/scan/lrua_scan_parts.cuh"

namespace stmeta::lrua_scan {

struct Forward : Scan {
  const float *gates, *bias, *key, *add;           // [B, T, 4H], [R * P], [B, T, R, M] or null x2
  const float *memory, *usage, *previous, *reads;  // [B, N, M], [B, N], [B, R, N], [B, R * M]
  const float *h, *c;                              // [B, H]
  float *y, *memory_out, *usage_out, *weight_out, *c_out;
  float *activated, *cells, *heads, *weights;  // [B, T, 4H], [B, T, H], [B, T, R * P], [B, T, R, N]
  int64_t* rows;                               // [B, T, R]
  float* checkpoints;                          // [B, checkpoints, N, M]
};

struct Shared {
  float *tile, *usage, *previous, *weights, *write, *squares;
  float *input, *cell, *gates, *heads;  // [K], [H], [4H], [R * P]
  float *keys, *add, *sums;             // [R, pitch]
  float *strength, *gate;
  int* least;
  float *scratch, *all;

  __host__ __device__ Shared(Arena& rows, Arena& rest, const Scan& p)
      : tile(rows.take<float>(p.s.rows * p.s.pitch)),
        usage(rows.take<float>(p.s.rows)),
        previous(rows.take<float>(p.s.rows * p.s.slots)),
        weights(rows.take<float>(p.s.rows * p.s.slots)),
        write(rows.take<float>(p.s.rows * p.s.slots)),
        squares(rows.take<float>(p.s.rows)),
        input(rest.take<float>(p.recurrent_size)),
        cell(rest.take<float>(p.hidden)),
        gates(rest.take<float>(4 * p.hidden)),
        heads(rest.take<float>(p.numbers())),
        keys(rest.take<float>(p.s.heads * p.s.pitch)),
        add(rest.take<float>(p.s.heads * p.s.pitch)),
        sums(rest.take<float>(p.s.heads * p.s.pitch)),
        strength(rest.take<float>(kMaxHeads)),
        gate(rest.take<float>(kMaxHeads)),
        least(rest.take<int>(kMaxHeads)),
        scratch(rest.take<float>(scratch_floats(p))),
        all(rest.take<float>(shared_vectors(p))) {}
};

// Ends with a barrier.
__device__ inline void begin(const Forward& p, int64_t b, const Shared& m) {
  load_memory(p, p.memory + b * p.memory_size(), m.tile);
  copy(p.usage + b * p.s.rows, p.s.rows, m.usage);
  load_heads(p.s, own_place(p.s), p.previous + b * p.weight_size(), m.previous);
  copy(p.h + b * p.hidden, p.hidden, m.input);
  if (p.recurrent_size > p.hidden) copy(p.reads + b * p.vectors(), p.vectors(), m.input + p.hidden);
  copy(p.c + b * p.hidden, p.hidden, m.cell);
  fill(m.keys, p.s.heads * p.s.pitch, 0.0f);  // padding stays
  fill(m.add, p.s.heads * p.s.pitch, 0.0f);
  __syncthreads();
}

// Number i of [R, P], shaped, to where it is used.
__device__ inline void shape_head(const Forward& p, int64_t at, int i, const Shared& m) {
  const int width = p.s.width, r = i / p.per_head, j = i - r * p.per_head;
  const int vector = j < width ? j : j - width;
  const int64_t extra = (at * p.s.heads + r) * width + vector;
  float x = m.heads[i] + p.bias[i];
  if (j >= p.per_head - 2) {
    if (j == p.per_head - 1) {
      m.gate[r] = x = sigmoid(x);
    } else {
      const float soft = fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
      m.strength[r] = x = p.strength ? 1.0f + 10.0f * (x != x ? x : soft) : 1.0f;
    }
  } else if (j < width) {
    if (p.key) x += p.key[extra];
    m.keys[r * p.s.pitch + vector] = x;
    if (p.write_key) m.add[r * p.s.pitch + vector] = p.add ? x + p.add[extra] : x;
  } else {
    if (p.add) x += p.add[extra];
    m.add[r * p.s.pitch + vector] = x;
  }
  p.heads[at * p.numbers() + i] = x;
}

// Weights of the reads and of the writes, and the usage. Call after a barrier; the usage needs one.
__device__ inline void address(const Forward& p, int64_t at, const Shared& m) {
  const Place own = own_place(p.s);
  make_units(p.s, m.keys, p.eps, m.keys);
  write_weights(p, m.previous, m.gate, m.least, m.write);
  __syncthreads();
  if (!p.read_first) write_rows(p.s, m.tile, m.least, m.write, m.add, m.tile);
  const Rows<float> rows{m.tile, p.s.pitch};
  row_dots(p.s, p.s.rows, rows, m.keys, p.s.heads, false, m.weights, m.squares);
  __syncthreads();
  content_addressing::to_scores(p.s, own, m.squares, m.strength, p.eps, m.weights);
  content_addressing::softmax(p.s, m.weights);
  store_heads(p.s, own, m.weights, p.weights + at * p.weight_size());
  __syncthreads();
  for (int n = threadIdx.x; n < p.s.rows; n += blockDim.x) {
    float sum = 0.0f;
    for (int h = 0; h < p.s.heads; ++h) {
      sum += m.weights[n * p.s.slots + h] + m.write[n * p.s.slots + h];
    }
    m.usage[n] = p.decay * m.usage[n] + sum;
  }
}

// One step. Call after a barrier; ends with one.
__device__ inline void step(const Forward& p, int64_t at, const Shared& m) {
  control(p, at, m);
  for (int i = threadIdx.x; i < p.numbers(); i += blockDim.x) shape_head(p, at, i, m);
  lrua_step::find_least(p.s, m.usage, m.least);  // and a barrier
  for (int r = threadIdx.x; r < p.s.heads; r += blockDim.x) {
    p.rows[at * p.s.heads + r] = m.least[r];
  }
  address(p, at, m);
  const Rows<float> rows{m.tile, p.s.pitch};
  column_sums(p.s, p.s.rows, rows, m.weights, p.s.heads, m.scratch, m.sums);
  float* read = p.y + at * (p.hidden + p.vectors()) + p.hidden;
  for (int i = threadIdx.x; i < p.vectors(); i += blockDim.x) {
    const float x = m.sums[i / p.s.width * p.s.pitch + i % p.s.width];
    read[i] = x;
    if (p.recurrent_size > p.hidden) m.input[p.hidden + i] = x;
  }
  if (p.read_first) write_rows(p.s, m.tile, m.least, m.write, m.add, m.tile);
  __syncthreads();
}

// What a step past the end of an episode keeps.
__device__ inline void rest(const Forward& p, int64_t at, const Shared& m) {
  fill(p.y + at * (p.hidden + p.vectors()), p.hidden + p.vectors(), 0.0f);
  fill(p.activated + at * 4 * p.hidden, 4 * p.hidden, 0.0f);
  fill(p.heads + at * p.numbers(), p.numbers(), 0.0f);
  copy(m.cell, p.hidden, p.cells + at * p.hidden);
  store_heads(p.s, own_place(p.s), m.previous, p.weights + at * p.weight_size());
  for (int r = threadIdx.x; r < p.s.heads; r += blockDim.x) p.rows[at * p.s.heads + r] = 0;
}

// A block is an element. work: [B, floats], where the rows do not fit shared memory.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ Forward p, float* work, int64_t floats) {
  const int64_t b = blockIdx.x;
  Arena on_chip{dynamic_shared()}, in_memory{reinterpret_cast<unsigned char*>(work + b * floats)};
  Shared m(kWhole ? on_chip : in_memory, on_chip, p);
  if (kClusters && b >= p.s.batch) return only_assist(p, b, m);
  begin(p, b, m);
  const int length = p.length(b), longest = p.longest(b);
  for (int t = 0; t < p.steps; ++t) {
    const int64_t at = b * p.steps + t;
    if (t % p.every == 0) {
      store_memory(p, m.tile,
                   p.checkpoints + (b * p.num_checkpoints() + t / p.every) * p.memory_size());
    }
    if (t >= length) {
      rest(p, at, m);
      if (t < longest) assist(p, m);
      continue;
    }
    step(p, at, m);
    float* swapped = m.previous;
    m.previous = m.weights;
    m.weights = swapped;
  }
  store_memory(p, m.tile, p.memory_out + b * p.memory_size());
  copy(m.usage, p.s.rows, p.usage_out + b * p.s.rows);
  store_heads(p.s, own_place(p.s), m.previous, p.weight_out + b * p.weight_size());
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

}  // namespace stmeta::lrua_scan
