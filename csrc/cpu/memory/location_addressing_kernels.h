// Kernels of location_addressing for one instruction set; csrc/common/each_isa.h includes this
// file.
#include "cpu/memory/memory_kernels.h"

namespace stmeta::STMETA_ISA {

struct LocationElement {
  float *content, *previous, *gate, *shift, *sharpen;
};

template <typename T>
STMETA_FN LocationElement take_element(const LocationAddressing& p, int64_t b, Scratch& scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads);
  return {take_rows<T>(scratch, p.content, b, s.heads, s.rows, s.padded),
          take_rows<T>(scratch, p.previous, b, s.heads, s.rows, s.padded),
          take_rows<T>(scratch, p.gate, b, 1, s.heads, line),
          take_rows<T>(scratch, p.shift, b, s.heads, s.taps, s.taps),
          take_rows<T>(scratch, p.sharpen, b, 1, s.heads, line)};
}

template <typename T>
STMETA_FN void forward(const LocationAddressing& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const LocationElement e = take_element<T>(p, b, scratch);
    float* weight = scratch.take(s.heads * s.padded);
    for (int64_t h = 0; h < s.heads; ++h) {
      Scratch rest = scratch;
      const int64_t at = h * s.padded;
      const Location l =
          move_weights(s, e.content + at, e.previous + at, e.gate[h], e.shift + h * s.taps, rest);
      sharpen_weights(s, l, e.sharpen[h], weight + at);
    }
    write_rows<T>(weight, s.heads, s.rows, s.padded, p.weight_out, b);
  }
}

template <typename T>
STMETA_FN void backward(const LocationAddressing& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads);
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const LocationElement e = take_element<T>(p, b, scratch);
    float* grad = take_rows<T>(scratch, p.grad, b, s.heads, s.rows, s.padded);
    float* weight = take_rows<T>(scratch, p.weight, b, s.heads, s.rows, s.padded);
    float* grad_content = scratch.take(s.heads * s.padded);
    float* grad_previous = scratch.take(s.heads * s.padded);
    float* grad_shift = scratch.take(s.heads * s.taps);
    float *grad_gate = scratch.take(line), *grad_sharpen = scratch.take(line);
    for (int64_t h = 0; h < s.heads; ++h) {
      Scratch rest = scratch;
      const int64_t at = h * s.padded;
      const Location l =
          move_weights(s, e.content + at, e.previous + at, e.gate[h], e.shift + h * s.taps, rest);
      location_backward(s, l, e.content + at, e.previous + at, e.gate[h], e.shift + h * s.taps,
                        e.sharpen[h], weight + at, grad + at, grad_content + at, grad_previous + at,
                        grad_gate[h], grad_shift + h * s.taps, grad_sharpen[h], rest);
    }
    write_rows<T>(grad_content, s.heads, s.rows, s.padded, p.d_content, b);
    write_rows<T>(grad_previous, s.heads, s.rows, s.padded, p.d_previous, b);
    write_rows<T>(grad_gate, 1, s.heads, line, p.d_gate, b);
    write_rows<T>(grad_shift, s.heads, s.taps, s.taps, p.d_shift, b);
    write_rows<T>(grad_sharpen, 1, s.heads, line, p.d_sharpen, b);
  }
}

}  // namespace stmeta::STMETA_ISA
