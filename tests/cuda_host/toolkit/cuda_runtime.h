// What csrc/common/cuda_base.cuh asks of the CUDA runtime, without a GPU: it launches nothing, and
// refuses what an H200 would. Kernels have the properties that a test gives them.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <utility>

#define __align__(bytes) __attribute__((aligned(bytes)))
#define __device__
#define __global__
#define __host__
#define __shared__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorNoKernelImageForDevice };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrL2CacheSize,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
using cudaStream_t = void*;

struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int maxThreadsPerBlock, ptxVersion;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace toolkit {

constexpr size_t kShared = 48 * 1024, kSharedOptin = 227 * 1024;  // of a block, asked for or not

inline thread_local int device = 0;
inline cudaError_t last_error = cudaSuccess;
inline std::map<const void*, cudaFuncAttributes> kernels;
inline std::map<std::pair<int, const void*>, size_t> dynamic;  // what was asked for
inline int largest_cluster = 8;                                // an error of the query beyond it
inline int launches = 0, asked = 0;

inline cudaError_t fail(cudaError_t error) { return last_error = error; }

inline size_t most_dynamic(const void* kernel) {
  const auto found = dynamic.find({device, kernel});
  return found == dynamic.end() ? kShared - kernels.at(kernel).sharedSizeBytes : found->second;
}

}  // namespace toolkit

inline cudaError_t cudaGetDevice(int* device) {
  *device = toolkit::device;
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return std::exchange(toolkit::last_error, cudaSuccess); }

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice ? "no kernel image" : "invalid argument";
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  constexpr int kValues[] = {132, toolkit::kSharedOptin, 50 << 20, 9};
  *value = kValues[attribute];
  return cudaSuccess;
}

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  const auto found = toolkit::kernels.find(kernel);
  if (found == toolkit::kernels.end()) return toolkit::fail(cudaErrorNoKernelImageForDevice);
  *attributes = found->second;
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  ++toolkit::asked;
  if (bytes + toolkit::kernels.at(kernel).sharedSizeBytes > toolkit::kSharedOptin) {
    return toolkit::fail(cudaErrorInvalidValue);
  }
  toolkit::dynamic[{toolkit::device, kernel}] = bytes;
  return cudaSuccess;
}

inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                                 int, size_t shared) {
  if (shared > toolkit::most_dynamic(kernel)) return toolkit::fail(cudaErrorInvalidValue);
  *blocks = 1;
  return cudaSuccess;
}

inline unsigned cluster_of(const cudaLaunchConfig_t* config) {
  return config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
}

inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel,
                                                  const cudaLaunchConfig_t* config) {
  const int size = static_cast<int>(cluster_of(config));
  if (size > toolkit::largest_cluster) return toolkit::fail(cudaErrorInvalidValue);
  *clusters = config->dynamicSmemBytes <= toolkit::most_dynamic(kernel) ? 132 / size : 0;
  return cudaSuccess;
}

inline cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                       void**) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0;
  if (empty || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || block.x > 1024 ||
      grid.x % cluster_of(config) != 0 ||
      config->dynamicSmemBytes > toolkit::most_dynamic(kernel)) {
    return toolkit::fail(cudaErrorInvalidValue);
  }
  ++toolkit::launches;
  return cudaSuccess;
}
