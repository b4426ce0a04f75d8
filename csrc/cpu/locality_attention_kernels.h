// Kernels of locality_attention for one instruction set; csrc/common/each_isa.h includes this file.
//
// One (clip, head) at a time. Its keys lie transposed, so that a vector holds one feature of
// neighbouring keys, and a logit is a chain of multiply-adds. Eight queries go together: what is
// loaded of the keys serves all of them. The N x N weights only exist as eight rows.
//
// `Plain` works in fp32. `Dot` keeps operands as pairs of bf16 and sums their products in fp32.

namespace stmeta::STMETA_ISA {

constexpr float kLog2e = 1.44269504f;
constexpr float kLow = -1e30f;

STMETA_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// 2^x for x <= 0 or a little more; kTerms 3: relative error 8e-5, 6: rounding.
template <int kTerms>
STMETA_INLINE Vec exp2_of(Vec x) {
#if STMETA_LANES == 16
  const Vec whole = (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
  const Vec f = x - whole;
#else
  x = larger(x, splat(-126.0f));
  const Vec shifted = x + splat(12582912.0f);  // 1.5 * 2^23: the low bits are round(x)
  const Vec f = x - (shifted - splat(12582912.0f));
#endif
  Vec y;
  if (kTerms == 3) {
    y = splat(0.0551714934f) * f + splat(0.24261111f);
    y = (y * f + splat(0.693261027f)) * f + splat(0.999928057f);
  } else {
    y = (splat(0.000153533576f) * f + splat(0.00133988762f)) * f + splat(0.00961843785f);
    y = (y * f + splat(0.0555033237f)) * f + splat(0.240226477f);
    y = (y * f + splat(0.693147182f)) * f + splat(1.0f);
  }
#if STMETA_LANES == 16
  return (Vec)_mm512_scalef_ps((__m512)y, (__m512)whole);
#else
  typedef int32_t Ints __attribute__((vector_size(4 * STMETA_LANES)));
  return (Vec)((Ints)y + ((Ints)shifted << 23));
#endif
}

struct Plain {
  typedef float Number;
  static constexpr int kPair = 1;  // neighbours along a contracted axis that lie together
  static constexpr int kTerms = 6;
  STMETA_FN static inline __attribute__((always_inline)) Vec fma(Vec sum, const float* a,
                                                                 const float* b) {
    return sum + load(a) * splat(*b);  // a: a vector of numbers, b: one of them
  }
  template <typename T>
  STMETA_FN static inline __attribute__((always_inline)) float number(T value) {
    return to_float(value);
  }
  STMETA_FN static inline __attribute__((always_inline)) void store(float* out, Vec v) {
    STMETA_ISA::store(out, v);
  }
  STMETA_FN static inline __attribute__((always_inline)) void store(float* out, Vec a, Vec b) {
    STMETA_ISA::store(out, a);
    STMETA_ISA::store(out + kLanes, b);
  }
};

#if defined(STMETA_DOT)
struct Dot {
  typedef bf16 Number;
  static constexpr int kPair = 2;
  static constexpr int kTerms = 3;
  STMETA_FN static inline __attribute__((always_inline)) Vec fma(Vec sum, const bf16* a,
                                                                 const bf16* b) {
    int32_t pair;
    __builtin_memcpy(&pair, b, sizeof pair);
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(a),
                                 (__m512bh)_mm512_set1_epi32(pair));
  }
  STMETA_FN static inline __attribute__((always_inline)) bf16 number(bf16 value) { return value; }
  STMETA_FN static inline __attribute__((always_inline)) void store(bf16* out, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh((__m512)v));
  }
  STMETA_FN static inline __attribute__((always_inline)) void store(bf16* out, Vec a, Vec b) {
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
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
  float* logits;                        // [8][N]
};

template <typename Policy>
STMETA_INLINE Head<Policy> lay_out(const Attention& a, float* scratch) {
  typedef typename Policy::Number Number;
  const int64_t matrix = a.padded * a.wide;
  Head<Policy> h;
  h.grad_key = scratch;
  h.grad_value = h.grad_key + matrix;
  h.logits = h.grad_value + matrix;
  Number* next = reinterpret_cast<Number*>(h.logits + kRows * a.padded);
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

// sum[r] = rows[r] . columns, for keys [n, n + kLanes) and eight rows.
template <typename Policy>
STMETA_INLINE void products(const Attention& a, const typename Policy::Number* rows,
                            const typename Policy::Number* columns, int64_t n, Vec (&sum)[kRows]) {
  constexpr int64_t kPair = Policy::kPair;
  const int64_t wide = a.wide, width = a.width, step = a.padded * kPair;
  const typename Policy::Number* column = columns + n * kPair;
  Vec total[kRows] = {};  // local: `sum` may lie in memory
  for (int64_t e = 0; e < width; e += kPair, column += step) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) total[r] = Policy::fma(total[r], column, rows + r * wide + e);
  }
  for (int r = 0; r < kRows; ++r) sum[r] = total[r];
}

