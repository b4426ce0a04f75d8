// Runs CUDA device code on the CPU, so that it is tested where there is no GPU: one fiber for each
// CUDA thread, one block, or cluster of blocks, after another. Barriers and shuffles wait as on a
// GPU, so that a missing __syncthreads() is a data race that ThreadSanitizer reports, and a bad
// index is found by AddressSanitizer. Grids of a few blocks take milliseconds. Device code must not
// rely on warps that run in lockstep.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <tuple>

#include "fibers.h"

#define __device__
#define __global__
#define __grid_constant__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static  // for kernels without clusters: of those one block runs at a time

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#include "common/launch_rules.h"

using __half = c10::Half;
using __nv_bfloat16 = c10::BFloat16;
inline float __half2float(__half v) { return v; }
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __half __float2half_rn(float v) { return v; }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return v; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
using std::max;
using std::min;

namespace cuda_host {

struct Warp {
  explicit Warp(int lanes) : barrier(lanes) {}
  Barrier barrier;
  uint64_t lane[2][32];  // of one shuffle and of the next
};

constexpr size_t kDeclared = 48 * 1024;  // the most bytes of arrays that a kernel declares

// Not zero, so that a read before the first write shows: floats are NaN.
inline std::vector<unsigned char> unset(size_t size) {
  return std::vector<unsigned char>(size, 0xff);
}

struct Block {
  Block(int threads, size_t shared) : barrier(threads), shared(unset(shared)) {
    for (int first = 0; first < threads; first += 32) {
      warps.push_back(std::make_unique<Warp>(std::min(32, threads - first)));
    }
  }
  Barrier barrier;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<unsigned char> shared;  // as large as was asked for: a write past its end is found
  std::vector<unsigned char> declared = unset(kDeclared);
};

struct Cluster {
  Cluster(int count, int threads, size_t shared) : barrier(count * threads) {
    for (int i = 0; i < count; ++i) blocks.push_back(std::make_unique<Block>(threads, shared));
  }
  Barrier barrier;
  std::vector<std::unique_ptr<Block>> blocks;
};

struct Thread : Fiber {
  void run() override { (*work)(); }

  const std::function<void()>* work;
  int rank;  // of the block in its cluster
  dim3 thread_index{0, 0, 0}, block_index;
  Cluster* cluster;
  Block* block;
  Warp* warp;
  unsigned shuffles;  // in this block; a warp's threads all have as many
};

inline Thread& self() { return static_cast<Thread&>(*Fibers::running()); }

// Where the next array that a kernel declares lies in Block::declared.
inline size_t declare(size_t size) {
  static std::atomic<size_t> used;
  const size_t place = used.fetch_add((size + 15) / 16 * 16, std::memory_order_relaxed);
  if (place + size > kDeclared) std::abort();
  return place;
}

// The arrays that the running kernel has used: those at a place, and their bytes. Plain __shared__
// arrays are not among them; tests/ops/_harness/nvcc.py holds what ptxas counts to a limit.
inline std::atomic<bool> used_at[kDeclared];
inline std::atomic<size_t> used_bytes;

inline void use(size_t place, size_t size) {
  if (used_at[place].exchange(true, std::memory_order_relaxed)) return;
  used_bytes.fetch_add(size, std::memory_order_relaxed);
}

inline void use_nothing() {
  for (auto& used : used_at) used.store(false, std::memory_order_relaxed);
  used_bytes.store(0, std::memory_order_relaxed);
}

}  // namespace cuda_host

#define threadIdx (cuda_host::self().thread_index)
#define blockIdx (cuda_host::self().block_index)
inline dim3 blockDim, gridDim;

namespace cuda_host {

// What the lane `from` of this thread's warp holds. A lane that is late may still read the last
// shuffle's values while others write this one's; none gets two ahead, as all meet in each.
template <typename T>
T exchange(T value, unsigned from) {
  Thread& thread = self();
  uint64_t* lanes = thread.warp->lane[thread.shuffles++ % 2];
  std::memcpy(&lanes[threadIdx.x % 32], &value, sizeof value);
  thread.warp->barrier.wait();
  std::memcpy(&value, &lanes[from], sizeof value);
  return value;
}

}  // namespace cuda_host

