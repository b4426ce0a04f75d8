// Kernels of locality_attention for one instruction set; csrc/common/each_isa.h includes this file.
//
// One (clip, head) at a time. Its keys lie transposed, so that a vector holds one feature of
// neighbouring keys, and a logit is a chain of multiply-adds. Eight queries go together: what is
// loaded of the keys serves all of them. The N x N weights only exist as tiles of eight rows.

#include "cpu/video/locality_attention_layout.h"

namespace stmeta::STMETA_ISA {

// The largest square of the norm of a row of [count, E].
template <typename T>
STMETA_FN float largest_square(const T* rows, int64_t step, int64_t count, int64_t width) {
  float largest = 0.0f;
  for (int64_t n = 0; n < count; ++n) {
    float square = 0.0f;
    for (int64_t e = 0; e < width; ++e) {
      const float x = to_float(rows[n * step + e]);
      square += x * x;
    }
    largest = square > largest ? square : largest;
  }
  return largest;
}

// sum[..][r] = rows[r] . columns, for a tile of keys from key n on and eight rows.
template <typename Policy>
STMETA_INLINE void products(const Attention& a, const typename Policy::Number* rows,
                            const typename Policy::Number* columns, int64_t n, Tile& sum) {
  constexpr int64_t kPair = Policy::kPair;
  const int64_t wide = a.wide, width = a.width, step = kKeys * kPair;
  const typename Policy::Number* column = columns + n * wide;
  Tile total = {};  // local: `sum` may lie in memory
  for (int64_t e = 0; e < width; e += kPair, column += step) {
    typename Policy::Numbers keys[kColumns];
    for (int c = 0; c < kColumns; ++c) keys[c] = Policy::many(column + c * kLanes * kPair);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto query = Policy::one(rows + r * wide + e);
      for (int c = 0; c < kColumns; ++c) total[c][r] = Policy::fma(total[c][r], keys[c], query);
    }
  }
  for (int c = 0; c < kColumns; ++c) {
    for (int r = 0; r < kRows; ++r) sum[c][r] = total[c][r];
  }
}

// Sets the logits that do not count, in a tile that starts at query i and key n.
STMETA_INLINE void cut(const Attention& a, int64_t i, int64_t n, Tile& x) {
  const bool diagonal = a.exclude_self && i < n + kKeys && n < i + kRows;
  if (!diagonal && n + kKeys <= a.tokens) return;
  alignas(64) float row[kKeys];  // x itself stays in registers
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) store(row + c * kLanes, x[c][r]);
    for (int64_t k = 0; k < kKeys; ++k) {
      if (n + k >= a.tokens || (a.exclude_self && n + k == i + r)) row[k] = kLow;
    }
    for (int c = 0; c < kColumns; ++c) x[c][r] = load(row + c * kLanes);
  }
}

// What the logits of eight queries are lowered by before their exp: nothing where Cauchy and
// Schwarz promise that it is far from the ends of fp32, else the largest of each.
template <typename Policy>
STMETA_FN void find_largest(const Attention& a, const Head<Policy>& h, int64_t i, float scale,
                            float bound, float (&largest)[kRows]) {
  for (int r = 0; r < kRows; ++r) largest[r] = 0.0f;
  if (bound < Policy::kSafe) return;
  for (int r = 0; r < kRows; ++r) largest[r] = 2 * kLow;
  for (int64_t n = 0; n < a.padded; n += kKeys) {
    Tile x;
    products<Policy>(a, h.query, h.key_columns, n, x);
    for (int c = 0; c < kColumns; ++c) {
      for (int r = 0; r < kRows; ++r) x[c][r] *= splat(scale);
    }
    cut(a, i, n, x);
    for (int c = 0; c < kColumns; ++c) {
      for (int r = 0; r < kRows; ++r) {
        alignas(64) float lane[kLanes];
        store(lane, x[c][r]);
        for (int k = 0; k < kLanes; ++k) largest[r] = lane[k] > largest[r] ? lane[k] : largest[r];
      }
    }
  }
}

constexpr int64_t kChain = 64;  // keys that are summed at a time: a long chain loses digits