// Sets the logits that do not count, in a tile [8][kLanes] that starts at query i and key n.
STMETA_INLINE void cut(const Attention& a, int64_t i, int64_t n, Vec (&x)[kRows]) {
  const bool diagonal = a.exclude_self && i < n + kLanes && n < i + kRows;
  if (!diagonal && n + kLanes <= a.tokens) return;
  alignas(64) float tile[kRows][kLanes];  // x itself stays in registers
  for (int r = 0; r < kRows; ++r) store(tile[r], x[r]);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t k = 0; k < kLanes; ++k) {
      // A lone token sees itself: the lowest logit, but above those of no token.
      if (a.exclude_self && n + k == i + r) tile[r][k] = kLow;
      if (n + k >= a.tokens) tile[r][k] = 2 * kLow;
    }
  }
  for (int r = 0; r < kRows; ++r) x[r] = load(tile[r]);
}

STMETA_INLINE float largest_lane(Vec v) {
  float top = v[0];
  for (int k = 1; k < kLanes; ++k) top = v[k] > top ? v[k] : top;
  return top;
}

// The weights of one row, times their sum, from its logits in units of log 2: their sum.
template <typename Policy>
STMETA_INLINE float soften(const Attention& a, const float* logits, float largest,
                           typename Policy::Number* weight) {
  const int64_t padded = a.padded;
  Vec sum = {}, other = {};
  for (int64_t n = 0; n < padded; n += 2 * kLanes) {
    const Vec v = exp2_of<Policy::kTerms>(load(logits + n) - splat(largest));
    const Vec w = exp2_of<Policy::kTerms>(load(logits + n + kLanes) - splat(largest));
    sum += v;
    other += w;
    Policy::store(weight + n, v, w);
  }
  return sum_lanes(sum + other);
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
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) total[r] = Policy::fma(total[r], row, weight + r * padded + n);
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
  for (int64_t index = begin; index < end; ++index) {
    const int64_t b = index / a.heads, head = index % a.heads;
    const float scale = a.temperature[head] * kLog2e;
    pack<Policy>(a, part_of<T>(a, b, head, 1), h.key_columns, nullptr);
    pack<Policy>(a, part_of<T>(a, b, head, 2), nullptr, h.value_rows);
    T* out = static_cast<T*>(a.out) + (b * a.tokens * a.heads + head) * a.width;
    for (int64_t i = 0; i < a.tokens; i += kRows) {
      const int64_t rows = a.tokens - i < kRows ? a.tokens - i : kRows;
      pack_rows<Policy>(a, part_of<T>(a, b, head, 0), a.stride[1], i, h.query, nullptr);
      const int64_t padded = a.padded;
      Vec top[kRows];
      for (int r = 0; r < kRows; ++r) top[r] = splat(2 * kLow);
      for (int64_t n = 0; n < padded; n += kLanes) {
        Vec x[kRows];
        products<Policy>(a, h.query, h.key_columns, n, x);
        for (int r = 0; r < kRows; ++r) x[r] *= splat(scale);
        cut(a, i, n, x);
        for (int r = 0; r < kRows; ++r) {
          top[r] = larger(top[r], x[r]);
          store(h.logits + r * padded + n, x[r]);
        }
      }
      float total[kRows];
      for (int64_t r = 0; r < rows; ++r) {
        const float largest = largest_lane(top[r]);
        total[r] = soften<Policy>(a, h.logits + r * a.padded, largest, h.weight + r * a.padded);
        float* stats = a.stats + (index * a.tokens + i + r) * 2;
        stats[0] = largest;
        stats[1] = 1.0f / total[r];
      }
      for (int64_t e = 0; e < a.width; e += kLanes) {
        Vec sum[kRows];
        gather_rows<Policy>(a, h.weight, h.value_rows, e, sum);
        for (int64_t r = 0; r < rows; ++r) {
          write(out + (i + r) * a.heads * a.width + e, sum[r] * splat(1.0f / total[r]),
                a.width - e);
        }
      }
    }
  }
}

#if defined(STMETA_DOT)
// Two vectors as pairs of neighbours: a0 b0 a1 b1 ...
STMETA_INLINE void store_pairs(bf16* out, Vec a, Vec b) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
  const __m512i order = _mm512_add_epi32(
      _mm512_set1_epi32(16 << 16),
      _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                         _mm512_set1_epi32(0x00010001)));
  _mm512_storeu_si512(out, _mm512_permutexvar_epi16(order, both));
}
#endif

