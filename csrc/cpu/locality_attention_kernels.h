// Kernels of locality_attention for one instruction set; csrc/common/each_isa.h includes this file.
//
// One (clip, head) at a time. Its keys lie transposed, so that a vector holds one feature of
// neighbouring keys, and a logit is a chain of multiply-adds. Eight queries go together: what is
// loaded of the keys serves all of them. The N x N weights only exist as tiles of eight rows.
//
// `Plain` works in fp32. `Dot` keeps operands as pairs of bf16 and sums their products in fp32.

namespace stmeta::STMETA_ISA {

constexpr float kLog2e = 1.44269504f;
constexpr float kLow = -1e30f;                         // a logit that does not count
constexpr int kColumns = STMETA_LANES == 16 ? 2 : 1;   // vectors of keys in a tile
constexpr int64_t kKeys = int64_t{kColumns} * kLanes;  // keys in a tile
typedef Vec Tile[kColumns][kRows];

STMETA_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// The whole part of x, and 2 to the power of it times y. Ends at 2^-126.
STMETA_INLINE Vec whole(Vec x) {
#if STMETA_LANES == 16
  return (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
  return (larger(x, splat(-126.0f)) + splat(12582912.0f)) - splat(12582912.0f);  // 1.5 * 2^23
#endif
}
STMETA_INLINE Vec scale_by(Vec y, Vec power) {
#if STMETA_LANES == 16
  return (Vec)_mm512_scalef_ps((__m512)y, (__m512)power);
#else
  typedef int32_t Ints __attribute__((vector_size(4 * STMETA_LANES)));
  return (Vec)((Ints)y + ((Ints)(power + splat(12582912.0f)) << 23));
#endif
}

// e^x, to rounding.
STMETA_INLINE Vec exp_of(Vec x) {
  x = larger(x, splat(-87.0f));  // beyond it r would be rounding errors
  const Vec n = whole(x * splat(kLog2e));
  const Vec r = (x - n * splat(0.693145752f)) - n * splat(1.42860677e-06f);  // ln 2, in two parts
  Vec y = (splat(0.00138146058f) * r + splat(0.00836871099f)) * r + splat(0.041668389f);
  y = (y * r + splat(0.166665211f)) * r + splat(0.49999994f);
  return scale_by((y * r) * r + r + splat(1.0f), n);
}

// 2^x, to a relative error of 8e-5: a tenth of a rounding to bf16.
STMETA_INLINE Vec exp2_of(Vec x) {
#if STMETA_LANES != 16
  x = larger(x, splat(-126.0f));
#endif
  const Vec n = whole(x), f = x - n;
  const Vec y = (splat(0.0551714934f) * f + splat(0.24261111f)) * f + splat(0.693261027f);
  return scale_by(y * f + splat(0.999928057f), n);
}

#define STMETA_MEMBER STMETA_FN static inline __attribute__((always_inline))

struct Plain {
  typedef float Number;
  typedef Vec Numbers;
  static constexpr int kPair = 1;        // neighbours along a contracted axis that lie together
  static constexpr float kUnit = 1.0f;   // of logits, as `weigh` takes them
  static constexpr float kSafe = 40.0f;  // far from the ends of fp32
  STMETA_MEMBER Vec weigh(Vec logit) { return exp_of(logit); }
  STMETA_MEMBER Numbers many(const float* p) { return load(p); }
  STMETA_MEMBER Numbers one(const float* p) { return splat(*p); }
  STMETA_MEMBER Vec fma(Vec sum, Numbers a, Numbers b) { return sum + a * b; }
  STMETA_MEMBER void put(float* out, Vec v) { STMETA_ISA::store(out, v); }
  template <typename T>
  STMETA_MEMBER float number(T value) {
    return to_float(value);
  }
  STMETA_MEMBER void pairs(const Vec (&x)[kRows], Numbers (&out)[kRows]) {
    for (int r = 0; r < kRows; ++r) out[r] = x[r];
  }
};

#if defined(STMETA_DOT)
struct Dot {
  typedef bf16 Number;
  typedef __m512bh Numbers;
  static constexpr int kPair = 2;
  static constexpr float kUnit = kLog2e;
  static constexpr float kSafe = 60.0f;
  STMETA_MEMBER Vec weigh(Vec logit) { return exp2_of(logit); }
  STMETA_MEMBER Numbers many(const bf16* p) { return (Numbers)_mm512_loadu_si512(p); }
  STMETA_MEMBER Numbers one(const bf16* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return (Numbers)_mm512_set1_epi32(pair);
  }
  STMETA_MEMBER Vec fma(Vec sum, Numbers a, Numbers b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, a, b);
  }
  STMETA_MEMBER void put(bf16* out, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh((__m512)v));
  }
  STMETA_MEMBER bf16 number(bf16 value) { return value; }
  // Rows 2i and 2i + 1 as neighbours: a0 b0 a1 b1 ...
  STMETA_MEMBER void pairs(const Vec (&x)[kRows], Numbers (&out)[kRows]) {
    const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i order = _mm512_or_si512(
        count, _mm512_slli_epi32(_mm512_add_epi32(count, _mm512_set1_epi32(16)), 16));
    for (int r = 0; r < kRows; r += 2) {
      const auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)x[r + 1], (__m512)x[r]);
      out[r / 2] = (Numbers)_mm512_permutexvar_epi16(order, both);
    }
  }
};
#endif