// sum[r] = weight[r] . rows, for features [e, e + kLanes) and eight rows of weights.
template <typename Policy>
STMETA_INLINE void gather_rows(const Attention& a, const typename Policy::Number* weight,
                               const typename Policy::Number* rows, int64_t e, Vec (&sum)[kRows]) {
  constexpr int64_t kPair = Policy::kPair;
  const int64_t padded = a.padded, step = a.wide * kPair;
  const typename Policy::Number* row = rows + e * kPair;
  for (int r = 0; r < kRows; ++r) sum[r] = Vec{};
  for (int64_t first = 0; first < padded; first += kChain) {
    const int64_t last = first + kChain < padded ? first + kChain : padded;
    Vec part[kRows] = {};  // local: `sum` lies in memory
    for (int64_t n = first; n < last; n += kPair, row += step) {
      const auto values = Policy::many(row);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        part[r] = Policy::fma(part[r], values, Policy::one(weight + r * padded + n));
      }
    }
    for (int r = 0; r < kRows; ++r) sum[r] += part[r];
  }
}

template <typename T>
STMETA_INLINE void write(T* out, Vec v, int64_t count) {
  if (count >= kLanes) {
    store(out, v);
  } else {
    for (int64_t k = 0; k < count; ++k) from_float(v[k], out + k);
  }
}

// Heads [begin, end) of the B * H.
template <typename Policy, typename T>
STMETA_FN void forward(const Attention& a, int64_t begin, int64_t end, float* scratch) {
  const Head<Policy> h = lay_out<Policy>(a, scratch);
  const int64_t padded = a.padded;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t b = index / a.heads, head = index % a.heads;
    const float scale = a.temperature[head] * Policy::kUnit;
    const T *query = part_of<T>(a, b, head, 0), *key = part_of<T>(a, b, head, 1);
    const float square = largest_square(key, a.stride[1], a.tokens, a.width) * scale * scale;
    pack<Policy>(a, key, h.key_columns, nullptr);
    pack<Policy>(a, part_of<T>(a, b, head, 2), nullptr, h.value_rows);
    T* out = static_cast<T*>(a.out) + (b * a.tokens * a.heads + head) * a.width;
    for (int64_t i = 0; i < a.tokens; i += kRows) {
      const int64_t rows = a.tokens - i < kRows ? a.tokens - i : kRows;
      pack_rows<Policy>(a, query, a.stride[1], i, h.query, nullptr);
      const float other = largest_square(query + i * a.stride[1], a.stride[1], rows, a.width);
      float largest[kRows];
      find_largest<Policy>(a, h, i, scale, __builtin_sqrtf(square * other), largest);
      Vec total[kRows] = {};
      for (int64_t n = 0; n < padded; n += kKeys) {
        Tile x;
        products<Policy>(a, h.query, h.key_columns, n, x);
        for (int c = 0; c < kColumns; ++c) {
          for (int r = 0; r < kRows; ++r) x[c][r] = x[c][r] * splat(scale) - splat(largest[r]);
        }
        cut(a, i, n, x);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          Vec w[kColumns];
          for (int c = 0; c < kColumns; ++c) {
            w[c] = Policy::weigh(x[c][r]);
            total[r] += w[c];
          }
          Policy::put(h.weight + r * padded + n, w);
        }
      }
      float inverse[kRows];
      for (int r = 0; r < kRows; ++r) inverse[r] = 1.0f / sum_tree(total[r]);
      for (int64_t r = 0; r < rows; ++r) {
        float* stats = a.stats + (index * a.tokens + i + r) * 2;
        stats[0] = largest[r];
        stats[1] = inverse[r];
      }
      for (int64_t e = 0; e < a.width; e += kLanes) {
        Vec sum[kRows];
        gather_rows<Policy>(a, h.weight, h.value_rows, e, sum);
        for (int64_t r = 0; r < rows; ++r) {
          write(out + (i + r) * a.heads * a.width + e, sum[r] * splat(inverse[r]), a.width - e);
        }
      }
    }
  }
}

