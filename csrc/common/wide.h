// Vectors of doubles as long as a Vec, in two registers, for sums of terms that cancel and for
// powers. For one instruction set, no guard; after vec.h.

namespace stmeta::STMETA_ISA {

typedef double Double __attribute__((vector_size(4 * STMETA_LANES)));  // half as many as in a Vec
typedef float Half __attribute__((vector_size(2 * STMETA_LANES)));

// Written out: compilers take a conversion of a vector of two registers apart, number by number.
struct Wide {
  Double low, high;
};

STMETA_INLINE Wide widen(Vec v) {
  Half low, high;
#if STMETA_LANES == 16
  low = (Half)_mm512_castps512_ps256(v);
  high = (Half)_mm512_extractf32x8_ps(v, 1);
#elif STMETA_LANES == 8
  low = (Half)_mm256_castps256_ps128(v);
  high = (Half)_mm256_extractf128_ps(v, 1);
#else
  for (int i = 0; i < kLanes / 2; ++i) {
    low[i] = v[i];
    high[i] = v[kLanes / 2 + i];
  }
#endif
  return {__builtin_convertvector(low, Double), __builtin_convertvector(high, Double)};
}

STMETA_INLINE Vec narrow(Wide v) {
  const Half low = __builtin_convertvector(v.low, Half);
  const Half high = __builtin_convertvector(v.high, Half);
#if STMETA_LANES == 16
  return (Vec)_mm512_insertf32x8(_mm512_castps256_ps512((__m256)low), (__m256)high, 1);
#elif STMETA_LANES == 8
  return (Vec)_mm256_set_m128((__m128)high, (__m128)low);
#else
  Vec out;
  for (int i = 0; i < kLanes / 2; ++i) {
    out[i] = low[i];
    out[kLanes / 2 + i] = high[i];
  }
  return out;
#endif
}

STMETA_INLINE Wide operator*(Wide a, Wide b) { return {a.low * b.low, a.high * b.high}; }
STMETA_INLINE Wide operator*(Wide a, double b) { return {a.low * b, a.high * b}; }
STMETA_INLINE void operator+=(Wide& a, Wide b) {
  a.low += b.low;
  a.high += b.high;
}

STMETA_INLINE double sum_wide(Wide v) {
  const Double both = v.low + v.high;
  double total = 0.0;
  for (int i = 0; i < kLanes / 2; ++i) total += both[i];
  return total;
}

// Sum of products.
STMETA_FN inline float dot_wide(const float* a, const float* b, int64_t count) {
  Wide sum = {};
  for (int64_t i = 0; i < count; i += kLanes) sum += widen(load(a + i)) * widen(load(b + i));
  return static_cast<float>(sum_wide(sum));
}

typedef int64_t Longs __attribute__((vector_size(4 * STMETA_LANES)));

// ln x for normal x > 0.
STMETA_INLINE Double log_of(Double x) {
  constexpr int64_t kRoot = 0x3fe6a09e667f3bcd;  // bits of 1 / sqrt 2: m will lie around 1
  const Longs bits = (Longs)x - kRoot;
  const Double m = (Double)((bits & 0xfffffffffffff) + kRoot);
  const Double s = (m - 1.0) / (m + 1.0), t = s * s;  // ln m = 2 artanh s
  Double y = (t * (2.0 / 13) + 2.0 / 11) * t + 2.0 / 9;
  y = ((y * t + 2.0 / 7) * t + 2.0 / 5) * t + 2.0 / 3;
  // The exponent as a double, by way of the low bits of 1.5 * 2^52.
  const Double power = (Double)((bits >> 52) + 0x4338000000000000) - 6755399441055744.0;
  return power * 0.6931471805599453 + (y * t * s + 2.0 * s);
}

// Ends at e^-500 and at e^500, beyond which there is no float.
STMETA_INLINE Double exp_of(Double x) {
  x = x < -500.0 ? Double{} - 500.0 : x;
  x = x > 500.0 ? Double{} + 500.0 : x;
  const Double shifted = x * 1.4426950408889634 + 6755399441055744.0;  // 1.5 * 2^52
  const Double r = x - (shifted - 6755399441055744.0) * 0.6931471805599453;
  Double e = (r * (1.0 / 40320) + 1.0 / 5040) * r + 1.0 / 720;
  e = ((e * r + 1.0 / 120) * r + 1.0 / 24) * r + 1.0 / 6;
  e = ((e * r + 0.5) * r + 1.0) * r + 1.0;
  return (Double)((Longs)e + ((Longs)shifted << 52));
}

// ln (x / unit) for normal x > 0.
STMETA_INLINE Wide log_of(Vec x, float unit) {
  const Wide ratio = widen(x) * (1.0 / static_cast<double>(unit));
  return {log_of(ratio.low), log_of(ratio.high)};
}

// (x / unit)^p, through doubles: a sharp power multiplies the error of a logarithm.
STMETA_INLINE Vec pow_of(Vec x, float unit, float p) {
  const Wide power = log_of(x, unit) * static_cast<double>(p);
  return narrow(Wide{exp_of(power.low), exp_of(power.high)});
}

}  // namespace stmeta::STMETA_ISA