// Matrices of one (clip, head). "Rows of pairs": [axis 0 / kPair][axis 1][kPair].
template <typename Policy>
struct Head {
  typedef typename Policy::Number Number;
  Number *key_columns, *value_columns;  // [E / pair][N][pair]
  Number *key_rows, *value_rows;        // [N / pair][E][pair]
  Number *query, *grad;                 // of eight queries: [8][E]
  Number *query_pairs, *grad_pairs;     // [8 / pair][E][pair]
  Number* weight;                       // [8][N]
  float *grad_key, *grad_value;         // [E][N]
};

template <typename Policy>
STMETA_INLINE Head<Policy> lay_out(const Attention& a, float* scratch) {
  typedef typename Policy::Number Number;
  const int64_t matrix = a.padded * a.wide;
  Head<Policy> h;
  h.grad_key = scratch;
  h.grad_value = h.grad_key + matrix;
  Number* next = reinterpret_cast<Number*>(h.grad_value + matrix);
  for (Number** part : {&h.key_columns, &h.value_columns, &h.key_rows, &h.value_rows}) {
    *part = next;
    next += matrix;
  }
  for (Number** part : {&h.query, &h.grad, &h.query_pairs, &h.grad_pairs}) {
    *part = next;
    next += kRows * a.wide;
  }
  h.weight = next;
  return h;
}

template <typename T>
STMETA_INLINE const T* part_of(const Attention& a, int64_t b, int64_t head, int64_t which) {
  return static_cast<const T*>(a.qkv) + b * a.stride[0] + which * a.stride[2] + head * a.stride[3];
}

template <typename Number>
STMETA_INLINE void zero(Number* out, int64_t count) {
  __builtin_memset(out, 0, static_cast<size_t>(count) * sizeof(Number));
}

// Keys or values [N, E] as columns and, unless null, as rows; zero where padded.
template <typename Policy, typename T>
STMETA_FN void pack(const Attention& a, const T* source, typename Policy::Number* columns,
                    typename Policy::Number* rows) {
  constexpr int64_t kPair = Policy::kPair;
  const int64_t tokens = a.tokens, width = a.width, padded = a.padded, wide = a.wide;
  const int64_t step = a.stride[1];
  const bool ragged = tokens != padded || width != wide;
  if (columns != nullptr) {
    if (ragged) zero(columns, padded * wide);
    for (int64_t n = 0; n < tokens; ++n) {
      const T* row = source + n * step;
      typename Policy::Number* column = columns + n * kPair;
      for (int64_t e = 0; e + kPair <= width; e += kPair, column += padded * kPair) {
        for (int64_t k = 0; k < kPair; ++k) column[k] = Policy::number(row[e + k]);
      }
      if (width % kPair != 0) column[0] = Policy::number(row[width - 1]);
    }
  }
  if (rows != nullptr) {
    if (ragged) zero(rows, padded * wide);
    for (int64_t n = 0; n < tokens; ++n) {
      const T* row = source + n * step;
      typename Policy::Number* out = rows + n / kPair * wide * kPair + n % kPair;
      for (int64_t e = 0; e < width; ++e) out[e * kPair] = Policy::number(row[e]);
    }
  }
}

// Rows [first, first + 8) of a [.., E] matrix, zero past the last token.
template <typename Policy, typename T>
STMETA_FN void pack_rows(const Attention& a, const T* source, int64_t step, int64_t first,
                         typename Policy::Number* rows, typename Policy::Number* pairs) {
  constexpr int64_t kPair = Policy::kPair;
  const int64_t width = a.width, wide = a.wide;
  const int64_t count = a.tokens - first < kRows ? a.tokens - first : kRows;
  if (count < kRows || width != wide) {
    zero(rows, kRows * wide);
    if (pairs != nullptr) zero(pairs, kRows * wide);
  }
  for (int64_t r = 0; r < count; ++r) {
    const T* row = source + (first + r) * step;
    for (int64_t e = 0; e < width; ++e) rows[r * wide + e] = Policy::number(row[e]);
    if (pairs == nullptr) continue;
    typename Policy::Number* out = pairs + r / kPair * wide * kPair + r % kPair;
    for (int64_t e = 0; e < width; ++e) out[e * kPair] = Policy::number(row[e]);
  }
}

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
  const int64_t wide = a.wide, width = a.width, step = a.padded * kPair;
  const typename Policy::Number* column = columns + n * kPair;
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

