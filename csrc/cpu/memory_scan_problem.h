// What memory_scan's host side hands to its kernels.
#pragma once

#include "memory_problem.h"

namespace stmeta {

constexpr int64_t kPanel = 48;  // columns of a panel: three vectors, or a multiple of that

// A matrix [inner][width] as panels [wide / 48][inner][48], zero where padded.
struct Panels {
  const float* data;
  int64_t inner, wide;
};

// One episode: dense fp32 tensors. K = H + R * M where the controller is fed what was read, else H.
struct MemoryScan {
  bool runs(int64_t b, int64_t step) const { return lengths == nullptr || step < lengths[b]; }

  MemorySizes sizes;           // B, N, M, R heads
  int64_t steps, hidden, fed;  // T, H, K
  int64_t per_head;            // P: key, add (unless the key is written), strength, gate
  int64_t every;               // steps between two checkpoints
  LruaOptions options;
  bool strength, write_key;
  Panels recurrent, interface;  // forward: [K][4H], [H][R * P]; backward: [4H][K], [R * P][H]
  const float *gates, *bias, *key, *add;  // [B, T, 4H], [R * P], [B, T, R, M] or null x2
  const float *memory, *usage, *previous, *reads, *h, *c;
  const int64_t* lengths;  // [B] or null: all T
  // Out of the forward, in of the backward: [B, T, H + R * M], [B, T, 4H], [B, T, H], [B, T, R *
  // P], [B, T, R, N], [B, T, R], [B, S, N, M]
  float *y, *gates_out, *cells, *heads, *weights;
  int64_t* rows;
  float* checkpoints;
  float *memory_out, *usage_out, *weight_out, *c_out;        // the last state
  const float *grad_y, *grad_memory, *grad_weight, *grad_c;  // the last three of the last state
  float *d_gates, *d_heads, *d_written, *d_memory, *d_previous, *d_reads, *d_h, *d_c;
};

}  // namespace stmeta
