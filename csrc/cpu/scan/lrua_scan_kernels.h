// Kernels of lrua_scan for one instruction set; csrc/common/each_isa.h includes this file.
#include "cpu/scan/lrua_scan_parts.h"

namespace stmeta::STMETA_ISA {

// ---- forward ----

// One element's memory at one step, from shaped heads on.
STMETA_FN inline void step_memory(const LruaScan& p, const Tile& t, int64_t i, int64_t step,
                                  const float* heads, Scratch scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t at = (t.first + i) * p.steps + step;
  float* memory = t.memory + i * t.size;
  save_checkpoint(p, t, i, step);
  const LruaInputs e = spread_heads(p, at, heads, t, memory, t.previous + i * t.weight_floats);
  lrua_forward(s, p.options, e,
               {memory, t.usage + i * s.padded, t.weight + i * t.weight_floats, t.read,
                p.rows + at * s.heads},
               scratch);
  show_step(p, t, i, step, t.read);
}

STMETA_FN inline void forward(const LruaScan& p, int64_t first, int64_t rows, float* floats) {
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
  float* step_weights;  // [rows][every + 1][weight_floats]: weights of a segment, before its first
                        // step first
  float* found;  // [rows][every][room_of_content]: `Content` of each step, and what it points to
};

// Floats of a step's `Content`, with itself in the first line.
STMETA_INLINE int64_t room_of_content(const MemorySizes& s) {
  return 16 + s.heads * (s.wide + s.padded) + round_line(s.heads) + s.padded;
}

STMETA_FN inline Carried take_carried(const LruaScan& p, const Tile& t, Scratch& scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads), vectors = s.heads * s.wide;
  Carried c = {take_scan_back(p, t, scratch)};
  c.key = scratch.take(vectors);
  c.strength = scratch.take(line);
  c.gate = scratch.take(line);
  c.add = scratch.take(vectors);
  c.step_weights = scratch.take(t.rows * (p.every + 1) * t.weight_floats);
  c.found = scratch.take(t.rows * p.every * room_of_content(p.sizes));
  c.cells = scratch.take(t.rows * (p.every + 1) * p.hidden);
  return c;
}

// Where the memory before step k of a segment is. Slots: the first of each part, then one part.
STMETA_INLINE float* memory_at(const LruaScan& p, const Tile& t, const Carried& c, int64_t i,
                               int64_t k) {
  const int64_t at = k % p.inner_every,
                slot = at == 0 ? k / p.inner_every : p.slots - p.inner_every + at;
  return c.past + (i * p.slots + slot) * t.size;
}

STMETA_INLINE float* weights_at(const LruaScan& p, const Tile& t, const Carried& c, int64_t i,
                                int64_t k) {
  return c.step_weights + (i * (p.every + 1) + k) * t.weight_floats;
}

STMETA_INLINE float* found_at(const LruaScan& p, const Carried& c, int64_t i, int64_t k) {
  return c.found + (i * p.every + k) * room_of_content(p.sizes);
}

// The memory and weights before a segment.
STMETA_FN inline void start_segment(const LruaScan& p, const Tile& t, const Carried& c, int64_t i,
                                    int64_t begin) {
  const MemorySizes& s = p.sizes;
  const int64_t b = t.first + i, checkpoint = b * p.num_checkpoints() + begin / p.every;
  read_rows(p.checkpoints + checkpoint * s.rows * s.width, s.width, s.rows, s.width, s.wide,
            memory_at(p, t, c, i, 0));
  float* step_weights = weights_at(p, t, c, i, 0);
  if (p.lean) {
    read_rows(p.weights + checkpoint * s.heads * s.rows, s.rows, s.heads, s.rows, s.padded,
              step_weights);
  } else {
    load_previous(p, b, begin, step_weights);
  }
}

