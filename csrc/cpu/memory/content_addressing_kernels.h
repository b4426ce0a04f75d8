// Kernels of content_addressing for one instruction set; csrc/common/each_isa.h includes this file.
#include "cpu/memory/memory_kernels.h"

namespace stmeta::STMETA_ISA {

template <typename T>
STMETA_FN void forward(const ContentAddressing& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const float* memory = see_rows<T>(scratch, p.memory, b, s).data;
    float* key = take_rows<T>(scratch, p.key, b, s.heads, s.width, s.wide);
    float* strength = take_rows<T>(scratch, p.strength, b, 1, s.heads, round_line(s.heads));
    float* weight = scratch.take(s.heads * s.padded);
    softmax_of_scores(s, compare(s, memory, key, p.eps, scratch), strength, p.eps, weight);
    write_rows<T>(weight, s.heads, s.rows, s.padded, p.weight_out, b);
  }
}

template <typename T>
STMETA_FN void backward(const ContentAddressing& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads);
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const float* memory = see_rows<T>(scratch, p.memory, b, s).data;
    float* key = take_rows<T>(scratch, p.key, b, s.heads, s.width, s.wide);
    float* strength = take_rows<T>(scratch, p.strength, b, 1, s.heads, line);
    float* grad = take_rows<T>(scratch, p.grad, b, s.heads, s.rows, s.padded);
    float* weight = take_rows<T>(scratch, p.weight, b, s.heads, s.rows, s.padded);
    float* grad_memory = place_rows<T>(p.d_memory, b, s, scratch.take(s.rows * s.wide));
    float *grad_key = scratch.take(s.heads * s.wide), *grad_strength = scratch.take(line);
    const Content c = compare(s, memory, key, p.eps, scratch);
    clear(grad_memory, s.rows * s.wide);
    content_backward(s, c, memory, key, strength, weight, p.eps, grad, grad_memory, grad_key,
                     grad_strength, scratch);
    write_rows<T>(grad_memory, s.rows, s.width, s.wide, p.d_memory, b);
    write_rows<T>(grad_key, s.heads, s.width, s.wide, p.d_key, b);
    write_rows<T>(grad_strength, 1, s.heads, line, p.d_strength, b);
  }
}

}  // namespace stmeta::STMETA_ISA
