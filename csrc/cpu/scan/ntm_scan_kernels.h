// Kernels of ntm_scan for one instruction set; csrc/common/each_isa.h includes this file.
#include "cpu/memory/ntm_element.h"
#include "cpu/scan/scan_controller.h"

namespace stmeta::STMETA_ISA {

// What the heads of one element ask of the memory, padded; or the gradients of it.
struct HeadVectors {
  float *key, *strength, *gate, *shift, *sharpen, *erase, *add;
};

STMETA_FN inline HeadVectors take_vectors(const MemorySizes& s, Scratch& scratch) {
  const int64_t line = round_line(s.heads);
  HeadVectors v = {};
  v.key = scratch.take(s.heads * s.wide);
  v.strength = scratch.take(line);
  v.gate = scratch.take(line);
  v.shift = scratch.take(s.heads * s.taps);
  v.sharpen = scratch.take(line);
  v.erase = scratch.take(s.writes * s.wide);
  v.add = scratch.take(s.writes * s.wide);
  return v;
}

// ---- heads ----

// Both work on `count` numbers in place; the last ones, which fill no vector, go through a copy.
STMETA_FN inline void sigmoid_all(float* x, int64_t count) {
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) store(x + n, sigmoid_of(load(x + n)));
  float tail[kLanes] = {};
  copy(x + n, count - n, tail);
  store(tail, sigmoid_of(load(tail)));
  copy(tail, count - n, x + n);
}

STMETA_FN inline void tanh_all(float* x, int64_t count) {
  for (int64_t n = 0; n < count; ++n) x[n] = __builtin_tanhf(x[n]);
}

// Raw numbers of one element's heads become keys, softplus of strength and sharpness, gates,
// shifts, erase and add vectors, in place.
STMETA_FN inline void shape_heads(const NtmScan& p, float* heads) {
  const MemorySizes& s = p.sizes;
  for (int64_t h = 0; h < s.heads; ++h, heads += p.per_head) {
    if (p.tanh_key) tanh_all(heads, s.width);
    float *last = heads + s.width, *shift = last + 3;
    for (int i = 0; i < 2; ++i) {
      const float x = last[i];  // softplus, without overflow
      last[i] = (x > 0.0f ? x : 0.0f) + __builtin_log1pf(__builtin_expf(x > 0.0f ? -x : x));
    }
    last[2] = sigmoid_number(last[2]);
    float most = shift[0], sum = 0.0f;
    for (int64_t k = 1; k < s.taps; ++k) most = shift[k] > most ? shift[k] : most;
    for (int64_t k = 0; k < s.taps; ++k) {
      shift[k] = __builtin_expf(shift[k] - most);
      sum += shift[k];
    }
    for (int64_t k = 0; k < s.taps; ++k) shift[k] /= sum;
  }
  sigmoid_all(heads, s.writes * s.width);
  if (p.tanh_add) tanh_all(heads + s.writes * s.width, s.writes * s.width);
}

// The erase and add vectors, of shaped heads.
STMETA_FN inline void spread_writing(const NtmScan& p, const float* heads, const HeadVectors& v) {
  const MemorySizes& s = p.sizes;
  const float* writing = heads + s.heads * p.per_head;
  read_rows(writing, s.width, s.writes, s.width, s.wide, v.erase);
  read_rows(writing + s.writes * s.width, s.width, s.writes, s.width, s.wide, v.add);
}

STMETA_FN inline NtmInputs spread_heads(const NtmScan& p, const float* heads, const HeadVectors& v,
                                        const float* memory, const float* previous) {
  const MemorySizes& s = p.sizes;
  read_rows(heads, p.per_head, s.heads, s.width, s.wide, v.key);
  for (int64_t h = 0; h < s.heads; ++h) {
    const float* last = heads + h * p.per_head + s.width;
    v.strength[h] = last[0];
    v.sharpen[h] = 1.0f + last[1];
    v.gate[h] = last[2];
    copy(last + 3, s.taps, v.shift + h * s.taps);
  }
  spread_writing(p, heads, v);
  return {memory,    previous, v.key, v.strength,   v.gate, v.shift,
          v.sharpen, v.erase,  v.add, p.read_first, p.eps};
}

// Gradients of the raw numbers, from those of what they became.
STMETA_FN inline void join_heads(const NtmScan& p, const float* heads, const HeadVectors& d,
                                 float* out) {
  const MemorySizes& s = p.sizes;
  const int64_t width = s.width, taps = s.taps;
  for (int64_t h = 0; h < s.heads; ++h, heads += p.per_head, out += p.per_head) {
    const float *key = d.key + h * s.wide, *last = heads + width, *shift = last + 3;
    for (int64_t m = 0; m < width; ++m) {
      out[m] = p.tanh_key ? key[m] * (1.0f - heads[m] * heads[m]) : key[m];
    }
    // The slope of softplus(x) is 1 - e^-softplus(x).
    out[width] = -__builtin_expm1f(-last[0]) * d.strength[h];
    out[width + 1] = -__builtin_expm1f(-last[1]) * d.sharpen[h];
    out[width + 2] = d.gate[h] * last[2] * (1.0f - last[2]);
    const float* of_shift = d.shift + h * taps;
    float mean = 0.0f;
    for (int64_t k = 0; k < taps; ++k) mean += shift[k] * of_shift[k];
    for (int64_t k = 0; k < taps; ++k) out[width + 3 + k] = shift[k] * (of_shift[k] - mean);
  }
  const int64_t all = s.writes * width;
  for (int64_t w = 0; w < s.writes; ++w) {
    const float *erase = heads + w * width, *add = erase + all;
    const float *of_erase = d.erase + w * s.wide, *of_add = d.add + w * s.wide;
    for (int64_t m = 0; m < width; ++m) {
      out[w * width + m] = of_erase[m] * erase[m] * (1.0f - erase[m]);
      out[all + w * width + m] = p.tanh_add ? of_add[m] * (1.0f - add[m] * add[m]) : of_add[m];
    }
  }
}

