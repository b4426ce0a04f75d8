// CPU implementation of stmeta._C.crop_resize_yuv.
// Reference: crop_resize in stmeta/data/augment/crop.py
// check -> taps of both axes -> one instruction set's kernel
#include "cpu/yuv_clip.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#define STMETA_KERNELS "cpu/yuv_clip_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

struct Taps {
  YuvTaps view = {};
  std::vector<int32_t> first;
  std::vector<int16_t> weights;
};

// Weights of a triangle as wide as two source steps of the output: torch's in type and rounding.
Taps make_taps(int64_t from, int64_t to, bool flip) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double reach = std::max(scale, 1.0), inverse = scale >= 1.0 ? 1.0 / scale : 1.0;
  const int64_t most = static_cast<int64_t>(std::ceil(reach)) * 2 + 1;
  std::vector<double> exact(static_cast<size_t>(to * most), 0.0);
  std::vector<int64_t> sizes;
  Taps taps;
  double largest = 0.0;
  for (int64_t i = 0; i < to; ++i) {
    const double centre = scale * (static_cast<double>(i) + 0.5);
    const int64_t begin = std::max<int64_t>(static_cast<int64_t>(centre - reach + 0.5), 0);
    const int64_t end = std::min<int64_t>(static_cast<int64_t>(centre + reach + 0.5), from);
    const int64_t size = std::clamp<int64_t>(end - begin, 0, most);
    double* weights = exact.data() + i * most;
    double total = 0.0;
    for (int64_t j = 0; j < size; ++j) {
      const double place = std::abs((static_cast<double>(j + begin) - centre + 0.5) * inverse);
      weights[j] = place < 1.0 ? 1.0 - place : 0.0;
      total += weights[j];
    }
    for (int64_t j = 0; j < size; ++j) {
      if (total != 0.0) weights[j] /= total;
      largest = std::max(largest, weights[j]);
    }
    taps.first.push_back(static_cast<int32_t>(begin));
    sizes.push_back(size);
  }
  int32_t precision = 0;
  while (precision < 22 && static_cast<int>(0.5 + largest * (1 << (precision + 1))) < 1 << 15) {
    ++precision;
  }
  const int64_t longest = *std::max_element(sizes.begin(), sizes.end());
  const int64_t even = std::max<int64_t>(2, (longest + 1) / 2 * 2);
  taps.weights.assign(static_cast<size_t>(to * even), 0);
  for (int64_t i = 0; i < to; ++i) {
    for (int64_t j = 0; j < sizes[i]; ++j) {
      const double scaled = 0.5 + exact[i * most + j] * (1 << precision);
      taps.weights[(flip ? to - 1 - i : i) * even + j] = static_cast<int16_t>(scaled);
    }
  }
  if (flip) std::reverse(taps.first.begin(), taps.first.end());
  taps.view = {to, even, precision, taps.first.data(), taps.weights.data()};
  return taps;
}

void check(const YuvClip& c) {
  const bool inside = c.top >= 0 && c.left >= 0 && c.rows > 0 && c.columns > 0 &&
                      c.rows <= c.height - c.top && c.columns <= c.width - c.left;
  if (!inside) throw std::invalid_argument("crop_resize_yuv: the window must lie in the frame");
  if (c.out_rows < 1 || c.out_columns < 1) {
    throw std::invalid_argument("crop_resize_yuv: out must be [F, h, w, 3], h and w at least 1");
  }
}

}  // namespace

void crop_resize_yuv(const YuvClip& clip) {
  check(clip);
  const Taps across = make_taps(clip.columns, clip.out_columns, clip.flip);
  const Taps down = make_taps(clip.rows, clip.out_rows, false);
  // Kernels read (and multiply by zero) up to `taps` pixels and rows past the last one.
  const int64_t wide = (clip.columns / 32 + 2) * 128 + 4 * (across.view.taps + 4);
  const int64_t pitch = (clip.out_columns * 3 + 63) / 32 * 32;
  std::vector<uint8_t> line(static_cast<size_t>(2 * wide));
  std::vector<uint8_t> table(static_cast<size_t>((clip.rows + down.view.taps + 1) * pitch));
  const auto kernel = STMETA_BY_ISA(crop_resize);
  kernel(clip, across.view, down.view, line.data(), wide, table.data(), pitch);
}

}  // namespace stmeta
