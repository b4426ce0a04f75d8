// What a GPU refuses to launch. Include it after dim3, which is the CUDA toolkit's, or that of the
// executor in tests/cuda_host: both hold launches to these rules.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace stmeta {

// What a kernel has, and what a block of it may have besides.
struct Kernel {
  size_t declared;  // bytes of the arrays that it declares
  size_t dynamic;   // bytes of shared memory besides these
  int threads;
  int version;  // 90: of code for compute capability 9.0
};

inline bool is_empty(dim3 grid) { return grid.x == 0 || grid.y == 0 || grid.z == 0; }

// Raises an error where a GPU would refuse a launch, and says which rule is broken.
inline void check_launch(const Kernel& kernel, int cluster, dim3 grid, int block, size_t shared) {
  const auto check = [](bool holds, const char* rule, int64_t most, int64_t got) {
    if (holds) return;
    throw std::runtime_error(std::string("launch of a CUDA kernel: ") + rule +
                             std::to_string(most) + ", got " + std::to_string(got) +
                             "; use smaller inputs or 'eager'");
  };
  check(grid.x <= 0x7fffffffu, "blocks along x must be at most ", 0x7fffffff, grid.x);
  check(grid.y <= 65535, "blocks along y must be at most ", 65535, grid.y);
  check(grid.z <= 65535, "blocks along z must be at most ", 65535, grid.z);
  check(grid.x % cluster == 0, "blocks along x must be a multiple of ", cluster, grid.x);
  check(block > 0 && block <= kernel.threads, "threads of a block must be at most ", kernel.threads,
        block);
  check(shared <= kernel.dynamic, "bytes of dynamic shared memory must be at most ",
        static_cast<int64_t>(kernel.dynamic), static_cast<int64_t>(shared));
}

}  // namespace stmeta
