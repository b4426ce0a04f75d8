// One step of a memory_scan for one instruction set, without the memory's own part: what a tile of
// the batch holds, the LSTM, the heads. No guard: each instruction set includes it.
#include "../cpu/lrua_element.h"
#include "../cpu/panel_product.h"

namespace stmeta::STMETA_ISA {

STMETA_INLINE Vec sigmoid_of(Vec x) { return splat(1.0f) / (splat(1.0f) + exp_of(-x)); }
STMETA_INLINE Vec tanh_of(Vec x) {
  return splat(1.0f) - splat(2.0f) / (splat(1.0f) + exp_of(x + x));
}

// What a tile of the batch carries from step to step, and its working rows; see `take_tile`.
struct Tile {
  int64_t first, rows;                        // elements of the batch
  int64_t size;                               // floats of a memory
  float *fed, *cell;                          // [rows][K]: h, reads; [rows][H]
  float *gates, *heads;                       // [rows][padded 4H], [rows][padded R * P]
  float *memory, *usage, *previous, *weight;  // of each element, padded
  float *key, *add, *strength, *gate, *read;  // of one element, padded
};

STMETA_FN inline Tile take_tile(const MemoryScan& p, int64_t first, int64_t rows,
                                Scratch& scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads), vectors = s.heads * s.wide;
  Tile t = {};
  t.first = first;
  t.rows = rows;
  t.size = s.rows * s.wide;
  t.fed = scratch.take(rows * p.fed);
  t.cell = scratch.take(rows * p.hidden);
  t.gates = scratch.take(rows * round_up(4 * p.hidden, kPanel));
  t.heads = scratch.take(rows * round_up(s.heads * p.per_head, kPanel));
  t.memory = scratch.take(rows * t.size);
  t.usage = scratch.take(rows * s.padded);
  t.previous = scratch.take(rows * s.heads * s.padded);
  t.weight = scratch.take(rows * s.heads * s.padded);
  t.key = scratch.take(vectors);
  t.add = scratch.take(vectors);
  t.read = scratch.take(vectors);
  t.strength = scratch.take(line);
  t.gate = scratch.take(line);
  return t;
}

STMETA_INLINE void copy(const float* from, int64_t count, float* to) {
  __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

// ---- controller ----

// The point-wise part of an LSTM step, of one vector: gates become what they let through; h and c.
STMETA_INLINE void open_gates(float* in, float* forget, float* value, float* out, float* cell,
                              float* h) {
  const Vec i = sigmoid_of(load(in)), f = sigmoid_of(load(forget));
  const Vec g = tanh_of(load(value)), o = sigmoid_of(load(out));
  const Vec c = f * load(cell) + i * g;
  store(in, i);
  store(forget, f);
  store(value, g);
  store(out, o);
  store(cell, c);
  store(h, o * tanh_of(c));
}

// Gradients of the gates [4][H] from that of h; `carried`, of the cell, goes a step back.
STMETA_INLINE void close_gates(const float* in, const float* forget, const float* value,
                               const float* out, const float* cell, const float* before,
                               const float* grad_h, float* carried, float* d_in, float* d_forget,
                               float* d_value, float* d_out) {
  const Vec one = splat(1.0f), i = load(in), f = load(forget), g = load(value), o = load(out);
  const Vec shown = tanh_of(load(cell)), d = load(grad_h);
  const Vec dc = load(carried) + d * o * (one - shown * shown);
  store(d_in, dc * g * i * (one - i));
  store(d_forget, dc * load(before) * f * (one - f));
  store(d_value, dc * i * (one - g * g));
  store(d_out, d * shown * o * (one - o));
  store(carried, dc * f);
}

// Both, over H numbers: the last ones, which fill no vector, go through copies.
STMETA_FN inline void open_all(int64_t hidden, float* gates, float* cell, float* h) {
  int64_t n = 0;
  for (; n + kLanes <= hidden; n += kLanes) {
    float* g = gates + n;
    open_gates(g, g + hidden, g + 2 * hidden, g + 3 * hidden, cell + n, h + n);
  }
  const int64_t rest = hidden - n;
  if (rest == 0) return;
  float tail[6][kLanes] = {};
  float* places[6] = {
      gates + n, gates + hidden + n, gates + 2 * hidden + n, gates + 3 * hidden + n, cell + n,
      h + n};
  for (int k = 0; k < 5; ++k) copy(places[k], rest, tail[k]);
  open_gates(tail[0], tail[1], tail[2], tail[3], tail[4], tail[5]);
  for (int k = 0; k < 6; ++k) copy(tail[k], rest, places[k]);
}

STMETA_FN inline void close_all(int64_t hidden, const float* gates, const float* cell,
                                const float* before, const float* grad_h, float* carried,
                                float* d_gates) {
  int64_t n = 0;
  for (; n + kLanes <= hidden; n += kLanes) {
    const float* g = gates + n;
    float* d = d_gates + n;
    close_gates(g, g + hidden, g + 2 * hidden, g + 3 * hidden, cell + n, before + n, grad_h + n,
                carried + n, d, d + hidden, d + 2 * hidden, d + 3 * hidden);
  }
  const int64_t rest = hidden - n;
  if (rest == 0) return;
  float in[8][kLanes] = {}, out[4][kLanes];
  for (int k = 0; k < 4; ++k) copy(gates + k * hidden + n, rest, in[k]);
  copy(cell + n, rest, in[4]);
  copy(before + n, rest, in[5]);
  copy(grad_h + n, rest, in[6]);
  copy(carried + n, rest, in[7]);
  close_gates(in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], out[0], out[1], out[2],
              out[3]);
  for (int k = 0; k < 4; ++k) copy(out[k], rest, d_gates + k * hidden + n);
  copy(in[7], rest, carried + n);
}

