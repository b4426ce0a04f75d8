// One call of locality_attention on the CPU.
#pragma once

#include <cstdint>

namespace stmeta {

struct Attention {
  const void* qkv;           // [B, N, 3, H, E] through `stride`, the last axis dense
  const float* temperature;  // [H]
  bool exclude_self;
  int64_t batch, tokens, heads, width;  // B, N, H, E
  int64_t stride[4];                    // of B, N, 3, H, in elements
  int64_t padded, wide;                 // N and E, rounded up to whole vectors
  void* out;                            // [B, N, H, E]
  float* stats;             // [B, H, N, 2]: what logits are lowered by, 1 / sum of exp(logit - it)
  const void* grad;         // [B, N, H, E]
  void* grad_qkv;           // [B, N, 3, H, E]
  float* grad_temperature;  // [B, H]
};

constexpr int kRows = 8;  // queries that are worked on together

}  // namespace stmeta
