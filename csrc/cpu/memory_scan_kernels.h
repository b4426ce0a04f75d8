// Kernels of memory_scan for one instruction set; csrc/common/each_isa.h includes this file.
#include "../cpu/memory_scan_parts.h"

namespace stmeta::STMETA_ISA {

// ---- forward ----

// One element's memory at one step, from shaped heads on.
STMETA_FN inline void step_memory(const MemoryScan& p, const Tile& t, int64_t i, int64_t step,
                                  const float* heads, Scratch scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t at = (t.first + i) * p.steps + step;
  float* memory = t.memory + i * t.size;
  keep_mark(p, t, i, step);
  const LruaInputs e = spread_heads(p, at, heads, t, memory, t.previous + i * t.looks);
  lrua_forward(
      s, p.options, e,
      {memory, t.usage + i * s.padded, t.weight + i * t.looks, t.read, p.rows + at * s.heads},
      scratch);
  show_step(p, t, i, step, t.read);
}

STMETA_FN inline void forward(const MemoryScan& p, int64_t first, int64_t rows, float* floats) {
  const MemorySizes& s = p.sizes;
  Scratch scratch = {floats};
  Tile t = take_tile(p, first, rows, scratch);
  start_scan(p, t);
  read_rows(p.usage + first * s.rows, s.rows, rows, s.rows, s.padded, t.usage);
  for (int64_t step = 0; step < p.steps; ++step) {
    step_controller(p, t, step);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (first + i) * p.steps + step;
      if (!p.runs(first + i, step)) {
        rest(p, t, i, step);
        for (int64_t r = 0; r < s.heads; ++r) p.rows[at * s.heads + r] = 0;
        continue;
      }
      float* heads = t.heads + i * p.interface.wide;
      shape_heads(p, at, heads);
      copy(heads, p.numbers, p.heads + at * p.numbers);
      step_memory(p, t, i, step, heads, scratch);
    }
    turn_weights(t);
  }
  end_scan(p, t);
  write_rows<float>(t.usage, rows, s.rows, s.padded, p.usage_out + first * s.rows, 0);
}

// ---- backward ----

// What the backward of a scan carries, and gradients of one element, padded.
struct Carried : ScanBack {
  float *key, *strength, *gate, *add;
};

STMETA_FN inline Carried take_carried(const MemoryScan& p, const Tile& t, Scratch& scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads), vectors = s.heads * s.wide;
  Carried c = {take_scan_back(p, t, scratch)};
  c.key = scratch.take(vectors);
  c.strength = scratch.take(line);
  c.gate = scratch.take(line);
  c.add = scratch.take(vectors);
  return c;
}

// The memories before each step of [begin, end), again from the checkpoint and what was written.
STMETA_FN inline void repeat_segment(const MemoryScan& p, const Tile& t, const Carried& c,
                                     int64_t i, int64_t begin, int64_t end, Scratch scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t b = t.first + i;
  float* past = c.past + i * p.every * t.size;
  float *write = scratch.take(s.heads * s.padded), *keep = scratch.take(s.padded);
  const float* mark = p.checkpoints + (b * p.marks() + begin / p.every) * s.rows * s.width;
  read_rows(mark, s.width, s.rows, s.width, s.wide, past);
  MemorySizes writing = s;
  writing.reads = 0;
  for (int64_t step = begin; step + 1 < end && p.runs(b, step + 1); ++step) {
    const int64_t at = b * p.steps + step;
    float* previous = t.previous + i * t.looks;
    see_previous(p, b, step, previous);
    const LruaInputs e = spread_heads(p, at, p.heads + at * p.numbers, t, past, previous);
    choose_rows(s, p.options.shared, e, p.rows + at * s.heads, write, keep);
    const Access access = {nullptr, write, nullptr, e.add, keep, true};
    write_and_read(writing, access, past, past + t.size, nullptr);
    past += t.size;
  }
}

// One element's memory, a step back: gradients of its raw heads.
STMETA_FN inline void step_memory_back(const MemoryScan& p, const Tile& t, const Carried& c,
                                       int64_t i, int64_t step, int64_t begin, Scratch scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t b = t.first + i, at = b * p.steps + step, size = t.looks;
  const int64_t width = s.width, vectors = s.heads * width;
  see_step(p, t, c, i, step);
  const float *previous = t.previous + i * size, *weight = t.weight + i * size;
  const float* heads = p.heads + at * p.numbers;
  const float* memory = c.past + (i * p.every + step - begin) * t.size;
  const LruaInputs e = spread_heads(p, at, heads, t, memory, previous);
  float* carried = c.memory + i * t.size;
  lrua_backward(s, p.options, e,
                {weight, p.rows + at * s.heads, carried, c.weight + i * size, c.read, carried,
                 c.spare + i * size, c.key, c.strength, c.gate, c.add},
                scratch);
  float* d_heads = c.d_heads + i * p.numbers;
  for (int64_t r = 0; r < s.heads; ++r) {
    float* d = d_heads + r * p.per_head;
    const float* add = c.add + r * s.wide;
    copy(c.key + r * s.wide, width, d);
    if (p.write_key) {
      for (int64_t m = 0; m < width; ++m) d[m] += add[m];
    } else {
      copy(add, width, d + width);
    }
    // strength = 1 + 10 softplus(x), of which the slope is 1 - e^-softplus(x)
    const float soft = (e.strength[r] - 1.0f) / 10.0f, gate = e.gate[r];
    d[p.per_head - 2] = p.strength ? -10.0f * __builtin_expm1f(-soft) * c.strength[r] : 0.0f;
    d[p.per_head - 1] = c.gate[r] * gate * (1.0f - gate);
  }
  write_rows<float>(c.add, s.heads, width, s.wide, p.d_written + at * vectors, 0);
  copy(d_heads, p.numbers, p.d_heads + at * p.numbers);
}

STMETA_FN inline void backward(const MemoryScan& p, int64_t first, int64_t rows, float* floats) {
  Scratch scratch = {floats};
  const Tile t = take_tile(p, first, rows, scratch);
  Carried c = take_carried(p, t, scratch);
  start_scan_back(p, t, c);
  for (int64_t begin = (p.steps - 1) / p.every * p.every; begin >= 0; begin -= p.every) {
    const int64_t end = begin + p.every < p.steps ? begin + p.every : p.steps;
    for (int64_t i = 0; i < rows; ++i) repeat_segment(p, t, c, i, begin, end, scratch);
    for (int64_t step = end - 1; step >= begin; --step) {
      for (int64_t i = 0; i < rows; ++i) {
        if (p.runs(first + i, step)) {
          step_memory_back(p, t, c, i, step, begin, scratch);
        } else {
          rest_back(p, t, c, i, step);
          clear(p.d_written + ((first + i) * p.steps + step) * p.read(), p.read());
        }
      }
      step_controller_back(p, t, c, step);
      turn_weights_back(c);
    }
  }
  end_scan_back(p, t, c);
}

}  // namespace stmeta::STMETA_ISA
