// What device code of this project stands on: the CUDA toolkit, or, with STMETA_CUDA_HOST, the
// executor of tests/cuda_host that runs the same source on the CPU. Nothing here knows torch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#ifdef STMETA_CUDA_HOST
#include "cuda_host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "launch_rules.h"

namespace stmeta {

constexpr int kWarp = 32;

// Division by a number that the kernel learns at launch: a multiply and a shift instead of some
// twenty instructions (Granlund and Montgomery 1994). For 0 <= n < 2^31.
struct Divider {
  uint32_t divisor = 1, magic = 1, shift = 0;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(static_cast<uint32_t>(d)) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    magic = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  __host__ __device__ uint32_t quotient(uint32_t n) const {
    return (static_cast<uint32_t>((static_cast<uint64_t>(n) * magic) >> 32) + n) >> shift;
  }
  // The quotient; `n` becomes the remainder.
  __host__ __device__ uint32_t split(uint32_t& n) const {
    const uint32_t q = quotient(n);
    n -= q * divisor;
    return q;
  }
};

inline void require(bool condition, const char* message) {
  if (!condition) throw std::runtime_error(message);
}

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

#ifndef STMETA_CUDA_HOST

using Stream = cudaStream_t;

__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char stmeta_dynamic_shared[];
  return stmeta_dynamic_shared;
}

// An array of the block in shared memory, one for each Tag and T.
template <typename Tag, typename T>
__device__ inline T& block_array() {
  __shared__ T array;
  return array;
}

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // so that the next call does not report this error again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// Bytes of shared memory that one block may have.
inline size_t shared_limit() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

inline int64_t l2_bytes() { return device_attribute(cudaDevAttrL2CacheSize); }

inline cudaFuncAttributes attributes_of(const void* kernel) {
  cudaFuncAttributes built{};
  const cudaError_t error = cudaFuncGetAttributes(&built, kernel);
  check_cuda(error, error == cudaErrorNoKernelImageForDevice
                        ? "stmeta._C was built for other GPUs (see TORCH_CUDA_ARCH_LIST)"
                        : "attributes of a kernel");
  return built;
}

// From the first call for a kernel and a device on, blocks of the kernel may have all the shared
// memory that its own arrays leave: without that they get 48 KB, these arrays included. It is asked
// for once, and never lowered, as other threads may be launching the same kernel.
inline Kernel prepared(const void* kernel) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, Kernel> known;
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({device, kernel});
  if (found != known.end()) return found->second;
  const cudaFuncAttributes built = attributes_of(kernel);
  const size_t declared = built.sharedSizeBytes, dynamic = shared_limit() - declared;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(dynamic)),
             "shared memory of a kernel");
  const Kernel all{declared, dynamic, built.maxThreadsPerBlock, built.ptxVersion};
  return known.emplace(std::make_pair(device, kernel), all).first->second;
}

// Blocks of `kernel` that the device runs at the same time; a kernel whose blocks loop over their
// work needs no more of them.
template <typename... Params>
int64_t resident_blocks(void (*kernel)(Params...), int block, size_t shared) {
  const void* entry = reinterpret_cast<const void*>(kernel);
  static_cast<void>(prepared(entry));
  int each = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, entry, block, shared),
             "occupancy of a kernel");
  return static_cast<int64_t>(std::max(each, 1)) * multiprocessors();
}

// Blocks of `threads` that keep the device busy, where each block leaves a partial result behind.
inline int64_t busy_blocks(int threads) {
  return int64_t{multiprocessors()} * std::max(1, 1024 / threads);
}

// How a kernel is launched, in clusters of so many blocks; see cuda_cluster.cuh.
struct Launch {
  Launch(int cluster, dim3 grid, int block, size_t shared, Stream stream) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    config.gridDim = grid, config.blockDim = dim3(block);
    config.dynamicSmemBytes = shared, config.stream = stream;
    config.attrs = &attribute, config.numAttrs = cluster > 1 ? 1 : 0;
  }
  Launch(const Launch&) = delete;

  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
};

// Bytes of dynamic shared memory that a block of `kernel` may have.
template <typename... Params>
size_t dynamic_limit(void (*kernel)(Params...)) {
  return prepared(reinterpret_cast<const void*>(kernel)).dynamic;
}

// Whether the device runs `kernel` in clusters of so many blocks.
template <typename... Params>
bool runs_clusters(void (*kernel)(Params...), int cluster, int block, size_t shared) {
  if (cluster == 1) return true;
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) < 9) return false;
  const void* entry = reinterpret_cast<const void*>(kernel);
  const Kernel built = prepared(entry);
  if (built.version < 90) return false;  // code for older devices, without clusters
  if (shared > built.dynamic) return false;
  const Launch one(cluster, dim3(cluster), block, shared, nullptr);
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, entry, &one.config) == cudaSuccess) return count > 0;
  (void)cudaGetLastError();  // this size cannot be had; a smaller one may
  return false;
}

// The only place that launches: kernel<<<grid, block, shared, stream>>>(args...). An empty grid has
// nothing to do.
template <typename... Params, typename... Args>
void launch_clusters(void (*kernel)(Params...), int cluster, dim3 grid, int block, size_t shared,
                     Stream stream, Args... args) {
  if (is_empty(grid)) return;
  const void* entry = reinterpret_cast<const void*>(kernel);
  check_launch(prepared(entry), cluster, grid, block, shared);
  const Launch how(cluster, grid, block, shared, stream);
  std::tuple<Params...> values(args...);
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
        check_cuda(cudaLaunchKernelExC(&how.config, entry, pointers), "launch");
      },
      values);
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, int block, size_t shared, Stream stream,
            Args... args) {
  launch_clusters(kernel, 1, grid, block, shared, stream, args...);
}

#endif

}  // namespace stmeta
