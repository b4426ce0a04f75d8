// What the host side of every CPU op needs: dtypes, aligned buffers, large outputs, torch's
// threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "half.h"

namespace stmeta {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls f with a zero of the C++ type of a floating point dtype.
template <typename F>
auto with_float_type(ScalarType dtype, const char* what, F&& f) {
  if (dtype == ScalarType::Float) return f(float{});
  if (dtype == ScalarType::BFloat16) return f(bf16{});
  STD_TORCH_CHECK(dtype == ScalarType::Half, what, " must be float32, bfloat16 or float16, got ",
                  torch::headeronly::toString(dtype));
  return f(fp16{});
}

// The same, and uint8.
template <typename F>
auto with_video_type(ScalarType dtype, const char* what, F&& f) {
  if (dtype == ScalarType::Byte) return f(uint8_t{});
  return with_float_type(dtype, what, f);
}

// More numbers than any machine holds. Sizes below it may be multiplied by a few, and do not wrap.
constexpr int64_t kMostNumbers = int64_t{1} << 44;

// Raises, with `subject` in front, unless a product of sizes stays below that: a tensor that was
// expanded can have any size, and what a kernel asks for beside it must not wrap around.
inline void check_product(const char* subject, std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    const int64_t factor = std::max<int64_t>(1, size);
    STD_TORCH_CHECK(factor <= kMostNumbers / product, subject, " is too large for the CPU kernel; ",
                    "use backend='eager'");
    product *= factor;
  }
}

// Uninitialised numbers on a cache line's boundary.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) {
    if (count < 0 || count > kMostNumbers) throw std::bad_alloc();
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 64) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// A large output is fresh memory, and its first touch costs more than its contents: 4 KiB pages
// took 105 ms for 126 MB where 2 MiB pages took 28 ms. Ask for those before the first write.
inline void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  if (bytes < (int64_t{4} << 20)) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: may fail
#endif
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& size, ScalarType dtype) {
  Tensor out = torch::stable::new_empty(like, size, dtype);
  advise_huge_pages(out.data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
  return out;
}

// Kernels of rows want the numbers of a row side by side; any other strides are left as they are.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor
                                                            : torch::stable::contiguous(tensor);
}

// Raises an error, which begins with `subject`, unless all ids are in [0, limit).
inline void check_ids(const char* subject, const int64_t* ids, int64_t count, int64_t limit) {
  uint64_t signs = 0;  // of id and of limit - 1 - id: no branch, so the compiler makes vectors
  const uint64_t last = static_cast<uint64_t>(limit) - 1;
  for (int64_t i = 0; i < count; ++i) {
    signs |= static_cast<uint64_t>(ids[i]) | (last - static_cast<uint64_t>(ids[i]));
  }
  if (signs >> 63 == 0) return;
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(ids[i] >= 0 && ids[i] < limit, subject, " must have values in [0, ", limit,
                    "), got ", ids[i], " at place ", i);
  }
}

// While it lives, subnormal numbers are 0 to this thread. What a softmax or a power leaves of a row
// that does not count is one, or becomes one in the next product, and each operation with one costs
// an Intel CPU some 150 cycles: a backward took six times as long. Flags that were raised stay.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushAndDenormalsAreZero); }
  ~FlushSubnormals() { _mm_setcsr(before_ | (_mm_getcsr() & kFlags)); }

 private:
  static constexpr unsigned kFlushAndDenormalsAreZero = 0x8040, kFlags = 0x3f;
  unsigned before_;
#else
  FlushSubnormals() {}  // other CPUs work with them at full speed, or nearly so
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;
};

// f(begin, end, scratch) over [0, count) on torch's threads, each with its own scratch floats.
// `work` is the cost of one step, in numbers read or written.
template <typename F>
void parallel(int64_t count, int64_t work, int64_t scratch_floats, const F& f) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work));
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const Buffer<float> scratch(scratch_floats);
    f(begin, end, scratch.get());
  });
}

// The same for kernels that multiply what a softmax, a power or a chain of products left. Those
// that only move or scale what they are given keep each number.
template <typename F>
void parallel_flushing(int64_t count, int64_t work, int64_t scratch_floats, const F& f) {
  parallel(count, work, scratch_floats, [&](int64_t begin, int64_t end, float* scratch) {
    const FlushSubnormals flush;
    f(begin, end, scratch);
  });
}

}  // namespace stmeta
