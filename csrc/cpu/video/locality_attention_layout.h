// Numbers and layouts of locality_attention for one instruction set; no guard, as each of them
// includes it.
//
// `Plain` works in fp32. `Dot` keeps operands as pairs of bf16 and sums their products in fp32.

namespace stmeta::STMETA_ISA {

constexpr float kLow = -1e30f;                         // a logit that does not count
constexpr int kColumns = STMETA_LANES == 16 ? 2 : 1;   // vectors of keys in a tile
constexpr int64_t kKeys = int64_t{kColumns} * kLanes;  // keys in a tile
typedef Vec Tile[kColumns][kRows];

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
  static constexpr bool kExact = true;   // the temperature's gradient from products in fp32
  static constexpr float kUnit = 1.0f;   // of logits, as `weigh` takes them
  static constexpr float kSafe = 40.0f;  // far from the ends of fp32
  STMETA_MEMBER Vec weigh(Vec logit) { return exp_of(logit); }
  STMETA_MEMBER Numbers many(const float* p) { return load(p); }
  STMETA_MEMBER Numbers one(const float* p) { return splat(*p); }
  STMETA_MEMBER Vec fma(Vec sum, Numbers a, Numbers b) { return sum + a * b; }
  STMETA_MEMBER void put(float* out, const Vec (&row)[kColumns]) {
    for (int c = 0; c < kColumns; ++c) store(out + c * kLanes, row[c]);
  }
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
  static constexpr bool kExact = false;
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
  STMETA_MEMBER void put(bf16* out, const Vec (&row)[kColumns]) {
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh((__m512)row[1], (__m512)row[0]));
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
  Number *key_columns, *value_columns;  // [N / kKeys][E / pair][kKeys][pair]: tile after tile
  Number *key_rows, *value_rows;        // [N / pair][E][pair]
  Number *query, *grad;                 // of eight queries: [8][E]
  Number *query_pairs, *grad_pairs;     // [8 / pair][E][pair]
  Number* weight;                       // [8][N]
  float *grad_key, *grad_value;         // [N / kKeys][E][kKeys]
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
      typename Policy::Number* column = columns + (n - n % kKeys) * wide + n % kKeys * kPair;
      for (int64_t e = 0; e + kPair <= width; e += kPair, column += kKeys * kPair) {
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
  if (count < kRows || width != wide) zero(rows, kRows * wide);
  for (int64_t r = 0; r < count; ++r) {
    const T* row = source + (first + r) * step;
    typename Policy::Number* out = rows + r * wide;
    if constexpr (sizeof(T) == sizeof(*out)) {
      __builtin_memcpy(out, row, static_cast<size_t>(width) * sizeof(T));
    } else {
      for (int64_t e = 0; e < width; ++e) out[e] = Policy::number(row[e]);
    }
  }
  if (pairs == nullptr) return;
  for (int64_t r = 0; r < kRows; r += kPair, pairs += wide * kPair, rows += wide * kPair) {
    if constexpr (kPair == 1) {
      __builtin_memcpy(pairs, rows, static_cast<size_t>(wide) * sizeof(*pairs));
    } else {
      for (int64_t e = 0; e < wide; ++e) {
        pairs[2 * e] = rows[e];
        pairs[2 * e + 1] = rows[wide + e];
      }
    }
  }
}

#undef STMETA_MEMBER

}  // namespace stmeta::STMETA_ISA