// sum[r] = weight[r] . rows, for features [e, e + kLanes) and eight rows of weights.
template <typename Policy>
STMETA_INLINE void gather_rows(const Attention& a, const typename Policy::Number* weight,
                               const typename Policy::Number* rows, int64_t e, Vec (&sum)[kRows]) {
  constexpr int64_t kPair = Policy::kPair;
  const int64_t padded = a.padded, step = a.wide * kPair;
  const typename Policy::Number* row = rows + e * kPair;
  Vec total[kRows] = {};  // local: `sum` lies in memory
  for (int64_t n = 0; n < padded; n += kPair, row += step) {
    const auto values = Policy::many(row);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      total[r] = Policy::fma(total[r], values, Policy::one(weight + r * padded + n));
    }
  }
  for (int r = 0; r < kRows; ++r) sum[r] = total[r];
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
          for (int c = 0; c < kColumns; ++c) {
            const Vec w = Policy::weigh(x[c][r]);
            total[r] += w;
            Policy::put(h.weight + r * padded + n + c * kLanes, w);
          }
        }
      }
      float inverse[kRows];
      for (int r = 0; r < kRows; ++r) inverse[r] = 1.0f / sum_lanes(total[r]);
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

// target[e][n ...] += sum over eight rows of rows[r][e] x[..][r].
template <typename Policy>
STMETA_INLINE void spread(const Attention& a, const typename Policy::Number* pairs, const Tile& x,
                          int64_t n, float* target) {
  constexpr int kPair = Policy::kPair;
  const int64_t wide = a.wide, width = a.width, padded = a.padded;
  typename Policy::Numbers packed[kColumns][kRows];
  for (int c = 0; c < kColumns; ++c) Policy::pairs(x[c], packed[c]);
  float* place = target + n;
  for (int64_t e = 0; e < width; ++e, place += padded) {
    Vec sum[kColumns];
    for (int c = 0; c < kColumns; ++c) sum[c] = load(place + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows / kPair; ++r) {
      const auto row = Policy::one(pairs + (r * wide + e) * kPair);
      for (int c = 0; c < kColumns; ++c) sum[c] = Policy::fma(sum[c], packed[c][r], row);
    }
    for (int c = 0; c < kColumns; ++c) store(place + c * kLanes, sum[c]);
  }
}

// Columns [E][N] of a gradient, times a factor, to its rows in the gradient of qkv.
template <typename T>
STMETA_FN void scatter(const Attention& a, const float* columns, float factor, T* target) {
  const int64_t step = 3 * a.heads * a.width;
  for (int64_t n = 0; n < a.tokens; n += kLanes) {
    const int64_t count = a.tokens - n < kLanes ? a.tokens - n : kLanes;
    for (int64_t e = 0; e < a.width; ++e) {
      alignas(64) T numbers[kLanes];
      store(numbers, load(columns + e * a.padded + n) * splat(factor));
      for (int64_t k = 0; k < count; ++k) target[(n + k) * step + e] = numbers[k];
    }
  }
}

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
  const Rows known = look_up(a, static_cast<const T*>(a.out) + place, grad, index, i);
  Vec tilt = {};  // sum of gradients of logits, times the products q k
  for (int64_t n = 0; n < padded; n += kKeys) {
    Tile x, d;
    alignas(64) float dot[kRows][kKeys];  // registers are short
    products<Policy>(a, h.query, h.key_columns, n, x);
    for (int c = 0; c < kColumns; ++c) {
      for (int r = 0; r < kRows; ++r) {
        store(dot[r] + c * kLanes, x[c][r]);
        x[c][r] = x[c][r] * splat(scale) - splat(known.largest[r]);
      }
    }
    cut(a, i, n, x);
    for (int c = 0; c < kColumns; ++c) {
      for (int r = 0; r < kRows; ++r) {
        x[c][r] = Policy::weigh(x[c][r]) * splat(known.inverse[r]);
      }
    }
    spread<Policy>(a, h.grad_pairs, x, n, h.grad_value);
    products<Policy>(a, h.grad, h.value_columns, n, d);
    for (int c = 0; c < kColumns; ++c) {
      for (int r = 0; r < kRows; ++r) {
        d[c][r] = x[c][r] * (d[c][r] - splat(known.centre[r]));
        tilt += d[c][r] * load(dot[r] + c * kLanes);
        Policy::put(h.weight + r * padded + n + c * kLanes, d[c][r]);
      }
    }
    spread<Policy>(a, h.query_pairs, d, n, h.grad_key);
  }
  if (a.tokens > 1) temperature += static_cast<double>(sum_lanes(tilt));
  T* target = static_cast<T*>(a.grad_qkv) + (b * a.tokens * 3 * a.heads + head) * a.width;
  const float factor = a.tokens > 1 ? tau : 0.0f;  // the weight of a lone token is always 1
  for (int64_t e = 0; e < a.width; e += kLanes) {
    Vec sum[kRows];
    gather_rows<Policy>(a, h.weight, h.key_rows, e, sum);
    for (int64_t r = 0; r < rows; ++r) {
      write(target + (i + r) * 3 * step + e, sum[r] * splat(factor), a.width - e);
    }
  }
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

#undef STMETA_MEMBER

}  // namespace stmeta::STMETA_ISA