// Steps [from, end) of a segment again, from the memory before `from`: the memories before them,
// and with `address` their weights, which are known at the second time.
STMETA_FN inline void repeat_steps(const LruaScan& p, const Tile& t, const Carried& c, int64_t i,
                                   int64_t from, int64_t end, bool address, Scratch scratch) {
  MemorySizes s = p.sizes;
  const int64_t b = t.first + i;
  const bool read_first = p.options.read_first;
  float *write = scratch.take(s.heads * s.padded), *keep = scratch.take(s.padded);
  for (int64_t step = from; step < end && p.runs(b, step); ++step) {
    const int64_t at = b * p.steps + step, k = step % p.every;
    const bool writes = step + 1 < end || (address && !read_first);
    float *memory = memory_at(p, t, c, i, k), *next = memory_at(p, t, c, i, k + 1);
    const float* heads = p.heads + at * p.numbers;
    const LruaInputs e = spread_heads(p, at, heads, t, memory, weights_at(p, t, c, i, k));
    if (writes) {
      s.reads = 0;
      choose_rows(s, p.options.shared, e, p.rows + at * s.heads, write, keep);
      write_and_read(s, {nullptr, write, nullptr, e.add, keep, true}, memory, next, nullptr);
    }
    if (!address) continue;
    float* place = found_at(p, c, i, k);
    Scratch room = {place + 16};
    const Content found = compare(s, read_first ? memory : next, e.key, p.options.eps, room);
    __builtin_memcpy(place, &found, sizeof(found));
    softmax_of_scores(s, found, e.strength, p.options.eps, weights_at(p, t, c, i, k + 1));
  }
}

// One element's memory, a step back: gradients of its raw heads.
STMETA_FN inline void step_memory_back(const LruaScan& p, const Tile& t, const Carried& c,
                                       int64_t i, int64_t step, Scratch scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t b = t.first + i, at = b * p.steps + step, k = step % p.every,
                size = t.weight_floats;
  const int64_t width = s.width, vectors = s.heads * width;
  load_read(p, c, b, i, step);
  const float *previous = weights_at(p, t, c, i, k), *weight = previous + size;
  const float* heads = p.heads + at * p.numbers;
  const float* memory = memory_at(p, t, c, i, k);
  const LruaInputs e = spread_heads(p, at, heads, t, memory, previous);
  float* carried = c.memory + i * t.size;
  Content found;
  __builtin_memcpy(&found, found_at(p, c, i, k), sizeof(found));
  lrua_backward(s, p.options, e,
                {weight, p.rows + at * s.heads, carried, c.weight + i * size, c.read, carried,
                 c.other_weight + i * size, c.key, c.strength, c.gate, c.add},
                scratch, &found);
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
  if (p.d_written != nullptr) {
    write_rows<float>(c.add, s.heads, width, s.wide, p.d_written + at * vectors, 0);
  }
  copy(d_heads, p.numbers, p.d_heads + at * p.numbers);
}

STMETA_FN inline void backward(const LruaScan& p, int64_t first, int64_t rows, float* floats) {
  Scratch scratch = {floats};
  const Tile t = take_tile(p, first, rows, scratch);
  Carried c = take_carried(p, t, scratch);
  start_scan_back(p, t, c);
  for (int64_t begin = (p.steps - 1) / p.every * p.every; begin >= 0; begin -= p.every) {
    const int64_t end = begin + p.every < p.steps ? begin + p.every : p.steps;
    for (int64_t i = 0; i < rows; ++i) {
      start_segment(p, t, c, i, begin);
      repeat_cells(p, c, first + i, i, begin, end);
      repeat_steps(p, t, c, i, begin, end, true, scratch);
    }
    for (int64_t step = end - 1; step >= begin; --step) {
      const int64_t part = begin + (step - begin) / p.inner_every * p.inner_every;
      const bool enters =
          step + 1 < end && step + 1 == part + p.inner_every;  // the last is there already
      for (int64_t i = 0; enters && i < rows; ++i) {
        repeat_steps(p, t, c, i, part, step + 1, false, scratch);
      }
      for (int64_t i = 0; i < rows; ++i) {
        if (p.runs(first + i, step)) {
          step_memory_back(p, t, c, i, step, scratch);
          continue;
        }
        rest_back(p, t, c, i, step);
        if (p.d_written != nullptr) {
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
