// Clusters: blocks that run at the same time and reach each other's shared memory, from compute
// capability 9.0 on. In code for older devices each block is a cluster of its own.
#pragma once

#include "cuda_base.cuh"

#ifndef STMETA_CUDA_HOST

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define STMETA_CLUSTERS
#include <cooperative_groups.h>
#endif

namespace stmeta {

#ifdef STMETA_CLUSTERS
constexpr bool kClusters = true;
#else
constexpr bool kClusters = false;
#endif

// Of this block in its cluster.
__device__ inline int cluster_rank() {
#ifdef STMETA_CLUSTERS
  return static_cast<int>(cooperative_groups::cluster_group::block_rank());
#else
  return 0;
#endif
}

// A barrier for all threads of the cluster. The first one comes before the first use of another
// block's memory, and no block ends before the last.
__device__ inline void cluster_sync() {
#ifdef STMETA_CLUSTERS
  cooperative_groups::cluster_group::sync();
#else
  __syncthreads();
#endif
}

// Where the block `rank` of the cluster has what lies at `mine` in this block's shared memory.
template <typename T>
__device__ inline T* of_block(T* mine, int rank) {
#ifdef STMETA_CLUSTERS
  return cooperative_groups::cluster_group::map_shared_rank(mine, rank);
#else
  static_cast<void>(rank);
  return mine;
#endif
}

}  // namespace stmeta

#endif
