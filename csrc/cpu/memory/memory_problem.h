// What the memory ops share on the CPU: one batch element at a time, as floats in a thread's
// scratch.
#pragma once

#include <cstdint>
#include <type_traits>

namespace stmeta {

// Sizes of one call, and how rows are padded to whole cache lines in the scratch.
struct MemorySizes {
  int64_t batch, rows, width, heads;  // B, N, M, H
  int64_t reads, writes, taps;        // R, W, S
  int64_t padded, wide;               // N and M, rounded up
};

// A tensor [B, ...]: dense within a batch element, or rows [N, M] with a stride.
struct Source {
  const void* data;
  int64_t batch_stride, row_stride;  // in elements
};

constexpr int64_t round_line(int64_t count) { return (count + 15) / 16 * 16; }

// Gives out a thread's scratch.
struct Scratch {
  float* next;
  float* take(int64_t floats) {
    float* out = next;
    next += round_line(floats);
    return out;
  }
};

constexpr int kMaxHeads = 32;

struct LruaOptions {
  float decay, eps;
  bool read_first, shared;
};

}  // namespace stmeta