// ---- heads ----

STMETA_INLINE float sigmoid_number(float x) { return 1.0f / (1.0f + __builtin_expf(-x)); }

// Raw heads [R][P] of one element become keys, strengths, gates, in place.
STMETA_FN inline void shape_heads(const MemoryScan& p, int64_t at, float* heads) {
  const MemorySizes& s = p.sizes;
  const int64_t width = s.width;
  const bool adds = p.add != nullptr && !p.write_key;  // a written key gets it in `spread_heads`
  for (int64_t r = 0; r < s.heads; ++r) {
    float* head = heads + r * p.per_head;
    const int64_t extra = (at * s.heads + r) * width;
    for (int64_t m = 0; p.key != nullptr && m < width; ++m) head[m] += p.key[extra + m];
    for (int64_t m = 0; adds && m < width; ++m) head[width + m] += p.add[extra + m];
    float* last = head + p.per_head - 2;
    const float x = last[0];
    // softplus, without overflow
    const float soft = (x > 0.0f ? x : 0.0f) + __builtin_log1pf(__builtin_expf(x > 0.0f ? -x : x));
    last[0] = p.strength ? 1.0f + 10.0f * soft : 1.0f;
    last[1] = sigmoid_number(last[1]);
  }
}

// Shaped heads [R][P] of element and step `at` to the padded vectors of the memory.
STMETA_FN inline LruaInputs spread_heads(const MemoryScan& p, int64_t at, const float* heads,
                                         const Tile& t, const float* memory,
                                         const float* previous) {
  const MemorySizes& s = p.sizes;
  for (int64_t r = 0; r < s.heads; ++r) {
    const float* head = heads + r * p.per_head;
    const float* written = head + (p.write_key ? 0 : s.width);
    float* add = t.add + r * s.wide;
    read_rows(head, s.width, 1, s.width, s.wide, t.key + r * s.wide);
    read_rows(written, s.width, 1, s.width, s.wide, add);
    if (p.write_key && p.add != nullptr) {
      const float* extra = p.add + (at * s.heads + r) * s.width;
      for (int64_t m = 0; m < s.width; ++m) add[m] += extra[m];
    }
    t.strength[r] = head[p.per_head - 2];
    t.gate[r] = head[p.per_head - 1];
  }
  return {memory, previous, t.key, t.strength, t.gate, t.add};
}

}  // namespace stmeta::STMETA_ISA
