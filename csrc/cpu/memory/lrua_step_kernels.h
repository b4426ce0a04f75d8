// Kernels of lrua_step for one instruction set; csrc/common/each_isa.h includes this file.
#include "cpu/memory/lrua_element.h"

namespace stmeta::STMETA_ISA {

// A batch element's inputs; `own` is the memory's copy, see `Rows`.
template <typename T>
STMETA_FN LruaInputs take_element(const LruaStep& p, int64_t b, Scratch& scratch, float*& own) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads);
  const Rows memory = see_rows<T>(scratch, p.memory, b, s);
  own = memory.own;
  return {memory.data,
          take_rows<T>(scratch, p.previous, b, s.heads, s.rows, s.padded),
          take_rows<T>(scratch, p.key, b, s.heads, s.width, s.wide),
          take_rows<T>(scratch, p.strength, b, 1, s.heads, line),
          take_rows<T>(scratch, p.gate, b, 1, s.heads, line),
          take_rows<T>(scratch, p.add, b, s.heads, s.width, s.wide)};
}

template <typename T>
STMETA_FN void forward(const LruaStep& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    float* own = nullptr;
    const LruaInputs e = take_element<T>(p, b, scratch, own);
    const LruaOutputs out = {place_rows<T>(p.memory_out, b, s, own),
                             take_rows<T>(scratch, p.usage, b, 1, s.rows, s.padded),
                             scratch.take(s.heads * s.padded), scratch.take(s.heads * s.wide),
                             p.rows_out + b * s.heads};
    lrua_forward(s, p.options, e, out, scratch);
    write_rows<T>(out.memory, s.rows, s.width, s.wide, p.memory_out, b);
    write_rows<T>(out.usage, 1, s.rows, s.padded, p.usage_out, b);
    write_rows<T>(out.weight, s.heads, s.rows, s.padded, p.weight_out, b);
    write_rows<T>(out.read, s.heads, s.width, s.wide, p.read_out, b);
  }
}

template <typename T>
STMETA_FN void backward(const LruaStep& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads), vectors = s.heads * s.wide;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    float* own = nullptr;
    const LruaInputs e = take_element<T>(p, b, scratch, own);
    const Rows grad = see_rows<T>(scratch, p.grad_memory, b, s);
    const LruaGrads g = {take_rows<T>(scratch, p.weight, b, s.heads, s.rows, s.padded),
                         p.rows_in + b * s.heads,
                         grad.data,
                         take_rows<T>(scratch, p.grad_weight, b, s.heads, s.rows, s.padded),
                         take_rows<T>(scratch, p.grad_read, b, s.heads, s.width, s.wide),
                         place_rows<T>(p.d_memory, b, s, grad.own),
                         scratch.take(s.heads * s.padded),
                         scratch.take(vectors),
                         scratch.take(line),
                         scratch.take(line),
                         scratch.take(vectors)};
    lrua_backward(s, p.options, e, g, scratch);
    write_rows<T>(g.memory, s.rows, s.width, s.wide, p.d_memory, b);
    write_rows<T>(g.previous, s.heads, s.rows, s.padded, p.d_previous, b);
    write_rows<T>(g.key, s.heads, s.width, s.wide, p.d_key, b);
    write_rows<T>(g.strength, 1, s.heads, line, p.d_strength, b);
    write_rows<T>(g.gate, 1, s.heads, line, p.d_gate, b);
    write_rows<T>(g.add, s.heads, s.width, s.wide, p.d_add, b);
  }
}

}  // namespace stmeta::STMETA_ISA
