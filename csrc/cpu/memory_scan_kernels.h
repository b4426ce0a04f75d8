// Kernels of memory_scan for one instruction set; csrc/common/each_isa.h includes this file.
#include "../cpu/memory_scan_parts.h"

namespace stmeta::STMETA_ISA {

// ---- forward ----

STMETA_FN inline void start_tile(const MemoryScan& p, const Tile& t) {
  const MemorySizes& s = p.sizes;
  const int64_t vectors = s.heads * s.width;
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t b = t.first + i;
    copy(p.h + b * p.hidden, p.hidden, t.fed + i * p.fed);
    if (p.fed > p.hidden) copy(p.reads + b * vectors, vectors, t.fed + i * p.fed + p.hidden);
    copy(p.c + b * p.hidden, p.hidden, t.cell + i * p.hidden);
    read_rows(p.memory + b * s.rows * s.width, s.width, s.rows, s.width, s.wide,
              t.memory + i * t.size);
    read_rows(p.usage + b * s.rows, s.rows, 1, s.rows, s.padded, t.usage + i * s.padded);
    read_rows(p.previous + b * s.heads * s.rows, s.rows, s.heads, s.rows, s.padded,
              t.previous + i * s.heads * s.padded);
  }
}

// Keeps the memory, one every sqrt(T) steps.
STMETA_FN inline void keep_mark(const MemoryScan& p, const Tile& t, int64_t i, int64_t step) {
  if (step % p.every != 0) return;
  const MemorySizes& s = p.sizes;
  const int64_t count = (p.steps + p.every - 1) / p.every;
  float* mark = p.checkpoints + ((t.first + i) * count + step / p.every) * s.rows * s.width;
  write_rows<float>(t.memory + i * t.size, s.rows, s.width, s.wide, mark, 0);
}

// A step behind the end of an element's episode: the state stays, nothing is shown.
STMETA_FN inline void rest(const MemoryScan& p, const Tile& t, int64_t i, int64_t step) {
  const MemorySizes& s = p.sizes;
  const int64_t at = (t.first + i) * p.steps + step, shown = p.hidden + s.heads * s.width;
  const int64_t size = s.heads * s.padded, all = s.heads * p.per_head;
  keep_mark(p, t, i, step);
  copy(t.previous + i * size, size, t.weight + i * size);
  write_rows<float>(t.weight + i * size, s.heads, s.rows, s.padded,
                    p.weights + at * s.heads * s.rows, 0);
  copy(t.cell + i * p.hidden, p.hidden, p.cells + at * p.hidden);
  clear(p.gates_out + at * 4 * p.hidden, 4 * p.hidden);
  clear(p.heads + at * all, all);
  clear(p.y + at * shown, shown);
  for (int64_t r = 0; r < s.heads; ++r) p.rows[at * s.heads + r] = 0;
}

// One element's memory at one step, from shaped heads on.
STMETA_FN inline void step_memory(const MemoryScan& p, const Tile& t, int64_t i, int64_t step,
                                  const float* heads, Scratch scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t at = (t.first + i) * p.steps + step, vectors = s.heads * s.width;
  float* memory = t.memory + i * t.size;
  float* weight = t.weight + i * s.heads * s.padded;
  const float* previous = t.previous + i * s.heads * s.padded;
  keep_mark(p, t, i, step);
  const LruaInputs e = spread_heads(p, at, heads, t, memory, previous);
  lrua_forward(s, p.options, e,
               {memory, t.usage + i * s.padded, weight, t.read, p.rows + at * s.heads}, scratch);
  write_rows<float>(weight, s.heads, s.rows, s.padded, p.weights + at * s.heads * s.rows, 0);
  float* y = p.y + at * (p.hidden + vectors);
  write_rows<float>(t.read, s.heads, s.width, s.wide, y + p.hidden, 0);
  if (p.fed > p.hidden) copy(y + p.hidden, vectors, t.fed + i * p.fed + p.hidden);
}

