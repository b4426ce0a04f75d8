// Kernels of erase_add for one instruction set; csrc/common/each_isa.h includes this file.
#include "cpu/memory/memory_access.h"

namespace stmeta::STMETA_ISA {

template <typename T>
STMETA_FN void forward(const EraseAdd& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const Rows memory = see_rows<T>(scratch, p.memory, b, s);
    float* weight = take_rows<T>(scratch, p.weight, b, s.writes, s.rows, s.padded);
    float* erase = take_rows<T>(scratch, p.erase, b, s.writes, s.width, s.wide);
    float* add = take_rows<T>(scratch, p.add, b, s.writes, s.width, s.wide);
    float* out = place_rows<T>(p.out, b, s, memory.own);
    write_and_read(s, {nullptr, weight, erase, add, nullptr, true}, memory.data, out, nullptr);
    write_rows<T>(out, s.rows, s.width, s.wide, p.out, b);
  }
}

template <typename T>
STMETA_FN void backward(const EraseAdd& p, int64_t begin, int64_t end, float* floats) {
  const MemorySizes& s = p.sizes;
  for (int64_t b = begin; b < end; ++b) {
    Scratch scratch = {floats};
    const Rows memory = see_rows<T>(scratch, p.memory, b, s);
    float* weight = take_rows<T>(scratch, p.weight, b, s.writes, s.rows, s.padded);
    float* erase = take_rows<T>(scratch, p.erase, b, s.writes, s.width, s.wide);
    float* add = take_rows<T>(scratch, p.add, b, s.writes, s.width, s.wide);
    const Rows grad = see_rows<T>(scratch, p.grad, b, s);
    float* grad_memory = place_rows<T>(p.d_memory, b, s, grad.own);
    float* grad_weight = scratch.take(s.writes * s.padded);
    float* grad_erase = scratch.take(s.writes * s.wide);
    float* grad_add = scratch.take(s.writes * s.wide);
    clear(grad_weight, s.writes * s.padded);
    access_backward(s, {nullptr, weight, erase, add, nullptr, true}, memory.data,
                    {grad.data, grad_memory, nullptr, nullptr, grad_weight, grad_erase, grad_add},
                    scratch);
    write_rows<T>(grad_memory, s.rows, s.width, s.wide, p.d_memory, b);
    write_rows<T>(grad_weight, s.writes, s.rows, s.padded, p.d_weight, b);
    write_rows<T>(grad_erase, s.writes, s.width, s.wide, p.d_erase, b);
    write_rows<T>(grad_add, s.writes, s.width, s.wide, p.d_add, b);
  }
}

}  // namespace stmeta::STMETA_ISA
