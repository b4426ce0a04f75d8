// A vector of STMETA_LANES floats for one instruction set; included by each_isa.h, no guard.
// `Vec` is the compiler's own vector type: + - * / and comparisons work on it.

namespace stmeta::STMETA_ISA {

constexpr int kLanes = STMETA_LANES;
constexpr int kLine = 16;  // floats in a cache line

typedef float Vec __attribute__((vector_size(4 * STMETA_LANES)));
typedef float VecAnywhere __attribute__((vector_size(4 * STMETA_LANES), aligned(4), may_alias));
typedef float Vec4 __attribute__((vector_size(16)));
typedef float Vec4Anywhere __attribute__((vector_size(16), aligned(4), may_alias));

STMETA_INLINE Vec splat(float value) { return value - Vec{}; }
STMETA_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecAnywhere*>(p); }
STMETA_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecAnywhere*>(p) = v; }
STMETA_INLINE Vec4 load4(const float* p) { return *reinterpret_cast<const Vec4Anywhere*>(p); }
STMETA_INLINE void store4(float* p, Vec4 v) { *reinterpret_cast<Vec4Anywhere*>(p) = v; }

STMETA_INLINE float sum_lanes(Vec v) {
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// The same by halves: a shorter chain of additions, for where it stands in a loop.
STMETA_INLINE float sum_tree(Vec v) {
#if STMETA_LANES == 16
  return _mm512_reduce_add_ps(v);
#elif STMETA_LANES == 8
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  return (four[0] + four[2]) + (four[1] + four[3]);
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

#if __has_builtin(__builtin_shufflevector)
typedef std::make_integer_sequence<int, kLanes> EachLane;

// The lane of a (or, from kLanes on, of b) that comes to `lane`: blocks of kHalf from each in turn.
template <int kHalf>
constexpr int lane_of(int lane) {
  return lane / (2 * kHalf) * (2 * kHalf) + lane % kHalf + lane / kHalf % 2 * kLanes;
}

template <int kHalf, int... kLane>
STMETA_INLINE Vec fold(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, lane_of<kHalf>(kLane)...) +
         __builtin_shufflevector(a, b, (lane_of<kHalf>(kLane) + kHalf)...);
}
#endif

// Sums of kLanes vectors, as the lanes of one. Half of the work is done for two vectors at once.
template <int kHalf>
STMETA_INLINE Vec sum_each(Vec* v) {
#if __has_builtin(__builtin_shufflevector)
  for (int i = 0; i < kHalf; ++i) v[i] = fold<kHalf>(v[i], v[i + kHalf], EachLane{});
  if constexpr (kHalf > 1) return sum_each<kHalf / 2>(v);
  return v[0];
#else
  Vec sums;
  for (int i = 0; i < kLanes; ++i) sums[i] = sum_tree(v[i]);
  return sums;
#endif
}
STMETA_INLINE Vec sum_each(Vec* v) { return sum_each<kLanes / 2>(v); }

#if STMETA_LANES == 16

STMETA_INLINE Vec load(const uint8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
STMETA_INLINE Vec load(const fp16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
STMETA_INLINE Vec load(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
STMETA_INLINE void stream(float* p, Vec v) { _mm512_stream_ps(p, v); }

STMETA_INLINE __m256i narrow(Vec v, fp16*) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
STMETA_INLINE __m256i narrow(Vec v, bf16*) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i even = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i high = _mm512_srli_epi32(even, 16);
  return _mm512_cvtepi32_epi16(_mm512_mask_set1_epi32(high, nan, 0x7fc0));
}
template <typename T>
STMETA_INLINE void store(T* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, p));
}
template <typename T>
STMETA_INLINE void stream(T* p, Vec v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(v, p));
}

#elif STMETA_LANES == 8

STMETA_INLINE Vec load(const uint8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
STMETA_INLINE Vec load(const fp16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
STMETA_INLINE Vec load(const bf16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
STMETA_INLINE void stream(float* p, Vec v) { _mm256_stream_ps(p, v); }

STMETA_INLINE __m128i narrow(Vec v, fp16*) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
STMETA_INLINE __m128i narrow(Vec v, bf16*) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i even = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i high =
      _mm256_blendv_epi8(_mm256_srli_epi32(even, 16), _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
template <typename T>
STMETA_INLINE void store(T* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v, p));
}
template <typename T>
STMETA_INLINE void stream(T* p, Vec v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow(v, p));
}

#else

template <typename T>
STMETA_INLINE Vec load(const T* p) {
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
}
template <typename T>
STMETA_INLINE void store(T* p, Vec v) {
  for (int i = 0; i < kLanes; ++i) from_float(v[i], p + i);
}
template <typename T>
STMETA_INLINE void stream(T* p, Vec v) {
  store(p, v);
}
#if defined(__x86_64__)
STMETA_INLINE void stream(float* p, Vec v) { _mm_stream_ps(p, v); }
#endif

#endif

STMETA_INLINE Vec root_of(Vec x) {
#if STMETA_LANES == 16
  return _mm512_sqrt_ps(x);
#elif STMETA_LANES == 8
  return _mm256_sqrt_ps(x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

constexpr float kLog2e = 1.44269504f;

// NaN in `a` stays.
STMETA_INLINE Vec larger(Vec a, Vec b) { return b > a ? b : a; }
STMETA_INLINE Vec smaller(Vec a, Vec b) { return b < a ? b : a; }

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

// e^x, to rounding: 0 where it is no normal number, infinite past the largest.
STMETA_INLINE Vec exp_of(Vec x) {
  const Vec least = splat(-87.3f), most = splat(88.72283f);  // beyond them r is rounding errors
  const Vec inside = smaller(larger(x, least), most);
  const Vec n = whole(inside * splat(kLog2e));
  const Vec r = (inside - n * splat(0.693145752f)) - n * splat(1.42860677e-06f);  // ln 2, in parts
  Vec y = (splat(0.00138146058f) * r + splat(0.00836871099f)) * r + splat(0.041668389f);
  y = (y * r + splat(0.166665211f)) * r + splat(0.49999994f);
  y = scale_by((y * r) * r + r + splat(1.0f), n);
  y = x < least ? Vec{} : y;
  return x > most ? splat(__builtin_inff()) : y;
}

// Makes streamed stores visible before the threads join.
STMETA_INLINE void end_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace stmeta::STMETA_ISA
