// Products of a few rows with a matrix packed in panels, for one instruction set. No guard: each
// instruction set includes it.
//
// A controller multiplies the few rows of its batch by the same weights at every step. Packed, the
// weights are read in one stream, and rows share what was read.

namespace stmeta::STMETA_ISA {

constexpr int kBlockRows = kLanes == 16 ? 8 : 4;  // with three vectors each: most registers
constexpr int kSlice = 3 * kLanes;

template <int kRows>
STMETA_INLINE void multiply_slice(const float* panel, int64_t inner, const float* x,
                                  int64_t x_stride, float* out, int64_t out_stride) {
  Vec sum[kRows][3];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 3; ++v) sum[r][v] = load(out + r * out_stride + v * kLanes);
  }
  for (int64_t k = 0; k < inner; ++k, panel += kPanel) {
    const Vec a = load(panel), b = load(panel + kLanes), c = load(panel + 2 * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec value = splat(x[r * x_stride + k]);
      sum[r][0] += value * a;
      sum[r][1] += value * b;
      sum[r][2] += value * c;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 3; ++v) store(out + r * out_stride + v * kLanes, sum[r][v]);
  }
}

// out [rows][w.wide] += x [rows][w.inner] times the packed matrix.
STMETA_FN inline void multiply(const Panels& w, const float* x, int64_t x_stride, int64_t rows,
                               float* out) {
  for (int64_t n = 0; n < w.wide; n += kPanel) {
    for (int slice = 0; slice < kPanel; slice += kSlice) {
      const float* panel = w.data + n * w.inner + slice;
      float* to = out + n + slice;
      int64_t r = 0;
      for (; r + kBlockRows <= rows; r += kBlockRows) {
        multiply_slice<kBlockRows>(panel, w.inner, x + r * x_stride, x_stride, to + r * w.wide,
                                   w.wide);
      }
      for (; r < rows; ++r) {
        multiply_slice<1>(panel, w.inner, x + r * x_stride, x_stride, to + r * w.wide, w.wide);
      }
    }
  }
}

}  // namespace stmeta::STMETA_ISA
