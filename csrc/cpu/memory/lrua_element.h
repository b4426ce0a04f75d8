// One step of an LRUA memory for one instruction set, on one batch element, forward and backward.
// No guard: each instruction set includes it.

#include "cpu/memory/memory_access.h"

namespace stmeta::STMETA_ISA {

// What a step reads, padded: memory [N][wide], previous [R][padded], key and add [R][wide], numbers
// [R].
struct LruaInputs {
  const float *memory, *previous, *key, *strength, *gate, *add;
};

// The least used rows, least first, the lower row on a tie.
STMETA_FN inline void find_least(const float* usage, int64_t rows, int64_t count, int64_t* least) {
  if (count == 0) return;
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
STMETA_FN inline void choose_rows(const MemorySizes& s, bool shared, const LruaInputs& e,
                                  const int64_t* least, float* write, float* keep) {
  for (int64_t n = 0; n < s.padded; ++n) keep[n] = 1.0f;
  for (int64_t r = 0; r < s.heads; ++r) keep[least[r]] = 0.0f;
  for (int64_t r = 0; r < s.heads; ++r) {
    float* row = write + r * s.padded;
    for (int64_t n = 0; n < s.padded; n += kLanes) {
      store(row + n, load(e.previous + r * s.padded + n) * splat(e.gate[r]));
    }
    for (int64_t i = 0; i < s.heads; ++i) {
      if (shared || i == r) row[least[i]] += 1.0f - e.gate[r];
    }
  }
}

struct LruaOutputs {
  float *memory, *usage, *weight, *read;  // memory may be the input's, and usage is in and out
  int64_t* least;                         // [R]
};

STMETA_FN inline void lrua_forward(const MemorySizes& s, const LruaOptions& o, const LruaInputs& e,
                                   const LruaOutputs& out, Scratch scratch) {
  float* write = scratch.take(s.heads * s.padded);
  float* keep = scratch.take(s.padded);
  find_least(out.usage, s.rows, s.heads, out.least);
  choose_rows(s, o.shared, e, out.least, write, keep);
  const Access access = {out.weight, write, nullptr, e.add, keep, o.read_first};
  const float* seen = e.memory;  // what is compared and read
  MemorySizes last = s;          // what is left of `write_and_read`, which has two halves
  if (!o.read_first) {
    MemorySizes writing = s;
    writing.reads = 0;
    write_and_read(writing, access, seen, out.memory, out.read);
    seen = out.memory;
    last.writes = 0;
  }
  const Content c = compare(s, seen, e.key, o.eps, scratch);
  softmax_of_scores(s, c, e.strength, o.eps, out.weight);
  const float* kept = o.read_first ? keep : nullptr;
  write_and_read(last, {out.weight, write, nullptr, e.add, kept, o.read_first}, seen, out.memory,
                 out.read);
  for (int64_t n = 0; n < s.padded; n += kLanes) {
    Vec sum = load(out.usage + n) * splat(o.decay);
    for (int64_t r = 0; r < s.heads; ++r) {
      sum += load(out.weight + r * s.padded + n) + load(write + r * s.padded + n);
    }
    store(out.usage + n, sum);
  }
}

// weight [R][padded] and least [R] of the forward; gradients of what it gave; weight's is used up.
// `found`: what the forward's `compare` gave, where that is still known.
struct LruaGrads {
  const float* weight;
  const int64_t* least;
  const float* of_memory;
  float* of_weight;
  const float* of_read;
  float *memory, *previous, *key, *strength, *gate, *add;  // out; memory may be `of_memory`
};

STMETA_FN inline void lrua_backward(const MemorySizes& s, const LruaOptions& o, const LruaInputs& e,
                                    const LruaGrads& g, Scratch scratch,
                                    const Content* found = nullptr) {
  const int64_t wide = s.wide, padded = s.padded;
  float* write = scratch.take(s.heads * padded);
  float* keep = scratch.take(padded);
  float* grad_write = g.previous;
  const float* source = e.memory;  // what was compared and read
  choose_rows(s, o.shared, e, g.least, write, keep);
  clear(grad_write, s.heads * padded);
  const Access access = {g.weight, write, nullptr, e.add, keep, o.read_first};
  MemorySizes writing = s;
  writing.reads = 0;
  if (o.read_first) {
    access_backward(s, access, source,
                    {g.of_memory, g.memory, g.of_read, g.of_weight, grad_write, nullptr, g.add},
                    scratch);
  } else {
    MemorySizes reading = s;
    reading.writes = 0;
    float* written = scratch.take(s.rows * wide);
    write_and_read(writing, access, source, written, nullptr);
    source = written;
    access_backward(reading, {g.weight, nullptr, nullptr, nullptr, nullptr, true}, source,
                    {g.of_memory, g.memory, g.of_read, g.of_weight, nullptr, nullptr, nullptr},
                    scratch);
  }
  const Content c = found != nullptr ? *found : compare(s, source, e.key, o.eps, scratch);
  content_backward(s, c, source, e.key, e.strength, g.weight, o.eps, g.of_weight, g.memory, g.key,
                   g.strength, scratch);
  if (!o.read_first) {
    access_backward(writing, access, e.memory,
                    {g.memory, g.memory, nullptr, nullptr, grad_write, nullptr, g.add}, scratch);
  }
  for (int64_t r = 0; r < s.heads; ++r) {
    float* grads = grad_write + r * padded;
    float gate = dot(grads, e.previous + r * padded, padded);
    for (int64_t i = 0; i < s.heads; ++i) {
      if (o.shared || i == r) gate -= grads[g.least[i]];
    }
    g.gate[r] = gate;
    for (int64_t n = 0; n < padded; n += kLanes) {
      store(grads + n, load(grads + n) * splat(e.gate[r]));
    }
  }
}

}  // namespace stmeta::STMETA_ISA