// target[e][n ...] += sum over eight rows of rows[r][e] x[r].
template <typename Policy>
STMETA_INLINE void spread(const Attention& a, const typename Policy::Number* pairs,
                          const Vec (&x)[kRows], int64_t n, float* target) {
  constexpr int kPair = Policy::kPair;
  alignas(64) typename Policy::Number packed[kRows * kLanes];
#if defined(STMETA_DOT)
  if constexpr (kPair == 2) {
    for (int r = 0; r < kRows; r += 2) store_pairs(packed + r * kLanes, x[r], x[r + 1]);
  }
#endif
  if constexpr (kPair == 1) {
    for (int r = 0; r < kRows; ++r) store(packed + r * kLanes, x[r]);
  }
  const int64_t wide = a.wide, width = a.width, padded = a.padded;
  for (int64_t e = 0; e < width; ++e) {
    float* place = target + e * padded + n;
    Vec sum = load(place);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r += kPair) {
      sum = Policy::fma(sum, packed + r * kLanes, pairs + r * wide + e * kPair);
    }
    store(place, sum);
  }
}

// Eight vectors, one in each row [N] of numbers.
template <typename Policy>
STMETA_INLINE void store_rows(const Attention& a, const Vec (&x)[kRows],
                              typename Policy::Number* out) {
  const int64_t padded = a.padded;
  for (int r = 0; r < kRows; ++r) Policy::store(out + r * padded, x[r]);
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

// The gradients that eight queries, from query i on, send to keys, values and themselves.
template <typename Policy, typename T>
STMETA_FN void backward_rows(const Attention& a, const Head<Policy>& h, int64_t index, int64_t i,
                             double& temperature) {
  const int64_t b = index / a.heads, head = index % a.heads, step = a.heads * a.width;
  const int64_t rows = a.tokens - i < kRows ? a.tokens - i : kRows;
  const int64_t place = (b * a.tokens * a.heads + head) * a.width;
  const T* out = static_cast<const T*>(a.out) + place;
  const T* grad = static_cast<const T*>(a.grad) + place;
  const T* query = part_of<T>(a, b, head, 0);
  const float tau = a.temperature[head], scale = tau * kLog2e;
  pack_rows<Policy>(a, query, a.stride[1], i, h.query, h.query_pairs);
  pack_rows<Policy>(a, grad, step, i, h.grad, h.grad_pairs);
  float largest[kRows], inverse[kRows], centre[kRows];
  for (int64_t r = 0; r < kRows; ++r) {
    largest[r] = inverse[r] = centre[r] = 0.0f;
    if (r >= rows) continue;
    largest[r] = a.stats[(index * a.tokens + i + r) * 2];
    inverse[r] = a.stats[(index * a.tokens + i + r) * 2 + 1];
    for (int64_t e = 0; e < a.width; ++e) {
      centre[r] += to_float(out[(i + r) * step + e]) * to_float(grad[(i + r) * step + e]);
    }
  }
  Vec tilt = {};  // sum of gradients of logits, times the products q k
  for (int64_t n = 0; n < a.padded; n += kLanes) {
    Vec dot[kRows], x[kRows], d[kRows];
    products<Policy>(a, h.query, h.key_columns, n, dot);
    for (int r = 0; r < kRows; ++r) x[r] = dot[r] * splat(scale);
    cut(a, i, n, x);
    for (int r = 0; r < kRows; ++r) {
      x[r] = exp2_of<Policy::kTerms>(x[r] - splat(largest[r])) * splat(inverse[r]);
    }
    products<Policy>(a, h.grad, h.value_columns, n, d);
    for (int r = 0; r < kRows; ++r) {
      d[r] = x[r] * (d[r] - splat(centre[r]));
      tilt += d[r] * dot[r];
    }
    store_rows<Policy>(a, d, h.weight + n);
    spread<Policy>(a, h.grad_pairs, x, n, h.grad_value);
    spread<Policy>(a, h.query_pairs, d, n, h.grad_key);
  }
  temperature += static_cast<double>(sum_lanes(tilt));
  T* target = static_cast<T*>(a.grad_qkv) + (b * a.tokens * 3 * a.heads + head) * a.width;
  for (int64_t e = 0; e < a.width; e += kLanes) {
    Vec sum[kRows];
    gather_rows<Policy>(a, h.weight, h.key_rows, e, sum);
    for (int64_t r = 0; r < rows; ++r) {
      write(target + (i + r) * 3 * step + e, sum[r] * splat(tau), a.width - e);
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
    const float tau = a.temperature[head];
    T* target = static_cast<T*>(a.grad_qkv) + (b * a.tokens * 3 * a.heads + head) * a.width;
    scatter(a, h.grad_key, tau, target + a.heads * a.width);
    scatter(a, h.grad_value, 1.0f, target + 2 * a.heads * a.width);
  }
}

}  // namespace stmeta::STMETA_ISA
