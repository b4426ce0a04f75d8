// What gather_tokens and restore_tokens share on the CPU: they place rows of D numbers.
#pragma once

#include "common/cpu_host.h"

namespace stmeta {

// out[b, i] = row + position. With id = ids[b, i], the row is source[b, id], or `fill` for an id
// that is not below `kept`; the position is pos[id] or pos[i].
struct TokenRows {
  const void* source;  // [B, kept, D] through `source_stride`, in elements; D is dense
  int64_t source_stride[2];
  const int64_t* ids;  // [B, rows]
  int64_t kept;
  const void* fill;  // [D]
  const void* pos;   // [.., D] through `pos_stride`, or null
  int64_t pos_stride;
  bool pos_by_id;
  void* out;  // [B, rows, D]
  int64_t rows, dim;
  int64_t tile;  // rows whose positions stay in L1
  bool stream;   // write around the caches
};

// Sums over the rows of a gradient, tile by tile of `tile` tokens.
struct TokenSums {
  const void* grad;  // [B, K or N, D] through `grad_stride`, in elements; D is dense
  int64_t grad_stride[2];
  const int64_t* ids;  // [B, N]: ids_restore
  int64_t batch, tokens, kept, dim, tile;
  float* pos;          // [N, D], or null
  double* mask;        // [tiles, D], or null
  void* latent;        // [B, K, D], or null
  uint8_t* seen;       // [B, K]: which rows of latent were written
  int64_t* kept_rows;  // [tiles]: how many
};

// Fills f.out, [batch, rows, D]. `pos`: [.., D] of fp32 or of `dtype`, or nothing.
void place_all_rows(TokenRows& f, const char* op, int64_t batch, ScalarType dtype,
                    const std::optional<Tensor>& pos);

// Tokens of a tile of `dim` floats each that takes some KiB of L1.
inline int64_t tile_rows(int64_t dim, int64_t kib) {
  return std::max<int64_t>(4, (kib << 8) / std::max<int64_t>(1, dim));
}

}  // namespace stmeta
