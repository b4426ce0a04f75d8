// Kernels of ntm_step for one instruction set; csrc/common/each_isa.h includes this file.
#include "cpu/memory/ntm_element.h"

namespace stmeta::STMETA_ISA {

// A batch element's inputs in the scratch, and its addressing.
struct NtmElement {
  Rows memory;
  float *previous, *key, *strength, *gate, *shift, *sharpen, *erase, *add;
};

template <typename T>
STMETA_FN NtmElement take_element(const NtmStep& p, int64_t b, Scratch& scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads);
  return {see_rows<T>(scratch, p.memory, b, s),
          take_rows<T>(scratch, p.previous, b, s.heads, s.rows, s.padded),
          take_rows<T>(scratch, p.key, b, s.heads, s.width, s.wide),
          take_rows<T>(scratch, p.strength, b, 1, s.heads, line),
          take_rows<T>(scratch, p.gate, b, 1, s.heads, line),
          take_rows<T>(scratch, p.shift, b, s.heads, s.taps, s.taps),
          take_rows<T>(scratch, p.sharpen, b, 1, s.heads, line),
          take_rows<T>(scratch, p.erase, b, s.writes, s.width, s.wide),
          take_rows<T>(scratch, p.add, b, s.writes, s.width, s.wide)};
}

STMETA_INLINE NtmInputs inputs_of(const NtmStep& p, const NtmElement& e) {
  return {e.memory.data, e.previous, e.key, e.strength,   e.gate, e.shift,
          e.sharpen,     e.erase,    e.add, p.read_first, p.eps};
}

template <typename T>
STMETA_FN void forward(const NtmStep& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const NtmElement e = take_element<T>(p, b, scratch);
    float* content = scratch.take(s.heads * s.padded);
    float* weight = scratch.take(s.heads * s.padded);
    float* read = scratch.take(s.reads * s.wide);
    float* out = place_rows<T>(p.memory_out, b, s, e.memory.own);
    ntm_forward(s, inputs_of(p, e), {out, weight, content, read}, scratch);
    write_rows<T>(out, s.rows, s.width, s.wide, p.memory_out, b);
    write_rows<T>(weight, s.heads, s.rows, s.padded, p.weight_out, b);
    write_rows<T>(content, s.heads, s.rows, s.padded, p.content_out, b);
    write_rows<T>(read, s.reads, s.width, s.wide, p.read_out, b);
  }
}

template <typename T>
STMETA_FN void backward(const NtmStep& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads);
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const NtmElement e = take_element<T>(p, b, scratch);
    const Rows grad = see_rows<T>(scratch, p.grad_memory, b, s);
    float* grad_memory = place_rows<T>(p.d_memory, b, s, grad.own);
    float* grad_weight = take_rows<T>(scratch, p.grad_weight, b, s.heads, s.rows, s.padded);
    float* grad_read = take_rows<T>(scratch, p.grad_read, b, s.reads, s.width, s.wide);
    float* weight = take_rows<T>(scratch, p.weight, b, s.heads, s.rows, s.padded);
    float* content = take_rows<T>(scratch, p.content, b, s.heads, s.rows, s.padded);
    float* grad_previous = scratch.take(s.heads * s.padded);
    float* grad_key = scratch.take(s.heads * s.wide);
    float* grad_erase = scratch.take(s.writes * s.wide);
    float* grad_add = scratch.take(s.writes * s.wide);
    float* grad_shift = scratch.take(s.heads * s.taps);
    float *grad_strength = scratch.take(line), *grad_gate = scratch.take(line),
          *grad_sharpen = scratch.take(line);
    ntm_backward(
        s, inputs_of(p, e),
        {weight, content, grad.data, grad_weight, grad_read, grad_memory, grad_previous, grad_key,
         grad_strength, grad_gate, grad_shift, grad_sharpen, grad_erase, grad_add},
        scratch);
    write_rows<T>(grad_memory, s.rows, s.width, s.wide, p.d_memory, b);
    write_rows<T>(grad_previous, s.heads, s.rows, s.padded, p.d_previous, b);
    write_rows<T>(grad_key, s.heads, s.width, s.wide, p.d_key, b);
    write_rows<T>(grad_strength, 1, s.heads, line, p.d_strength, b);
    write_rows<T>(grad_gate, 1, s.heads, line, p.d_gate, b);
    write_rows<T>(grad_shift, s.heads, s.taps, s.taps, p.d_shift, b);
    write_rows<T>(grad_sharpen, 1, s.heads, line, p.d_sharpen, b);
    write_rows<T>(grad_erase, s.writes, s.width, s.wide, p.d_erase, b);
    write_rows<T>(grad_add, s.writes, s.width, s.wide, p.d_add, b);
  }
}

}  // namespace stmeta::STMETA_ISA
