// One call of patch_shift on the CPU: plain numbers that the kernels of every instruction set read.
#pragma once

#include <cstdint>

namespace stmeta {

enum Axis { kTime, kHeight, kWidth };

// Kernels work on a window: the pixels under a few tokens that are neighbours in x, and as far
// around them as the shifts reach, normalised, as floats [window t][window y][pitch], channels
// innermost.
struct PatchShift {
  const void* video;        // [B, C, T, H, W] through `stride`, in elements
  const int64_t* ids;       // [B, K] where tokens are picked
  const float* weight;      // [padded], ones without LayerNorm
  const float* bias;        // [padded], zeros without LayerNorm
  const float* scale;       // [C]
  const float* offset;      // [C]
  const float* scale_row;   // [plane][C]
  const float* offset_row;  // [plane][C]
  const int64_t* shifts;    // [S][3]
  const int32_t* sources;   // [p * S]: where (dx, s) lies in a window, from the token's corner
  bool norm;
  bool picked;  // tokens are picked by ids
  float eps;
  int64_t batch, channels, size[3];  // B, C, (T, H, W)
  int64_t stride[5];                 // of B, C, T, H, W
  int64_t tubelet, patch, shift_count, features, padded;
  int64_t grid[3], tokens, kept;       // tokens per axis, N, K
  int64_t reach[3], window[3], pitch;  // pixels before the tokens, and of the window; floats
  int64_t window_floats;               // of a window, with room for the last copy's tail
  int64_t plane;                       // pixels of the widest row: of a window or of the video
  int64_t group, groups;               // tokens of a window, windows of a row of tokens
  int64_t items;  // windows of the call: B * K with ids, else B * rows * groups
};

// Where one window lies.
struct Item {
  int64_t batch, corner[3];  // first pixel under its first token
  int64_t first, count;      // its tokens, counted over [B, K]
};

struct Forward {
  PatchShift problem;
  void* tokens;   // rows of F
  int64_t first;  // which of the B * K tokens is the first row
  float* mean;    // [B, K], or null without LayerNorm
  float* rstd;
  bool known;   // mean and rstd are given
  bool stream;  // write around the caches: rows are whole cache lines, and too many to stay
};

// d value = rstd * weight * grad - (k0 + (value - mean) * k1)
struct TokenTerms {
  float mean, rstd, k0, k1;
};

struct Backward {
  PatchShift problem;
  const void* grad;  // [B, K, F] through `grad_stride`, in elements
  int64_t grad_stride[3];
  const float* mean;  // [B, K]
  const float* rstd;
  int64_t blocks;       // items are summed in so many blocks, whatever the number of threads
  float* partial;       // [blocks][2][padded], sums of the gradients of weight and bias
  TokenTerms* terms;    // [B, K], or null
  const int64_t* kept;  // [B, N]: which k shows this token, -1: none. Null: all of them
  void* grad_video;     // [B, C, T, H, W], contiguous
};

}  // namespace stmeta