STMETA_FN inline void forward(const MemoryScan& p, int64_t first, int64_t rows, float* floats) {
  const MemorySizes& s = p.sizes;
  Scratch scratch = {floats};
  Tile t = take_tile(p, first, rows, scratch);
  const int64_t four = 4 * p.hidden, all = s.heads * p.per_head;
  start_tile(p, t);
  for (int64_t step = 0; step < p.steps; ++step) {
    for (int64_t i = 0; i < rows; ++i) {
      float* gates = t.gates + i * p.recurrent.wide;
      copy(p.gates + ((first + i) * p.steps + step) * four, four, gates);
      clear(gates + four, p.recurrent.wide - four);
    }
    multiply(p.recurrent, t.fed, p.fed, rows, t.gates);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (first + i) * p.steps + step;
      float *gates = t.gates + i * p.recurrent.wide, *h = t.fed + i * p.fed;
      float* heads = t.heads + i * p.interface.wide;
      copy(p.bias, all, heads);
      clear(heads + all, p.interface.wide - all);
      if (!p.runs(first + i, step)) continue;
      open_all(p.hidden, gates, t.cell + i * p.hidden, h);
      copy(gates, four, p.gates_out + at * four);
      copy(t.cell + i * p.hidden, p.hidden, p.cells + at * p.hidden);
      copy(h, p.hidden, p.y + at * (p.hidden + s.heads * s.width));
    }
    multiply(p.interface, t.fed, p.fed, rows, t.heads);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (first + i) * p.steps + step;
      if (!p.runs(first + i, step)) {
        rest(p, t, i, step);
        continue;
      }
      float* heads = t.heads + i * p.interface.wide;
      shape_heads(p, at, heads);
      copy(heads, all, p.heads + at * all);
      step_memory(p, t, i, step, heads, scratch);
    }
    float* weight = t.weight;
    t.weight = t.previous;
    t.previous = weight;
  }
  for (int64_t i = 0; i < rows; ++i) {
    write_rows<float>(t.memory + i * t.size, s.rows, s.width, s.wide, p.memory_out, first + i);
    write_rows<float>(t.usage + i * s.padded, 1, s.rows, s.padded, p.usage_out, first + i);
    write_rows<float>(t.previous + i * s.heads * s.padded, s.heads, s.rows, s.padded, p.weight_out,
                      first + i);
    copy(t.cell + i * p.hidden, p.hidden, p.c_out + (first + i) * p.hidden);
  }
}

// ---- backward ----

// What the backward carries from step to step, of each element, and its working rows.
struct Carried {
  float *fed, *cell;                  // [rows][padded K], [rows][H]
  float *memory, *weight, *spare;     // padded; spare [rows][R][padded] takes turns with weight
  float *d_gates, *d_heads, *grad_h;  // [rows][4H], [rows][R * P], [rows][padded H]
  float* past;                        // [every][N][wide]: memories of one element's segment
  float *key, *strength, *gate, *add, *read;  // gradients of one element, padded
};

STMETA_FN inline Carried take_carried(const MemoryScan& p, const Tile& t, Scratch& scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads), vectors = s.heads * s.wide;
  Carried c = {};
  c.fed = scratch.take(t.rows * p.recurrent.wide);
  c.cell = scratch.take(t.rows * p.hidden);
  c.memory = scratch.take(t.rows * t.size);
  c.weight = scratch.take(t.rows * s.heads * s.padded);
  c.spare = scratch.take(t.rows * s.heads * s.padded);
  c.d_gates = scratch.take(t.rows * 4 * p.hidden);
  c.d_heads = scratch.take(t.rows * s.heads * p.per_head);
  c.grad_h = scratch.take(t.rows * p.interface.wide);
  c.past = scratch.take(t.rows * p.every * t.size);
  c.key = scratch.take(vectors);
  c.strength = scratch.take(line);
  c.gate = scratch.take(line);
  c.add = scratch.take(vectors);
  c.read = scratch.take(vectors);
  return c;
}

