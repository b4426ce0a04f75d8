// What the programs of the token ops share; driven by tests/ops/video/test_tokens_cuda.py. Their
// first argument is the dtype.
#pragma once

#include <limits>
#include <string>

#include "case_io.h"

// A tensor of any strides: sizes, strides, storage.
template <typename T>
struct Strided {
  std::vector<int64_t> sizes, strides;
  std::vector<T> storage;

  explicit Strided(Case& io)
      : sizes(io.array<int64_t>()), strides(io.array<int64_t>()), storage(io.array<T>()) {}
};

// Scratch that is not zero, so that a read before the first write shows.
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

#define STMETA_TOKEN_MAIN(run)                                               \
  int main(int argc, char** argv) {                                          \
    Case io(argc, argv);                                                     \
    const auto text = io.array<char>();                                      \
    const std::string name(text.begin(), text.end());                        \
    if (name == STMETA_DTYPE) return run<Dtype>(io), 0;                      \
    throw std::runtime_error("built for " STMETA_DTYPE ", not for " + name); \
  }