// ---- forward ----

STMETA_FN inline void forward(const NtmScan& p, int64_t first, int64_t rows, float* floats) {
  const MemorySizes& s = p.sizes;
  Scratch scratch = {floats};
  ScanTile t = take_scan_tile(p, first, rows, scratch);
  const HeadVectors vectors = take_vectors(s, scratch);
  float *content = scratch.take(t.weight_floats), *read = scratch.take(s.reads * s.wide);
  start_scan(p, t);
  for (int64_t step = 0; step < p.steps; ++step) {
    step_controller(p, t, step);
    for (int64_t i = 0; i < rows; ++i) {
      if (!p.runs(first + i, step)) {
        rest(p, t, i, step);
        continue;
      }
      float *heads = t.heads + i * p.interface.wide, *memory = t.memory + i * t.size;
      shape_heads(p, heads);
      copy(heads, p.numbers, p.heads + ((first + i) * p.steps + step) * p.numbers);
      save_checkpoint(p, t, i, step);
      const NtmInputs e = spread_heads(p, heads, vectors, memory, t.previous + i * t.weight_floats);
      ntm_forward(s, e, {memory, t.weight + i * t.weight_floats, content, read}, scratch);
      show_step(p, t, i, step, read);
    }
    turn_weights(t);
  }
  end_scan(p, t);
}

// ---- backward ----

// The memories before each step of [begin, end), again from the checkpoint and what was written.
STMETA_FN inline void repeat_segment(const NtmScan& p, const ScanTile& t, const ScanBack& c,
                                     const HeadVectors& v, int64_t i, int64_t begin, int64_t end) {
  const MemorySizes& s = p.sizes;
  const int64_t b = t.first + i, reading = s.heads - s.writes;
  float *past = c.past + i * p.every * t.size, *write = t.weight + i * t.weight_floats;
  const float* checkpoint =
      p.checkpoints + (b * p.num_checkpoints() + begin / p.every) * s.rows * s.width;
  read_rows(checkpoint, s.width, s.rows, s.width, s.wide, past);
  MemorySizes writing = s;
  writing.reads = 0;
  for (int64_t step = begin; step + 1 < end && p.runs(b, step + 1); ++step) {
    const int64_t at = b * p.steps + step;
    spread_writing(p, p.heads + at * p.numbers, v);
    read_rows(p.weights + (at * s.heads + reading) * s.rows, s.rows, s.writes, s.rows, s.padded,
              write);
    const Access access = {nullptr, write, v.erase, v.add, nullptr, true};
    write_and_read(writing, access, past, past + t.size, nullptr);
    past += t.size;
  }
}

// One element's memory, a step back: gradients of its raw heads.
STMETA_FN inline void step_memory_back(const NtmScan& p, const ScanTile& t, const ScanBack& c,
                                       const HeadVectors& v, const HeadVectors& d, int64_t i,
                                       int64_t step, int64_t begin, Scratch scratch) {
  const int64_t at = (t.first + i) * p.steps + step;
  const float *heads = p.heads + at * p.numbers, *weight = t.weight + i * t.weight_floats;
  const float* memory = c.past + (i * p.every + step - begin) * t.size;
  load_step(p, t, c, i, step);
  const NtmInputs e = spread_heads(p, heads, v, memory, t.previous + i * t.weight_floats);
  float *carried = c.memory + i * t.size, *out = c.d_heads + i * p.numbers;
  ntm_backward(p.sizes, e,
               {weight, nullptr, carried, c.weight + i * t.weight_floats, c.read, carried,
                c.other_weight + i * t.weight_floats, d.key, d.strength, d.gate, d.shift, d.sharpen,
                d.erase, d.add},
               scratch);
  join_heads(p, heads, d, out);
  copy(out, p.numbers, p.d_heads + at * p.numbers);
}

STMETA_FN inline void backward(const NtmScan& p, int64_t first, int64_t rows, float* floats) {
  Scratch scratch = {floats};
  const ScanTile t = take_scan_tile(p, first, rows, scratch);
  ScanBack c = take_scan_back(p, t, scratch);
  const HeadVectors vectors = take_vectors(p.sizes, scratch);
  const HeadVectors grads = take_vectors(p.sizes, scratch);
  start_scan_back(p, t, c);
  for (int64_t begin = (p.steps - 1) / p.every * p.every; begin >= 0; begin -= p.every) {
    const int64_t end = begin + p.every < p.steps ? begin + p.every : p.steps;
    for (int64_t i = 0; i < rows; ++i) repeat_segment(p, t, c, vectors, i, begin, end);
    for (int64_t step = end - 1; step >= begin; --step) {
      for (int64_t i = 0; i < rows; ++i) {
        if (p.runs(first + i, step)) {
          step_memory_back(p, t, c, vectors, grads, i, step, begin, scratch);
        } else {
          rest_back(p, t, c, i, step);
        }
      }
      step_controller_back(p, t, c, step);
      turn_weights_back(c);
    }
  }
  end_scan_back(p, t, c);
}

}  // namespace stmeta::STMETA_ISA