inline void __syncthreads() { cuda_host::self().block->barrier.wait(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_host::exchange(value, (threadIdx.x % 32) ^ mask);
}

// Of integers alone, whose sum does not depend on the order.
inline int atomicAdd(int* target, int value) {
  return std::atomic_ref<int>(*target).fetch_add(value, std::memory_order_relaxed);
}

// The value of the lane `distance` below; a lane that has none keeps its own.
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned distance) {
  const unsigned lane = threadIdx.x % 32;
  return cuda_host::exchange(value, lane >= distance ? lane - distance : lane);
}

namespace stmeta {

using Stream = void*;

inline unsigned char* dynamic_shared() { return cuda_host::self().block->shared.data(); }

template <typename Tag, typename T>
T& block_array() {
  static const size_t place = cuda_host::declare(sizeof(T));
  cuda_host::use(place, sizeof(T));
  return *reinterpret_cast<T*>(cuda_host::self().block->declared.data() + place);
}

constexpr bool kClusters = true;
inline int cluster_rank() { return cuda_host::self().rank; }
inline void cluster_sync() { cuda_host::self().cluster->barrier.wait(); }

template <typename T>
T* of_block(T* mine, int rank) {
  const auto& blocks = cuda_host::self().cluster->blocks;
  const auto place = reinterpret_cast<const unsigned char*>(mine) - dynamic_shared();
  return reinterpret_cast<T*>(blocks[rank]->shared.data() + place);
}

inline size_t shared_limit() { return 227 * 1024; }

// Fewer blocks than work, so that the loops over it are tested.
template <typename... Params>
int64_t resident_blocks(void (*)(Params...), int, size_t) {
  return 3;
}
inline int64_t busy_blocks(int) { return 2; }
inline int64_t l2_bytes() { return 4096; }  // so that small cases need several chunks

// As if kernels declared 4 KB.
template <typename... Params>
size_t dynamic_limit(void (*)(Params...)) {
  return shared_limit() - 4096;
}

template <typename... Params>
bool runs_clusters(void (*)(Params...), int, int, size_t) {
  return true;
}

// As a GPU, it refuses what is against its rules, and does nothing for an empty grid. A cluster is
// so many neighbouring blocks along x.
template <typename... Params, typename... Args>
void launch_clusters(void (*kernel)(Params...), int count, dim3 grid, int threads, size_t shared,
                     Stream, Args... args) {
  if (is_empty(grid)) return;
  const auto check = [&](size_t declared) {
    check_launch({declared, shared_limit() - declared, 1024, 90}, count, grid, threads, shared);
  };
  check(0);
  static const bool check_only = std::getenv("CUDA_HOST_CHECK_ONLY") != nullptr;
  if (check_only) return;
  cuda_host::use_nothing();
  const std::tuple<Params...> values(args...);
  std::unique_ptr<cuda_host::Cluster> cluster;
  cuda_host::Barrier between(count * threads);  // fibers are made once: that is what takes long
  const std::function<void()> run = [&] {
    cuda_host::Thread& self = cuda_host::self();
    for (unsigned first = 0; first < grid.x * grid.y * grid.z; first += count) {
      if (self.rank == 0 && self.thread_index.x == 0) {
        cluster = std::make_unique<cuda_host::Cluster>(count, threads, shared);
      }
      between.wait();
      const unsigned i = first + self.rank;
      self.block_index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
      self.cluster = cluster.get();
      self.block = cluster->blocks[self.rank].get();
      self.warp = self.block->warps[self.thread_index.x / 32].get();
      self.shuffles = 0;
      std::apply(kernel, values);
      self.warp->barrier.leave();
      self.block->barrier.leave();
      self.cluster->barrier.leave();
      between.wait();
    }
  };
  blockDim = dim3(threads);
  gridDim = grid;
  std::vector<std::unique_ptr<cuda_host::Thread>> all;
  for (int i = 0; i < count * threads; ++i) {
    all.push_back(std::make_unique<cuda_host::Thread>());
    all.back()->work = &run;
    all.back()->rank = i / threads;
    all.back()->thread_index.x = i % threads;
  }
  cuda_host::Fibers::run(all);
  check(cuda_host::used_bytes.load(std::memory_order_relaxed));
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared, Stream stream,
            Args... args) {
  launch_clusters(kernel, 1, grid, threads, shared, stream, args...);
}

}  // namespace stmeta