// The read weights before a step, padded.
STMETA_FN inline void see_previous(const MemoryScan& p, int64_t b, int64_t step, float* out) {
  const MemorySizes& s = p.sizes;
  const int64_t size = s.heads * s.rows;
  const float* from =
      step == 0 ? p.previous + b * size : p.weights + (b * p.steps + step - 1) * size;
  read_rows(from, s.rows, s.heads, s.rows, s.padded, out);
}

// The memories before each step of [begin, end), again from the checkpoint and what was written.
STMETA_FN inline void repeat_segment(const MemoryScan& p, const Tile& t, const Carried& c,
                                     int64_t i, int64_t begin, int64_t end, Scratch scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t b = t.first + i, count = (p.steps + p.every - 1) / p.every;
  float* past = c.past + i * p.every * t.size;
  float *write = scratch.take(s.heads * s.padded), *keep = scratch.take(s.padded);
  const float* mark = p.checkpoints + (b * count + begin / p.every) * s.rows * s.width;
  read_rows(mark, s.width, s.rows, s.width, s.wide, past);
  MemorySizes writing = s;
  writing.reads = 0;
  for (int64_t step = begin; step + 1 < end && p.runs(b, step + 1); ++step) {
    const int64_t at = b * p.steps + step;
    float* previous = t.previous + i * s.heads * s.padded;
    see_previous(p, b, step, previous);
    const LruaInputs e =
        spread_heads(p, at, p.heads + at * s.heads * p.per_head, t, past, previous);
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
  const int64_t b = t.first + i, at = b * p.steps + step, size = s.heads * s.padded;
  const int64_t width = s.width, vectors = s.heads * width;
  float *previous = t.previous + i * size, *weight = t.weight + i * size;
  see_previous(p, b, step, previous);
  read_rows(p.weights + at * s.heads * s.rows, s.rows, s.heads, s.rows, s.padded, weight);
  const float* heads = p.heads + at * s.heads * p.per_head;
  const float* memory = c.past + (i * p.every + step - begin) * t.size;
  const LruaInputs e = spread_heads(p, at, heads, t, memory, previous);
  const float* grad_y = p.grad_y + at * (p.hidden + vectors) + p.hidden;
  read_rows(grad_y, width, s.heads, width, s.wide, c.read);
  const float* fed = c.fed + i * p.recurrent.wide + p.hidden;
  for (int64_t r = 0; p.fed > p.hidden && r < s.heads; ++r) {
    for (int64_t m = 0; m < width; ++m) c.read[r * s.wide + m] += fed[r * width + m];
  }
  float* carried = c.memory + i * t.size;
  lrua_backward(s, p.options, e,
                {weight, p.rows + at * s.heads, carried, c.weight + i * size, c.read, carried,
                 c.spare + i * size, c.key, c.strength, c.gate, c.add},
                scratch);
  float* d_heads = c.d_heads + i * s.heads * p.per_head;
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
  copy(d_heads, s.heads * p.per_head, p.d_heads + at * s.heads * p.per_head);
}

// A step back behind the end of an element's episode: gradients of the state pass as they are.
STMETA_FN inline void rest_back(const MemoryScan& p, const Tile& t, const Carried& c, int64_t i,
                                int64_t step) {
  const MemorySizes& s = p.sizes;
  const int64_t at = (t.first + i) * p.steps + step, size = s.heads * s.padded;
  const int64_t all = s.heads * p.per_head, vectors = s.heads * s.width;
  copy(c.weight + i * size, size, c.spare + i * size);
  clear(c.d_heads + i * all, all);
  clear(p.d_heads + at * all, all);
  clear(p.d_written + at * vectors, vectors);
}

// The controller, a step back.
STMETA_FN inline void step_controller_back(const MemoryScan& p, const Tile& t, const Carried& c,
                                           int64_t step) {
  const MemorySizes& s = p.sizes;
  const int64_t hidden = p.hidden, four = 4 * hidden, out = hidden + s.heads * s.width;
  for (int64_t i = 0; i < t.rows; ++i) {
    const float* y = p.grad_y + ((t.first + i) * p.steps + step) * out;
    const float* fed = c.fed + i * p.recurrent.wide;
    float* grad = c.grad_h + i * p.interface.wide;
    for (int64_t n = 0; n < hidden; ++n) grad[n] = y[n] + fed[n];
    clear(grad + hidden, p.interface.wide - hidden);
  }
  multiply(p.interface, c.d_heads, s.heads * p.per_head, t.rows, c.grad_h);
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t b = t.first + i, at = b * p.steps + step;
    if (!p.runs(b, step)) {
      clear(c.d_gates + i * four, four);
      clear(p.d_gates + at * four, four);
      continue;
    }
    const float* before = step == 0 ? p.c + b * hidden : p.cells + (at - 1) * hidden;
    float* d = c.d_gates + i * four;
    close_all(hidden, p.gates_out + at * four, p.cells + at * hidden, before,
              c.grad_h + i * p.interface.wide, c.cell + i * hidden, d);
    copy(d, four, p.d_gates + at * four);
  }
  clear(c.fed, t.rows * p.recurrent.wide);
  multiply(p.recurrent, c.d_gates, four, t.rows, c.fed);
}

