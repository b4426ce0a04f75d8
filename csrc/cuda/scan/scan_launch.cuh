// How stmeta::lrua_scan and stmeta::ntm_scan are launched on a GPU: packed weights, how many
// blocks a cluster has, and what lies in shared memory.
#pragma once

#include <array>

#include "cuda/scan/scan_controller.cuh"

namespace stmeta::scan {

inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

// Sizes of a sequence of `heads` heads; pointers and options are the caller's to set.
inline void size_sequence(Sequence& p, const char* op, int64_t batch, int64_t rows, int64_t width,
                          int64_t heads, int64_t steps, int64_t hidden, int64_t recurrent_size,
                          int64_t read, int64_t numbers) {
  p.op = op;
  p.s = make_shape(op, batch, rows, width, heads);
  const int64_t large = int64_t{1} << 31;
  const auto check = [&](bool holds, const char* rule) {
    if (!holds) throw std::runtime_error(std::string(op) + ": " + rule);
  };
  check(rows * std::max(p.s.pitch, p.s.slots) < large && rows * heads < large && steps < large &&
            4 * hidden < large && numbers < large,
        "the cuda backend takes less than 2^31 numbers of an element, 2^29 hidden units and 2^31 "
        "steps; use 'eager'");
  check(recurrent_size == hidden || recurrent_size == hidden + read,
        "recurrent must be [4 H, K] with K = H or H + R * M");
  p.steps = static_cast<int>(steps), p.hidden = static_cast<int>(hidden);
  p.recurrent_size = static_cast<int>(recurrent_size), p.of_reads = static_cast<int>(read);
  p.of_heads = static_cast<int>(numbers);
  p.every = 1;
  while (int64_t{p.every} * p.every < steps) ++p.every;
  const int64_t tile = ceil_divide(rows * p.s.lanes, 2), work = std::max(tile, 4 * hidden);
  p.s.threads =
      static_cast<int>(std::clamp<int64_t>(ceil_divide(work, kWarp) * kWarp, kWarp, kThreads));
}

// ---- packed weights ----

// A matrix [inner, width] as the columns of each block of a cluster; one thread for each number.
// Static, as each op of a scan has its own.
static __global__ void __launch_bounds__(kThreads, 1)
    pack_kernel(const float* __restrict__ from, int64_t row, int64_t column, Matrix w, int width,
                int64_t count, float* __restrict__ to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t k = i / w.wide % w.inner, n = i / w.wide / w.inner * w.wide + i % w.wide;
  to[i] = n < width ? from[k * row + n * column] : 0.0f;
}

inline int64_t size_of(const Matrix& w, int cluster) { return int64_t{cluster} * w.inner * w.wide; }

// Packs [rows, columns], or its transpose; without `to` only the sizes.
inline Matrix packed(const float* from, bool transposed, int rows, int columns, int cluster,
                     float* to, Stream stream) {
  const int inner = transposed ? columns : rows, width = transposed ? rows : columns;
  const Matrix w{to, inner, round_up(round_up(width, cluster) / cluster, kQuad)};
  const int64_t count = size_of(w, cluster);
  if (to == nullptr || count == 0) return w;
  constexpr int kEach = 256;
  launch(pack_kernel, dim3(static_cast<unsigned>(ceil_divide(count, kEach))), kEach, 0, stream,
         from, int64_t{transposed ? 1 : columns}, int64_t{transposed ? columns : 1}, w, width,
         count, to);
  return w;
}

// Makes both packed matrices; without `to` only their sizes. Gives the floats that they take.
inline int64_t pack(Sequence& p, bool transposed, float* to, Stream stream) {
  p.by_recurrent =
      packed(p.recurrent, transposed, 4 * p.hidden, p.recurrent_size, p.cluster, to, stream);
  const int64_t first = size_of(p.by_recurrent, p.cluster);
  float* second = to == nullptr ? nullptr : to + first;
  p.by_interface =
      packed(p.interface, transposed, p.numbers(), p.hidden, p.cluster, second, stream);
  return first + size_of(p.by_interface, p.cluster);
}

// ---- plans ----

// What a kernel may use.
struct BlockLimits {
  bool whole = true;  // shared memory for the rows of the memory
  int cluster = 8;
};

struct Plan {
  bool whole;      // the rows of the memory, too, are in shared memory
  size_t shared;   // bytes
  int64_t packed;  // floats of main memory for the weights,
  int64_t past;    // for the memories that the backward repeats,
  int64_t rows;    // and for the rows of each block that are not in shared memory
  int64_t blocks;

  int64_t floats() const { return packed + past + blocks * rows; }
};

// The shared memory of a block, of arrays that `Layout` takes from one arena for the rows of the
// memory and from another for the rest.
template <typename Layout, typename P>
std::array<size_t, 2> shared_of(const P& p) {
  Arena rows{nullptr}, rest{nullptr};
  static_cast<void>(Layout(rows, rest, p));
  return {rows.used, rest.used};
}

// Sets the cluster of `p` and the sizes of its matrices: the most blocks whose arrays fit. Rows
// in shared memory come before larger clusters. kernels: for rows in main memory, and in shared.
template <typename Layout, typename P, typename Kernel>
Plan make_plan(P& p, bool transposed, int64_t past, const std::array<Kernel, 2>& kernels,
               const BlockLimits& limits) {
  struct Way {
    int cluster, slices;
  };
  constexpr Way kWays[] = {{8, 32}, {8, 16}, {8, 8}, {4, 32}, {4, 16}, {4, 8}, {1, 16}};
  size_t least = 0, most_shared = 0;
  for (int whole = limits.whole ? 1 : 0; whole >= 0; --whole) {
    most_shared = dynamic_limit(kernels[whole]);
    for (const auto& [cluster, slices] : kWays) {
      if (cluster > limits.cluster) continue;
      p.cluster = cluster, p.slices = slices;
      const int64_t packed = pack(p, transposed, nullptr, {});
      const auto [rows, rest] = shared_of<Layout>(p);
      const size_t shared = rest + (whole ? rows : 0);
      least = rest;
      if (shared > most_shared) continue;
      if (!runs_clusters(kernels[whole], cluster, p.s.threads, shared)) continue;
      const int64_t apart = whole ? 0 : static_cast<int64_t>(rows / sizeof(float));
      return {whole != 0, shared, packed, past, apart, p.blocks()};
    }
  }
  throw std::runtime_error(
      std::string(p.op) + ": the controller and its heads must fit " + std::to_string(most_shared) +
      " bytes of shared memory on this GPU, got " + std::to_string(least) + " bytes of " +
      std::to_string(p.hidden) + " hidden units and " + std::to_string(p.of_heads) +
      " numbers of the heads; use fewer of either, or 'eager'");
}

// scratch: [plan.floats()]
template <typename P, typename Kernel>
void run(P p, bool transposed, const std::array<Kernel, 2>& kernels, const Plan& plan,
         float* scratch, Stream stream) {
  if (p.s.batch == 0) return;
  pack(p, transposed, scratch, stream);
  p.past = scratch + plan.packed;
  launch_clusters(kernels[plan.whole], p.cluster, dim3(plan.blocks), p.s.threads, plan.shared,
                  stream, p, p.past + plan.past, plan.rows);
}

}  // namespace stmeta::scan
