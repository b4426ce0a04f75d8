// Products of a inner_every rows with a matrix packed in panels, for one instruction set. No guard:
// each instruction set includes it.
//
// A controller multiplies the inner_every rows of its batch by the same weights at every step.
// Packed, the weights are read in one stream, and rows share what was read.

namespace stmeta::STMETA_ISA {

constexpr int kBlockRows = kLanes == 16 ? 8 : 4;  // with three vectors each: most registers
constexpr int kSlice = 3 * kLanes;
constexpr int64_t kSteps = 32;  // products that are summed before the sum is added to the result

template <int kRows>
STMETA_INLINE void add_to_rows(const Vec (&sum)[kRows][3], float* out, int64_t out_stride) {
  for (int r = 0; r < kRows; ++r, out += out_stride) {
    for (int v = 0; v < 3; ++v) store(out + v * kLanes, load(out + v * kLanes) + sum[r][v]);
  }
}

// `count` products of each number of out, of at most kSteps: a long chain of additions loses
// digits.
template <int kRows>
STMETA_INLINE void multiply_slice(const float* panel, int64_t count, const float* x,
                                  int64_t x_stride, float* out, int64_t out_stride) {
  Vec sum[kRows][3] = {};
  for (int64_t k = 0; k < count; ++k, panel += kPanel) {
    const Vec a = load(panel), b = load(panel + kLanes), c = load(panel + 2 * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec value = splat(x[r * x_stride + k]);
      sum[r][0] += value * a;
      sum[r][1] += value * b;
      sum[r][2] += value * c;
    }
  }
  add_to_rows(sum, out, out_stride);
}

// ---- products of bf16 numbers, summed in fp32 ----

typedef uint32_t PairVec __attribute__((vector_size(4 * STMETA_LANES)));

STMETA_INLINE PairVec load_pairs(const uint32_t* from) {
  PairVec out;
  __builtin_memcpy(&out, from, sizeof(out));
  return out;
}

// sum + both products of each pair; the even number of a pair is its lower half.
STMETA_INLINE Vec add_pairs(Vec sum, PairVec x, PairVec w) {
#if defined(STMETA_DOT)
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
  const PairVec high = PairVec{} + 0xffff0000u;
  sum += (Vec)(x << 16) * (Vec)(w << 16);
  return sum + (Vec)(x & high) * (Vec)(w & high);
#endif
}

template <int kRows>
STMETA_INLINE void multiply_pairs(const uint32_t* panel, int64_t pairs, const uint32_t* x,
                                  int64_t x_stride, float* out, int64_t out_stride) {
  Vec sum[kRows][3] = {};
  for (int64_t k = 0; k < pairs; ++k, panel += kPanel) {
    const PairVec a = load_pairs(panel), b = load_pairs(panel + kLanes);
    const PairVec c = load_pairs(panel + 2 * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const PairVec value = PairVec{} + x[r * x_stride + k];
      sum[r][0] = add_pairs(sum[r][0], value, a);
      sum[r][1] = add_pairs(sum[r][1], value, b);
      sum[r][2] = add_pairs(sum[r][2], value, c);
    }
  }
  add_to_rows(sum, out, out_stride);
}

// Rows of x in bf16, with a zero behind an odd last one.
STMETA_FN inline void round_rows(const float* x, int64_t x_stride, int64_t rows, int64_t inner,
                                 bf16* out) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride) {
    for (int64_t k = 0; k < inner; ++k) from_float(x[k], out++);
    if (inner % 2 != 0) *out++ = bf16{};
  }
}

// ---- all rows and columns ----

// out [rows][w.wide] += x [rows][w.inner] times the packed matrix; `pairs` is scratch for x in
// bf16.
STMETA_FN inline void multiply(const Panels& w, const float* x, int64_t x_stride, int64_t rows,
                               float* out, float* pairs) {
  const int64_t wide = w.wide, inner = w.rounded == nullptr ? w.inner : w.pairs();
  const auto* rounded = reinterpret_cast<const uint32_t*>(pairs);
  if (w.rounded != nullptr) {
    round_rows(x, x_stride, rows, w.inner, reinterpret_cast<bf16*>(pairs));
  }
  for (int64_t n = 0; n < wide; n += kPanel) {
    for (int slice = 0; slice < kPanel; slice += kSlice) {
      float* to = out + n + slice;
      for (int64_t k = 0; k < inner; k += kSteps) {
        const int64_t at = n * inner + k * kPanel + slice;
        const int64_t count = inner - k < kSteps ? inner - k : kSteps;
        int64_t r = 0;
        if (w.rounded != nullptr) {
          const uint32_t* panel = reinterpret_cast<const uint32_t*>(w.rounded) + at;
          for (; r + kBlockRows <= rows; r += kBlockRows) {
            multiply_pairs<kBlockRows>(panel, count, rounded + r * inner + k, inner, to + r * wide,
                                       wide);
          }
          for (; r < rows; ++r) {
            multiply_pairs<1>(panel, count, rounded + r * inner + k, inner, to + r * wide, wide);
          }
          continue;
        }
        const float *panel = w.data + at, *from = x + k;
        for (; r + kBlockRows <= rows; r += kBlockRows) {
          multiply_slice<kBlockRows>(panel, count, from + r * x_stride, x_stride, to + r * wide,
                                     wide);
        }
        for (; r < rows; ++r) {
          multiply_slice<1>(panel, count, from + r * x_stride, x_stride, to + r * wide, wide);
        }
      }
    }
  }
}

}  // namespace stmeta::STMETA_ISA
