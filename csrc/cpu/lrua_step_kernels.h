// Kernels of lrua_step for one instruction set; csrc/common/each_isa.h includes this file.
#include "../cpu/memory_access.h"

namespace stmeta::STMETA_ISA {

struct LruaElement {
  Rows memory;
  float *previous, *key, *strength, *gate, *add;
};

template <typename T>
STMETA_FN LruaElement take_element(const LruaStep& p, int64_t b, Scratch& scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads);
  return {see_rows<T>(scratch, p.memory, b, s),
          take_rows<T>(scratch, p.previous, b, s.heads, s.rows, s.padded),
          take_rows<T>(scratch, p.key, b, s.heads, s.width, s.wide),
          take_rows<T>(scratch, p.strength, b, 1, s.heads, line),
          take_rows<T>(scratch, p.gate, b, 1, s.heads, line),
          take_rows<T>(scratch, p.add, b, s.heads, s.width, s.wide)};
}

// The least used rows, least first, the lower row on a tie.
STMETA_FN inline void find_least(const float* usage, int64_t rows, int64_t count, int64_t* least) {
  for (int64_t i = 0; i < count; ++i) least[i] = -1;
  for (int64_t n = 0; n < rows; ++n) {
    if (least[count - 1] >= 0 && !(usage[n] < usage[least[count - 1]])) continue;
    int64_t i = count - 1;
    for (; i > 0 && (least[i - 1] < 0 || usage[n] < usage[least[i - 1]]); --i)
      least[i] = least[i - 1];
    least[i] = n;
  }
}

// write [R][padded] = gate * previous + (1 - gate) * least; keep [padded] is 0 at the least used
// rows and 1 elsewhere.
STMETA_FN inline void choose_rows(const LruaStep& p, const LruaElement& e, const int64_t* least,
                                  float* write, float* keep) {
  const MemorySizes& s = p.sizes;
  for (int64_t n = 0; n < s.padded; ++n) keep[n] = 1.0f;
  for (int64_t r = 0; r < s.heads; ++r) keep[least[r]] = 0.0f;
  for (int64_t r = 0; r < s.heads; ++r) {
    float* row = write + r * s.padded;
    for (int64_t n = 0; n < s.padded; n += kLanes) {
      store(row + n, load(e.previous + r * s.padded + n) * splat(e.gate[r]));
    }
    for (int64_t i = 0; i < s.heads; ++i) {
      if (p.shared || i == r) row[least[i]] += 1.0f - e.gate[r];
    }
  }
}

template <typename T>
STMETA_FN void forward(const LruaStep& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const LruaElement e = take_element<T>(p, b, scratch);
    float* usage = take_rows<T>(scratch, p.usage, b, 1, s.rows, s.padded);
    float* write = scratch.take(s.heads * s.padded);
    float* keep = scratch.take(s.padded);
    float* weight = scratch.take(s.heads * s.padded);
    float* read = scratch.take(s.heads * s.wide);
    int64_t* least = p.rows_out + b * s.heads;
    float* out = place_rows<T>(p.memory_out, b, s, e.memory.own);
    find_least(usage, s.rows, s.heads, least);
    choose_rows(p, e, least, write, keep);
    const Access access = {weight, write, nullptr, e.add, keep, p.read_first};
    const float* seen = e.memory.data;  // what is compared and read
    MemorySizes last = s;               // what is left of `write_and_read`, which has two halves
    if (!p.read_first) {
      MemorySizes writing = s;
      writing.reads = 0;
      write_and_read(writing, access, seen, out, read);
      seen = out;
      last.writes = 0;
    }
    const Content c = compare(s, seen, e.key, p.eps, scratch);
    soften(s, c, e.strength, p.eps, weight);
    const float* kept = p.read_first ? keep : nullptr;
    write_and_read(last, {weight, write, nullptr, e.add, kept, p.read_first}, seen, out, read);
    for (int64_t n = 0; n < s.padded; n += kLanes) {
      Vec sum = load(usage + n) * splat(p.decay);
      for (int64_t r = 0; r < s.heads; ++r) {
        sum += load(weight + r * s.padded + n) + load(write + r * s.padded + n);
      }
      store(usage + n, sum);
    }
    write_rows<T>(out, s.rows, s.width, s.wide, p.memory_out, b);
    write_rows<T>(usage, 1, s.rows, s.padded, p.usage_out, b);
    write_rows<T>(weight, s.heads, s.rows, s.padded, p.weight_out, b);
    write_rows<T>(read, s.heads, s.width, s.wide, p.read_out, b);
  }
}

