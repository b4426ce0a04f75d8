// Kernels of temporal_link for one instruction set; csrc/common/each_isa.h includes this file.
#include "cpu/memory/memory_kernels.h"

namespace stmeta::STMETA_ISA {

constexpr int kRows = 4;  // that share the sums of a column

template <typename T>
STMETA_INLINE const T* head_of(const Links& links, const TemporalLink& p, int64_t head) {
  const int64_t b = head / p.heads, h = head % p.heads;
  return static_cast<const T*>(links.data) + b * links.batch_stride + h * links.head_stride;
}

// A vector; with kPart the `count` numbers that are left at the end of a row, and zeros.
template <bool kPart, typename T>
STMETA_INLINE Vec load_some(const T* source, int64_t count) {
  if constexpr (!kPart) return load(source);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = to_float(source[i]);
  return load(lanes);
}

template <bool kPart, typename T>
STMETA_INLINE void store_some(T* target, Vec v, int64_t count) {
  if constexpr (!kPart) return store(target, v);
  for (int64_t i = 0; i < count; ++i) from_float(v[i], target + i);
}

typedef int32_t Lanes __attribute__((vector_size(4 * STMETA_LANES)));

STMETA_INLINE Lanes each_lane() {
  Lanes lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// v, and 0 in lane `at`, if there is such a lane.
STMETA_INLINE Vec without(Vec v, int64_t at) {
  return (Vec)((Lanes)v & (each_lane() != static_cast<int32_t>(at)));
}

// ---- forward: reads and writes B * W * N * N numbers once ----

// Blocks [begin, end) of rows. The first block of a head updates its precedence.
template <typename T>
STMETA_FN void forward(const TemporalLink& p, int64_t begin, int64_t end, float* floats) {
  for (int64_t block = begin; block < end; ++block) {
    Scratch scratch = {floats};
    const int64_t head = block / p.blocks, first = block % p.blocks * kBlock;
    const int64_t last = first + kBlock < p.rows ? first + kBlock : p.rows;
    const float* weight = take_rows<T>(scratch, p.weight, head, 1, p.rows, p.padded);
    const float* precedence = take_rows<T>(scratch, p.precedence, head, 1, p.rows, p.padded);
    const T* link = head_of<T>(p.link, p, head);
    T* out = static_cast<T*>(p.link_out) + head * p.rows * p.rows;
    const int64_t whole = p.rows / kLanes * kLanes, left = p.rows - whole;
    for (int64_t i = first; i < last; ++i) {
      const T* row = link + i * p.link.row_stride;
      T* row_out = out + i * p.rows;
      const Vec after = splat(weight[i]), keep = splat(1.0f - weight[i]);
      for (int64_t j = 0; j < whole; j += kLanes) {
        const Vec kept = (keep - load(weight + j)) * load(row + j);
        store(row_out + j, kept + after * load(precedence + j));
      }
      if (left > 0) {
        const Vec kept = (keep - load(weight + whole)) * load_some<true>(row + whole, left);
        store_some<true>(row_out + whole, kept + after * load(precedence + whole), left);
      }
      from_float(0.0f, row_out + i);
    }
    if (first > 0) continue;
    float* updated = scratch.take(p.padded);
    const Vec keep = splat(1.0f - sum_of(weight, p.padded));
    for (int64_t n = 0; n < p.padded; n += kLanes) {
      store(updated + n, keep * load(precedence + n) + load(weight + n));
    }
    write_rows<T>(updated, 1, p.rows, p.padded, p.precedence_out, head);
  }
}

// ---- backward: reads 2 B * W * N * N numbers and writes as many as B * W * N * N ----
//
// With G the gradient of the new links, 0 on the diagonal, and g that of the new precedence:
//   dL[i, j] = (1 - w[i] - w[j]) G[i, j]
//   dw[i]    = sum_j G[i, j] (p[j] - L[i, j]) - sum_k G[k, i] L[k, i] + g[i] - sum_j g[j] p[j]
//   dp[j]    = sum_i w[i] G[i, j] + (1 - sum w) g[j]

// What one head's passes over its rows work on; [padded] each.
struct LinkGrads {
  const float *weight, *precedence;
  float *rows, *kept, *added;  // sum_j G (p - L), sum_k G[k, .] L[k, .], sum_i w[i] G[i, .]
};

// Columns [j, j + kLanes), or with kPart `left` of them, of kCount rows from row i on, at which the
// pointers are.
template <bool kPart, int kCount, typename T>
STMETA_INLINE void columns_backward(const TemporalLink& p, const LinkGrads& s, const T* link,
                                    const T* grad, T* out, int64_t i, int64_t j, int64_t left,
                                    Vec* sum) {
  const Vec weight = load(s.weight + j), precedence = load(s.precedence + j);
  Vec kept = {}, added = {};  // apart: what is there is a sum of many rows
  for (int r = 0; r < kCount; ++r) {
    Vec g = load_some<kPart>(grad + r * p.grad.row_stride + j, left);
    g = without(g, i + r - j);
    const Vec own = g * load_some<kPart>(link + r * p.link.row_stride + j, left);
    const Vec after = splat(s.weight[i + r]);
    kept += own;
    added += after * g;
    sum[r] += g * precedence - own;
    store_some<kPart>(out + r * p.rows + j, (splat(1.0f) - after - weight) * g, left);
  }
  store(s.kept + j, load(s.kept + j) + kept);
  store(s.added + j, load(s.added + j) + added);
}

// Rows [i, i + kCount).
template <int kCount, typename T>
STMETA_INLINE void rows_backward(const TemporalLink& p, const LinkGrads& s, const T* link,
                                 const T* grad, T* out, int64_t i) {
  link += i * p.link.row_stride;
  grad += i * p.grad.row_stride;
  out += i * p.rows;
  Vec sum[kCount] = {};
  int64_t j = 0;
  for (; j + kLanes <= p.rows; j += kLanes) {
    columns_backward<false, kCount>(p, s, link, grad, out, i, j, kLanes, sum);
  }
  if (j < p.rows) {
    columns_backward<true, kCount>(p, s, link, grad, out, i, j, p.rows - j, sum);
  }
  for (int r = 0; r < kCount; ++r) s.rows[i + r] = sum_tree(sum[r]);
}

// Heads [begin, end).
template <typename T>
STMETA_FN void backward(const TemporalLink& p, int64_t begin, int64_t end, float* floats) {
  const int64_t padded = p.padded;
  for (int64_t head = begin; head < end; ++head) {
    Scratch scratch = {floats};
    const float* weight = take_rows<T>(scratch, p.weight, head, 1, p.rows, padded);
    const float* precedence = take_rows<T>(scratch, p.precedence, head, 1, p.rows, padded);
    float* grad = take_rows<T>(scratch, p.grad_precedence, head, 1, p.rows, padded);
    const LinkGrads s = {weight, precedence, scratch.take(padded), scratch.take(padded),
                         scratch.take(padded)};
    clear(s.rows, padded);
    clear(s.kept, padded);
    clear(s.added, padded);
    const T* link = head_of<T>(p.link, p, head);
    const T* links = head_of<T>(p.grad, p, head);
    T* out = static_cast<T*>(p.link_out) + head * p.rows * p.rows;
    int64_t i = 0;
    for (; i + kRows <= p.rows; i += kRows) rows_backward<kRows>(p, s, link, links, out, i);
    for (; i < p.rows; ++i) rows_backward<1>(p, s, link, links, out, i);
    const Vec keep = splat(1.0f - sum_of(weight, padded));
    const Vec shared = splat(dot(grad, precedence, padded));
    for (int64_t n = 0; n < padded; n += kLanes) {
      const Vec g = load(grad + n);
      store(s.rows + n, load(s.rows + n) - load(s.kept + n) + (g - shared));
      store(s.added + n, load(s.added + n) + keep * g);
    }
    write_rows<T>(s.rows, 1, p.rows, padded, p.d_weight_out, head);
    write_rows<T>(s.added, 1, p.rows, padded, p.precedence_out, head);
  }
}

}  // namespace stmeta::STMETA_ISA