// target[tile of n][e] += sum over eight rows of rows[r][e] x[..][r].
template <typename Policy>
STMETA_INLINE void spread(const Attention& a, const typename Policy::Number* pairs, const Tile& x,
                          int64_t n, float* target) {
  constexpr int kPair = Policy::kPair;
  const int64_t wide = a.wide, width = a.width;
  typename Policy::Numbers packed[kColumns][kRows];
  for (int c = 0; c < kColumns; ++c) Policy::pairs(x[c], packed[c]);
  float* place = target + n * wide;
  for (int64_t e = 0; e < width; ++e, place += kKeys) {
    Vec sum[kColumns] = {};  // apart: `place` holds a sum of many rows
#pragma GCC unroll 8
    for (int r = 0; r < kRows / kPair; ++r) {
      const auto row = Policy::one(pairs + (r * wide + e) * kPair);
      for (int c = 0; c < kColumns; ++c) sum[c] = Policy::fma(sum[c], packed[c][r], row);
    }
    for (int c = 0; c < kColumns; ++c) {
      store(place + c * kLanes, load(place + c * kLanes) + sum[c]);
    }
  }
}

// Columns of a gradient, times a factor, to its rows in the gradient of qkv.
template <typename T>
STMETA_FN void scatter(const Attention& a, const float* columns, float factor, T* target) {
  const int64_t step = 3 * a.heads * a.width;
  for (int64_t n = 0; n < a.tokens; n += kLanes) {
    const int64_t count = a.tokens - n < kLanes ? a.tokens - n : kLanes;
    const float* tile = columns + (n - n % kKeys) * a.wide + n % kKeys;
    for (int64_t e = 0; e < a.width; ++e) {
      alignas(64) T numbers[kLanes];
      store(numbers, load(tile + e * kKeys) * splat(factor));
      for (int64_t k = 0; k < count; ++k) target[(n + k) * step + e] = numbers[k];
    }
  }
}

constexpr int64_t kFew = 64;  // tokens

// What the backward knows of eight queries.
struct Rows {
  float largest[kRows], inverse[kRows];
  float centre[kRows];  // out . grad
};

template <typename T>
STMETA_FN Rows look_up(const Attention& a, const T* out, const T* grad, int64_t index, int64_t i) {
  const int64_t step = a.heads * a.width;
  Rows known = {};
  for (int64_t r = 0; r < kRows && i + r < a.tokens; ++r) {
    const float* stats = a.stats + (index * a.tokens + i + r) * 2;
    known.largest[r] = stats[0];
    known.inverse[r] = stats[1];
    for (int64_t e = 0; e < a.width; ++e) {
      known.centre[r] += to_float(out[(i + r) * step + e]) * to_float(grad[(i + r) * step + e]);
    }
  }
  return known;
}

// Weights of eight queries, from query i on, for a tile of keys; `dot` gets the products q k.
template <typename Policy>
STMETA_INLINE void weigh_tile(const Attention& a, const Head<Policy>& h, const Rows& known,
                              float scale, int64_t i, int64_t n, Tile& x, float (*dot)[kKeys]) {
  products<Policy>(a, h.query, h.key_columns, n, x);
  for (int c = 0; c < kColumns; ++c) {
    for (int r = 0; r < kRows; ++r) {
      if (Policy::kExact) store(dot[r] + c * kLanes, x[c][r]);
      x[c][r] = x[c][r] * splat(scale) - splat(known.largest[r]);
    }
  }
  cut(a, i, n, x);
  for (int c = 0; c < kColumns; ++c) {
    for (int r = 0; r < kRows; ++r) x[c][r] = Policy::weigh(x[c][r]) * splat(known.inverse[r]);
  }
}

// out . grad of eight queries as the sum of weights times gradients of weights: where few keys
// share a gradient that nearly cancels, rounding must be that of the sums they are taken from.
template <typename Policy>
STMETA_FN void find_centre(const Attention& a, const Head<Policy>& h, float scale, int64_t i,
                           Rows& known) {
  for (int r = 0; r < kRows; ++r) known.centre[r] = 0.0f;
  for (int64_t n = 0; n < a.padded; n += kKeys) {
    Tile x, d;
    alignas(64) float dot[kRows][kKeys];
    weigh_tile<Policy>(a, h, known, scale, i, n, x, dot);
    products<Policy>(a, h.grad, h.value_columns, n, d);
    for (int c = 0; c < kColumns; ++c) {
      for (int r = 0; r < kRows; ++r) known.centre[r] += sum_tree(x[c][r] * d[c][r]);
    }
  }
}