template <typename T>
STMETA_FN void backward(const LruaStep& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads), wide = s.wide, padded = s.padded;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const LruaElement e = take_element<T>(p, b, scratch);
    const Rows grad = see_rows<T>(scratch, p.grad_memory, b, s);
    float* grad_memory = place_rows<T>(p.d_memory, b, s, grad.own);
    float* grad_weight = take_rows<T>(scratch, p.grad_weight, b, s.heads, s.rows, padded);
    float* grad_read = take_rows<T>(scratch, p.grad_read, b, s.heads, s.width, wide);
    float* weight = take_rows<T>(scratch, p.weight, b, s.heads, s.rows, padded);
    float* write = scratch.take(s.heads * padded);
    float* keep = scratch.take(padded);
    float* grad_write = scratch.take(s.heads * padded);
    float* grad_key = scratch.take(s.heads * wide);
    float* grad_add = scratch.take(s.heads * wide);
    float *grad_strength = scratch.take(line), *grad_gate = scratch.take(line);
    const float* source = e.memory.data;  // what was compared and read
    const int64_t* least = p.rows_in + b * s.heads;
    choose_rows(p, e, least, write, keep);
    clear(grad_write, s.heads * padded);
    const Access access = {weight, write, nullptr, e.add, keep, p.read_first};
    MemorySizes writing = s;
    writing.reads = 0;
    if (p.read_first) {
      access_backward(
          s, access, source,
          {grad.data, grad_memory, grad_read, grad_weight, grad_write, nullptr, grad_add});
    } else {
      MemorySizes reading = s;
      reading.writes = 0;
      float* written = scratch.take(s.rows * wide);
      write_and_read(writing, access, source, written, nullptr);
      source = written;
      access_backward(reading, {weight, nullptr, nullptr, nullptr, nullptr, true}, source,
                      {grad.data, grad_memory, grad_read, grad_weight, nullptr, nullptr, nullptr});
    }
    const Content c = compare(s, source, e.key, p.eps, scratch);
    content_backward(s, c, source, e.key, e.strength, weight, p.eps, grad_weight, grad_memory,
                     grad_key, grad_strength, scratch);
    if (!p.read_first) {
      access_backward(writing, access, e.memory.data,
                      {grad_memory, grad_memory, nullptr, nullptr, grad_write, nullptr, grad_add});
    }
    for (int64_t r = 0; r < s.heads; ++r) {
      float* grads = grad_write + r * padded;
      float gate = dot(grads, e.previous + r * padded, padded);
      for (int64_t i = 0; i < s.heads; ++i) {
        if (p.shared || i == r) gate -= grads[least[i]];
      }
      grad_gate[r] = gate;
      for (int64_t n = 0; n < padded; n += kLanes)
        store(grads + n, load(grads + n) * splat(e.gate[r]));
    }
    write_rows<T>(grad_memory, s.rows, s.width, wide, p.d_memory, b);
    write_rows<T>(grad_write, s.heads, s.rows, padded, p.d_previous, b);
    write_rows<T>(grad_key, s.heads, s.width, wide, p.d_key, b);
    write_rows<T>(grad_strength, 1, s.heads, line, p.d_strength, b);
    write_rows<T>(grad_gate, 1, s.heads, line, p.d_gate, b);
    write_rows<T>(grad_add, s.heads, s.width, wide, p.d_add, b);
  }
}

}  // namespace stmeta::STMETA_ISA
