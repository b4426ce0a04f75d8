// Runs CUDA device code on the CPU, so that it is tested where there is no GPU: one std::thread for
// each CUDA thread, one block, or cluster of blocks, after another. Barriers and shuffles wait as
// on a GPU, so that a missing __syncthreads() is a data race that ThreadSanitizer reports, and a
// bad index is found by AddressSanitizer. Grids of a few blocks take milliseconds. Device code must
// not rely on warps that run in lockstep.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <tuple>
#include <vector>

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

// std::barrier spins before it sleeps, which costs seconds where threads outnumber cores.
class Barrier {
 public:
  explicit Barrier(int threads) : expected_(threads), missing_(threads) {}

  void wait() {
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    arrive();
    while (phase_.load(std::memory_order_acquire) == phase) {
      syscall(SYS_futex, &phase_, FUTEX_WAIT_PRIVATE, phase, nullptr, nullptr, 0);
    }
  }

  // The thread has ended: from now on nobody waits for it.
  void leave() {
    expected_.fetch_sub(1);
    arrive();
  }

 private:
  void arrive() {
    if (missing_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    missing_.store(expected_.load());
    phase_.fetch_add(1, std::memory_order_release);
    syscall(SYS_futex, &phase_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
  }

  std::atomic<int> expected_, missing_;
  std::atomic<uint32_t> phase_{0};
};

struct Warp {
  explicit Warp(int lanes) : barrier(lanes) {}
  Barrier barrier;
  uint64_t lane[2][32];  // of one shuffle and of the next
};

// Not zero, so that a read before the first write shows: floats are NaN.
using Bytes = std::vector<unsigned char>;
inline Bytes unset(size_t size) { return Bytes(size, 0xff); }

struct Block {
  Block(int threads, size_t shared) : barrier(threads), shared(unset(shared)) {
    for (int first = 0; first < threads; first += 32) {
      warps.push_back(std::make_unique<Warp>(std::min(32, threads - first)));
    }
  }

  // The array of so many bytes that a kernel declared.
  unsigned char* array(int id, size_t size) {
    const std::lock_guard guard(lock);
    return arrays.try_emplace(id, unset(size)).first->second.data();
  }

  Barrier barrier;
  std::vector<std::unique_ptr<Warp>> warps;
  Bytes shared;  // as large as was asked for: a write past its end is found
  std::map<int, Bytes> arrays;
  std::mutex lock;
};

struct Cluster {
  Cluster(int count, int threads, size_t shared) : barrier(count * threads) {
    for (int i = 0; i < count; ++i) blocks.push_back(std::make_unique<Block>(threads, shared));
  }
  Barrier barrier;
  std::vector<std::unique_ptr<Block>> blocks;
};

inline std::atomic<int> declared;  // arrays that kernels declared

inline thread_local Cluster* cluster;
inline thread_local int rank;  // of this block in its cluster
inline thread_local Block* block;
inline thread_local Warp* warp;
inline thread_local unsigned shuffles;  // of this thread in this block; its warp's all have as many

}  // namespace cuda_host

inline thread_local dim3 threadIdx(0, 0, 0), blockIdx, blockDim, gridDim;

namespace cuda_host {

// What the lane `from` of this thread's warp holds. A lane that is late may still read the last
// shuffle's values while others write this one's; none gets two ahead, as all meet in each.
template <typename T>
T exchange(T value, unsigned from) {
  uint64_t* lanes = warp->lane[shuffles++ % 2];
  std::memcpy(&lanes[threadIdx.x % 32], &value, sizeof value);
  warp->barrier.wait();
  std::memcpy(&value, &lanes[from], sizeof value);
  return value;
}

}  // namespace cuda_host

inline void __syncthreads() { cuda_host::block->barrier.wait(); }

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

inline unsigned char* dynamic_shared() { return cuda_host::block->shared.data(); }

template <typename Tag, typename T>
T& block_array() {
  static const int id = cuda_host::declared++;
  return *reinterpret_cast<T*>(cuda_host::block->array(id, sizeof(T)));
}

constexpr bool kClusters = true;
inline int cluster_rank() { return cuda_host::rank; }
inline void cluster_sync() { cuda_host::cluster->barrier.wait(); }

template <typename T>
T* of_block(T* mine, int rank) {
  const auto& blocks = cuda_host::cluster->blocks;
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

// A cluster is so many neighbouring blocks along x.
template <typename... Params, typename... Args>
void launch_clusters(void (*kernel)(Params...), int count, dim3 grid, int threads, size_t shared,
                     Stream, Args... args) {
  const std::tuple<Params...> values(args...);
  std::unique_ptr<cuda_host::Cluster> cluster;
  cuda_host::Barrier between(count * threads);  // threads are made once: that is what takes long
  const auto run = [&](int rank, int t) {
    for (unsigned first = 0; first < grid.x * grid.y * grid.z; first += count) {
      if (rank == 0 && t == 0) {
        cluster = std::make_unique<cuda_host::Cluster>(count, threads, shared);
      }
      between.wait();
      const unsigned i = first + rank;
      threadIdx.x = t;
      blockIdx = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
      blockDim = dim3(threads);
      gridDim = grid;
      cuda_host::Block* block = cluster->blocks[rank].get();
      cuda_host::cluster = cluster.get();
      cuda_host::rank = rank;
      cuda_host::block = block;
      cuda_host::warp = block->warps[t / 32].get();
      cuda_host::shuffles = 0;
      std::apply(kernel, values);
      cuda_host::warp->barrier.leave();
      block->barrier.leave();
      cluster->barrier.leave();
      between.wait();
    }
  };
  std::vector<std::thread> running;
  for (int rank = 0; rank < count; ++rank) {
    for (int t = 0; t < threads; ++t) running.emplace_back(run, rank, t);
  }
  for (auto& thread : running) thread.join();
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared, Stream stream,
            Args... args) {
  launch_clusters(kernel, 1, grid, threads, shared, stream, args...);
}

}  // namespace stmeta