STMETA_FN inline void backward(const MemoryScan& p, int64_t first, int64_t rows, float* floats) {
  const MemorySizes& s = p.sizes;
  Scratch scratch = {floats};
  const Tile t = take_tile(p, first, rows, scratch);
  Carried c = take_carried(p, t, scratch);
  clear(c.fed, rows * p.recurrent.wide);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t b = first + i;
    copy(p.grad_c + b * p.hidden, p.hidden, c.cell + i * p.hidden);
    read_rows(p.grad_memory + b * s.rows * s.width, s.width, s.rows, s.width, s.wide,
              c.memory + i * t.size);
    read_rows(p.grad_weight + b * s.heads * s.rows, s.rows, s.heads, s.rows, s.padded,
              c.weight + i * s.heads * s.padded);
  }
  for (int64_t begin = (p.steps - 1) / p.every * p.every; begin >= 0; begin -= p.every) {
    const int64_t end = begin + p.every < p.steps ? begin + p.every : p.steps;
    for (int64_t i = 0; i < rows; ++i) repeat_segment(p, t, c, i, begin, end, scratch);
    for (int64_t step = end - 1; step >= begin; --step) {
      for (int64_t i = 0; i < rows; ++i) {
        if (p.runs(first + i, step)) {
          step_memory_back(p, t, c, i, step, begin, scratch);
        } else {
          rest_back(p, t, c, i, step);
        }
      }
      step_controller_back(p, t, c, step);
      float* spare = c.spare;
      c.spare = c.weight;
      c.weight = spare;
    }
  }
  const int64_t vectors = s.heads * s.width;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t b = first + i;
    const float* fed = c.fed + i * p.recurrent.wide;
    write_rows<float>(c.memory + i * t.size, s.rows, s.width, s.wide, p.d_memory, b);
    write_rows<float>(c.weight + i * s.heads * s.padded, s.heads, s.rows, s.padded, p.d_previous,
                      b);
    copy(fed, p.hidden, p.d_h + b * p.hidden);
    copy(c.cell + i * p.hidden, p.hidden, p.d_c + b * p.hidden);
    if (p.fed > p.hidden) {
      copy(fed + p.hidden, vectors, p.d_reads + b * vectors);
    } else {
      clear(p.d_reads + b * vectors, vectors);
    }
  }
}

}  // namespace stmeta::STMETA_ISA