// The gradients that eight queries, from query i on, send to keys, values and themselves.
template <typename Policy, typename T>
STMETA_FN void backward_rows(const Attention& a, const Head<Policy>& h, int64_t index, int64_t i,
                             double& temperature) {
  const int64_t b = index / a.heads, head = index % a.heads, step = a.heads * a.width;
  const int64_t rows = a.tokens - i < kRows ? a.tokens - i : kRows, padded = a.padded;
  const int64_t place = (b * a.tokens * a.heads + head) * a.width;
  const T* grad = static_cast<const T*>(a.grad) + place;
  const float tau = a.temperature[head], scale = tau * Policy::kUnit;
  pack_rows<Policy>(a, part_of<T>(a, b, head, 0), a.stride[1], i, h.query, h.query_pairs);
  pack_rows<Policy>(a, grad, step, i, h.grad, h.grad_pairs);
  Rows known = look_up(a, static_cast<const T*>(a.out) + place, grad, index, i);
  if (Policy::kExact && a.tokens <= kFew) find_centre<Policy>(a, h, scale, i, known);
  Vec tilt = {};  // sum of gradients of logits, times the products q k
  for (int64_t n = 0; n < padded; n += kKeys) {
    Tile x, d;
    alignas(64) float dot[kRows][kKeys];  // registers are short
    weigh_tile<Policy>(a, h, known, scale, i, n, x, dot);
    spread<Policy>(a, h.grad_pairs, x, n, h.grad_value);
    products<Policy>(a, h.grad, h.value_columns, n, d);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      Vec row[kColumns];
      for (int c = 0; c < kColumns; ++c) {
        row[c] = d[c][r] = x[c][r] * (d[c][r] - splat(known.centre[r]));
        if (Policy::kExact) tilt += row[c] * load(dot[r] + c * kLanes);
      }
      Policy::put(h.weight + r * padded + n, row);
    }
    spread<Policy>(a, h.query_pairs, d, n, h.grad_key);
  }
  T* target = static_cast<T*>(a.grad_qkv) + (b * a.tokens * 3 * a.heads + head) * a.width;
  const float factor = a.tokens > 1 ? tau : 0.0f;  // the weight of a lone token is always 1
  for (int64_t e = 0; e < a.width; e += kLanes) {
    Vec sum[kRows];
    gather_rows<Policy>(a, h.weight, h.key_rows, e, sum);
    for (int64_t r = 0; r < rows; ++r) {
      write(target + (i + r) * 3 * step + e, sum[r] * splat(factor), a.width - e);
      if (!Policy::kExact) tilt += sum[r] * load(h.query + r * a.wide + e);
    }
  }
  if (a.tokens > 1) temperature += static_cast<double>(sum_tree(tilt));
}

template <typename Policy, typename T>
STMETA_FN void backward(const Attention& a, int64_t begin, int64_t end, float* scratch) {
  const Head<Policy> h = lay_out<Policy>(a, scratch);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t b = index / a.heads, head = index % a.heads;
    pack<Policy>(a, part_of<T>(a, b, head, 1), h.key_columns, h.key_rows);
    pack<Policy>(a, part_of<T>(a, b, head, 2), h.value_columns, nullptr);
    zero(h.grad_key, 2 * a.padded * a.wide);  // and those of the values, behind them
    double temperature = 0.0;
    for (int64_t i = 0; i < a.tokens; i += kRows) {
      backward_rows<Policy, T>(a, h, index, i, temperature);
    }
    a.grad_temperature[index] = static_cast<float>(temperature);
    const float tau = a.tokens > 1 ? a.temperature[head] : 0.0f;  // a lone token's weight is 1
    T* target = static_cast<T*>(a.grad_qkv) + (b * a.tokens * 3 * a.heads + head) * a.width;
    scatter(a, h.grad_key, tau, target + a.heads * a.width);
    scatter(a, h.grad_value, 1.0f, target + 2 * a.heads * a.width);
  }
}

}  // namespace stmeta::STMETA_ISA
