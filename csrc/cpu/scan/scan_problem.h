// What the scans share: an LSTM that runs over a sequence, with a memory beside it.
#pragma once

#include "common/half.h"
#include "cpu/memory/memory_problem.h"

namespace stmeta {

constexpr int64_t kPanel = 48;  // columns of a panel: three vectors, or a multiple of that

// A matrix [inner][width] as panels [wide / 48][inner][48], zero where padded; or in bf16, pairs of
// rows side by side: [wide / 48][(inner + 1) / 2][48][2].
struct Panels {
  int64_t pairs() const { return (inner + 1) / 2; }

  const float* data;
  const bf16* rounded;  // one of both is null
  int64_t inner, wide;
};

// One batch of sequences: dense fp32 tensors. A heads in all, of which R read; P numbers of all
// heads; K = H + R * M where the controller is fed what was read, else H.
struct Scan {
  bool runs(int64_t b, int64_t step) const { return lengths == nullptr || step < lengths[b]; }
  int64_t read() const { return sizes.reads * sizes.width; }
  // The longest row that is multiplied, as pairs of bf16 numbers.
  int64_t pairs() const {
    const int64_t most = 4 * hidden > numbers ? 4 * hidden : numbers;
    return ((most > recurrent_size ? most : recurrent_size) + 31) / 32 * 16;
  }
  int64_t num_checkpoints() const { return (steps + every - 1) / every; }

  MemorySizes sizes;                               // B, N, M, A, R
  int64_t steps, hidden, recurrent_size, numbers;  // T, H, K, P
  int64_t every;                                   // steps between two checkpoints
  int64_t slots;  // memories that a thread's backward holds of an element, of a segment
  bool lean;      // the forward keeps cells and weights at checkpoints only: [B, S, ...]
  Panels recurrent, interface;  // forward: [K][4H], [H][P]; backward: [4H][K], [P][H]
  const float *gates, *bias;    // [B, T, 4H], [P]
  const float *memory, *previous, *reads, *h, *c;  // the first state
  const int64_t* lengths;                          // [B] or null: all T
  // Out of the forward, in of the backward: [B, T, H + R * M], [B, T, 4H], [B, T, H], [B, T, P],
  // [B, T, A, N], [B, S, N, M]
  float *y, *gates_out, *cells, *heads, *weights, *checkpoints;
  float *memory_out, *weight_out, *c_out;                    // the last state
  int64_t grad_strides[3];                                   // of grad_y; the others are dense
  const float *grad_y, *grad_memory, *grad_weight, *grad_c;  // the last three of the last state
  float *d_gates, *d_heads, *d_memory, *d_previous, *d_reads, *d_h, *d_c;
};

}  // namespace stmeta
