// Kernels of memory_read for one instruction set; csrc/common/each_isa.h includes this file.
#include "cpu/memory/memory_access.h"

namespace stmeta::STMETA_ISA {

template <typename T>
STMETA_FN void forward(const MemoryRead& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const Rows memory = see_rows<T>(scratch, p.memory, b, s);
    float* weight = take_rows<T>(scratch, p.weight, b, s.reads, s.rows, s.padded);
    float* read = scratch.take(s.reads * s.wide);
    write_and_read(s, {weight, nullptr, nullptr, nullptr, nullptr, true}, memory.data, nullptr,
                   read);
    write_rows<T>(read, s.reads, s.width, s.wide, p.read_out, b);
  }
}

template <typename T>
STMETA_FN void backward(const MemoryRead& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const Rows memory = see_rows<T>(scratch, p.memory, b, s);
    float* weight = take_rows<T>(scratch, p.weight, b, s.reads, s.rows, s.padded);
    float* grad = take_rows<T>(scratch, p.grad, b, s.reads, s.width, s.wide);
    float* grad_memory = place_rows<T>(p.d_memory, b, s, scratch.take(s.rows * s.wide));
    float* grad_weight = scratch.take(s.reads * s.padded);
    clear(grad_memory, s.rows * s.wide);
    clear(grad_weight, s.reads * s.padded);
    access_backward(s, {weight, nullptr, nullptr, nullptr, nullptr, true}, memory.data,
                    {grad_memory, grad_memory, grad, grad_weight, nullptr, nullptr, nullptr},
                    scratch);
    write_rows<T>(grad_memory, s.rows, s.width, s.wide, p.d_memory, b);
    write_rows<T>(grad_weight, s.reads, s.rows, s.padded, p.d_weight, b);
  }
}

}  // namespace stmeta::STMETA_ISA
