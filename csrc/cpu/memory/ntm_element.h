// One step of an NTM memory for one instruction set, on one batch element, forward and backward.
// No guard: each instruction set includes it.

#include "cpu/memory/memory_access.h"

namespace stmeta::STMETA_ISA {

// What a step reads, padded: memory [N][wide], previous [H][padded], key [H][wide], numbers [H],
// shift [H][S], erase and add [W][wide].
struct NtmInputs {
  const float *memory, *previous, *key, *strength, *gate, *shift, *sharpen, *erase, *add;
  bool read_first;
  float eps;
};

STMETA_INLINE Access access_of(const MemorySizes& s, const NtmInputs& e, const float* weight) {
  const float* writing = weight + (s.heads - s.writes) * s.padded;
  return {weight, writing, e.erase, e.add, nullptr, e.read_first};
}

struct NtmOutputs {
  float *memory, *weight, *content, *read;  // memory may be the input's
};

STMETA_FN inline void ntm_forward(const MemorySizes& s, const NtmInputs& e, const NtmOutputs& out,
                                  Scratch scratch) {
  const Content c = compare(s, e.memory, e.key, e.eps, scratch);
  softmax_of_scores(s, c, e.strength, e.eps, out.content);
  for (int64_t h = 0; h < s.heads; ++h) {
    Scratch rest = scratch;
    const int64_t at = h * s.padded;
    const Location l =
        move_weights(s, out.content + at, e.previous + at, e.gate[h], e.shift + h * s.taps, rest);
    sharpen_weights(s, l, e.sharpen[h], out.weight + at);
  }
  write_and_read(s, access_of(s, e, out.weight), e.memory, out.memory, out.read);
}

// weight and content [H][padded] of the forward, gradients of what it gave; weight's is used up.
// content null: it is softened again.
struct NtmGrads {
  const float *weight, *content, *of_memory;
  float* of_weight;
  const float* of_read;
  // out; memory may be `of_memory`
  float *memory, *previous, *key, *strength, *gate, *shift, *sharpen, *erase, *add;
};

STMETA_FN inline void ntm_backward(const MemorySizes& s, const NtmInputs& e, const NtmGrads& g,
                                   Scratch scratch) {
  float* grad_content = scratch.take(s.heads * s.padded);
  const float* content = g.content;
  float* own = content == nullptr ? scratch.take(s.heads * s.padded) : nullptr;
  const Content c = compare(s, e.memory, e.key, e.eps, scratch);
  if (own != nullptr) {
    softmax_of_scores(s, c, e.strength, e.eps, own);
    content = own;
  }
  access_backward(s, access_of(s, e, g.weight), e.memory,
                  {g.of_memory, g.memory, g.of_read, g.of_weight,
                   g.of_weight + (s.heads - s.writes) * s.padded, g.erase, g.add},
                  scratch);
  for (int64_t h = 0; h < s.heads; ++h) {
    Scratch rest = scratch;
    const int64_t at = h * s.padded, taps = h * s.taps;
    const Location l =
        move_weights(s, content + at, e.previous + at, e.gate[h], e.shift + taps, rest);
    location_backward(s, l, content + at, e.previous + at, e.gate[h], e.shift + taps, e.sharpen[h],
                      g.weight + at, g.of_weight + at, grad_content + at, g.previous + at,
                      g.gate[h], g.shift + taps, g.sharpen[h], rest);
  }
  content_backward(s, c, e.memory, e.key, e.strength, content, e.eps, grad_content, g.memory, g.key,
                   g.strength, scratch);
}

}  // namespace stmeta::STMETA_ISA
