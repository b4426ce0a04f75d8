// What the programs of the memory ops share; driven by tests/ops/memory/test_memory_cuda.py.
// Each takes: dtype, [B, N, M, heads], tile (0: by size), its tensors, its options, the gradients.
#pragma once

#include <limits>
#include <string>

#include "case_io.h"

template <typename T>
struct MemoryCase {
  Case& io;
  int64_t batch, rows, width, heads;
  int tile;

  explicit MemoryCase(Case& io) : io(io) {
    const auto sizes = io.array<int64_t>();
    batch = sizes.at(0), rows = sizes.at(1), width = sizes.at(2), heads = sizes.at(3);
    tile = static_cast<int>(io.integer());
  }
  std::vector<T> matrix() const { return std::vector<T>(batch * rows * width); }
  std::vector<T> weights() const { return std::vector<T>(batch * heads * rows); }
  std::vector<T> vectors() const { return std::vector<T>(batch * heads * width); }
  std::vector<T> numbers() const { return std::vector<T>(batch * heads); }
};

// A matrix of any strides: its storage and where in it what lies.
template <typename T>
struct Matrix {
  std::vector<T> storage;
  std::vector<int64_t> strides;

  explicit Matrix(Case& io) : storage(io.array<T>()), strides(io.array<int64_t>()) {}

  template <typename Shape>
  auto strided(const Shape& s) const {
    return stmeta::memory::make_strided<T>(s, storage.data(), strides.data());
  }
};

// Scratch of `size` numbers; not zero, so that a read before the first write shows.
inline std::vector<float> scratch_of(int64_t size) {
  return std::vector<float>(size, std::numeric_limits<float>::quiet_NaN());
}

// One dtype for each sanitizer: every one of them takes seconds to compile.
#ifdef __SANITIZE_THREAD__
#define STMETA_DTYPE "bfloat16"
using Dtype = __nv_bfloat16;
#else
#define STMETA_DTYPE "float32"
using Dtype = float;
#endif

#define STMETA_MEMORY_MAIN(run)                                              \
  int main(int argc, char** argv) {                                          \
    Case io(argc, argv);                                                     \
    const auto text = io.array<char>();                                      \
    const std::string name(text.begin(), text.end());                        \
    if (name == STMETA_DTYPE) return run<Dtype>(io), 0;                      \
    throw std::runtime_error("built for " STMETA_DTYPE ", not for " + name); \
  }
