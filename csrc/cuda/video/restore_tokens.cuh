// Launches of stmeta::restore_tokens; the kernels are those of gather_tokens.cuh.
// Reference: stmeta/ops/video/restore_tokens.py.
#pragma once

#include "cuda/video/gather_tokens.cuh"

namespace stmeta::restore_tokens {

using gather_tokens::count;
using gather_tokens::make_table;
using gather_tokens::Table;

// latent: [B, K, D] of these sizes and strides; mask_token: one row; pos: [N, D]; ids: [B, N];
// out: [B, N, D].
template <typename T>
void forward(const T* latent, const int64_t* sizes, const int64_t* strides,
             const Table<T>& mask_token, const Table<T>& pos, const int64_t* ids, int64_t tokens,
             T* out, Stream stream) {
  gather_tokens::Place<T> p{};
  p.source = latent;
  p.stride_b = strides[0], p.stride_row = strides[1];
  p.source_by_id = true;
  p.ids = ids;
  p.limit = sizes[1];
  p.fill = mask_token;
  p.pos = pos;
  p.out = out;
  p.batch = count(sizes[0]), p.rows = count(tokens), p.dim = count(sizes[2]);
  place(p, stream);
}

// Rows of `partial`, which backward needs for grad_mask.
inline int partial_rows(int64_t tokens) { return gather_tokens::sum_blocks(tokens); }

// grad: [B, N, D] of these sizes and strides, none of them 0. Results may be null: not wanted;
// `partial`, [partial_rows, D], is null where grad_mask is.
template <typename T>
void backward(const T* grad, const int64_t* sizes, const int64_t* strides, const int64_t* ids,
              int64_t kept, T* grad_latent, float* grad_mask, float* grad_pos, float* partial,
              Stream stream) {
  gather_tokens::Sums<T, int64_t> p{};
  p.grad = grad;
  p.stride_b = strides[0], p.stride_row = strides[1];
  p.ids = ids;
  p.batch = count(sizes[0]), p.tokens = count(sizes[1]), p.kept = count(kept);
  p.dim = count(sizes[2]);
  p.moved = grad_latent, p.pos = grad_pos, p.partial = partial;
  sum(p, stream);
  if (grad_mask) column_sum(partial, grad_mask, partial_rows(sizes[1]), p.dim, stream);
}

}  // namespace stmeta::restore_tokens
