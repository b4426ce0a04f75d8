// Kernels of crop_resize_yuv for one instruction set; csrc/common/each_isa.h includes this file.
// A row is converted to R, G, B and a spare byte a pixel, then resized; tests compare with FFmpeg
// and torch bit for bit, so every rounding here is theirs.

namespace stmeta::STMETA_ISA {

constexpr int64_t kStep = 32;  // pixels that are converted at a time

STMETA_INLINE uint8_t to_byte(int32_t value) {
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

#if STMETA_LANES >= 8

STMETA_INLINE __m256i chroma_of(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_sub_epi16(_mm256_slli_epi16(wide, 3), _mm256_set1_epi16(1024));
}

STMETA_INLINE __m256i times(__m256i values, int16_t factor) {
  return _mm256_mulhi_epi16(values, _mm256_set1_epi16(factor));
}

// Bytes of 32 pixels, from luma of the even and the odd ones and what chroma adds to both.
STMETA_INLINE __m256i bytes_of(__m256i even, __m256i odd, __m256i chroma) {
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
  const __m256i both =
      _mm256_packus_epi16(_mm256_add_epi16(even, chroma), _mm256_add_epi16(odd, chroma));
  return _mm256_shuffle_epi8(both, order);
}

STMETA_INLINE void convert_step(const YuvColours& c, const uint8_t* y, const uint8_t* u,
                                const uint8_t* v, uint8_t* out) {
  const __m256i luma = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(y));
  const __m256i black = _mm256_set1_epi16(c.black);
  const __m256i even_y = _mm256_and_si256(luma, _mm256_set1_epi16(255));
  const __m256i odd_y = _mm256_srli_epi16(luma, 8);
  const __m256i even = times(_mm256_sub_epi16(_mm256_slli_epi16(even_y, 3), black), c.luma);
  const __m256i odd = times(_mm256_sub_epi16(_mm256_slli_epi16(odd_y, 3), black), c.luma);
  const __m256i from_u = chroma_of(u), from_v = chroma_of(v);
  const __m256i r = bytes_of(even, odd, times(from_v, c.red_v));
  const __m256i g =
      bytes_of(even, odd, _mm256_add_epi16(times(from_u, c.green_u), times(from_v, c.green_v)));
  const __m256i b = bytes_of(even, odd, times(from_u, c.blue_u));
  const __m256i zero = _mm256_setzero_si256();
  const __m256i rg_low = _mm256_unpacklo_epi8(r, g), rg_high = _mm256_unpackhi_epi8(r, g);
  const __m256i b_low = _mm256_unpacklo_epi8(b, zero), b_high = _mm256_unpackhi_epi8(b, zero);
  const __m256i p0 = _mm256_unpacklo_epi16(rg_low, b_low);    // pixels 0 - 3 and 16 - 19
  const __m256i p1 = _mm256_unpackhi_epi16(rg_low, b_low);    // 4 - 7 and 20 - 23
  const __m256i p2 = _mm256_unpacklo_epi16(rg_high, b_high);  // 8 - 11 and 24 - 27
  const __m256i p3 = _mm256_unpackhi_epi16(rg_high, b_high);
  __m256i* to = reinterpret_cast<__m256i*>(out);
  _mm256_storeu_si256(to, _mm256_permute2x128_si256(p0, p1, 0x20));
  _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(p2, p3, 0x20));
  _mm256_storeu_si256(to + 2, _mm256_permute2x128_si256(p0, p1, 0x31));
  _mm256_storeu_si256(to + 3, _mm256_permute2x128_si256(p2, p3, 0x31));
}

STMETA_INLINE __m256i two_rows(const uint8_t* a, const uint8_t* b) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

STMETA_INLINE int32_t pair_of(const int16_t* weights) {
  int32_t pair;
  __builtin_memcpy(&pair, weights, 4);
  return pair;
}

// Two rows at once, one in each half of a vector; reads up to four pixels past what it needs.
STMETA_FN void resize_columns(const YuvTaps& t, const uint8_t* a, const uint8_t* b, uint8_t* to_a,
                              uint8_t* to_b) {
  // Pixels 0 and 1 (or 2 and 3) of each row, one colour after the other, as 16-bit numbers.
  const __m256i first_two = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1));
  const __m256i last_two = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1));
  const __m128i shift = _mm_cvtsi32_si128(t.precision);
  for (int64_t x = 0; x < t.count; ++x) {
    const uint8_t *from_a = a + 4 * t.first[x], *from_b = b + 4 * t.first[x];
    const int16_t* weights = t.weights + x * t.taps;
    __m256i sum = _mm256_set1_epi32(1 << (t.precision - 1));
    int64_t j = 0;
    for (; j + 4 <= t.taps; j += 4) {
      const __m256i pixels = two_rows(from_a + 4 * j, from_b + 4 * j);
      const __m256i w0 = _mm256_set1_epi32(pair_of(weights + j));
      const __m256i w1 = _mm256_set1_epi32(pair_of(weights + j + 2));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, first_two), w0));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, last_two), w1));
    }
    if (j < t.taps) {
      const __m256i pixels = two_rows(from_a + 4 * j, from_b + 4 * j);
      const __m256i w = _mm256_set1_epi32(pair_of(weights + j));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, first_two), w));
    }
    sum = _mm256_sra_epi32(sum, shift);
    sum = _mm256_packs_epi32(sum, sum);
    sum = _mm256_packus_epi16(sum, sum);
    // The fourth byte is overwritten by the next pixel; rows end with room for the last one's.
    const int32_t rgb_a = _mm256_extract_epi32(sum, 0), rgb_b = _mm256_extract_epi32(sum, 4);
    __builtin_memcpy(to_a + 3 * x, &rgb_a, 4);
    __builtin_memcpy(to_b + 3 * x, &rgb_b, 4);
  }
}

// 16 bytes of an output row; reads one row past those it needs.
STMETA_INLINE void resize_rows_step(const YuvTaps& t, int64_t y, const uint8_t* from, int64_t pitch,
                                    uint8_t* out) {
  const int16_t* weights = t.weights + y * t.taps;
  __m256i low = _mm256_set1_epi32(1 << (t.precision - 1)), high = low;
  from += t.first[y] * pitch;
  for (int64_t j = 0; j < t.taps; j += 2, from += 2 * pitch) {
    const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    const __m256i b =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + pitch)));
    const __m256i w = _mm256_set1_epi32(pair_of(weights + j));
    low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), w));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), w));
  }
  const __m128i shift = _mm_cvtsi32_si128(t.precision);
  const __m256i wide =
      _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
  const __m128i bytes =
      _mm_packus_epi16(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
}

#else

STMETA_INLINE int32_t times(int32_t value, int16_t factor) { return value * factor >> 16; }

STMETA_INLINE void convert_step(const YuvColours& c, const uint8_t* y, const uint8_t* u,
                                const uint8_t* v, uint8_t* out) {
  for (int64_t x = 0; x < kStep; ++x, out += 4) {
    const int32_t luma = times(y[x] * 8 - c.black, c.luma);
    const int32_t from_u = u[x / 2] * 8 - 1024, from_v = v[x / 2] * 8 - 1024;
    out[0] = to_byte(luma + times(from_v, c.red_v));
    out[1] = to_byte(luma + times(from_u, c.green_u) + times(from_v, c.green_v));
    out[2] = to_byte(luma + times(from_u, c.blue_u));
    out[3] = 0;
  }
}

STMETA_FN void resize_columns(const YuvTaps& t, const uint8_t* a, const uint8_t* b, uint8_t* to_a,
                              uint8_t* to_b) {
  const uint8_t* rows[2] = {a, b};
  uint8_t* to[2] = {to_a, to_b};
  for (int row = 0; row < 2; ++row) {
    for (int64_t x = 0; x < t.count; ++x) {
      const uint8_t* from = rows[row] + 4 * t.first[x];
      for (int64_t colour = 0; colour < 3; ++colour) {
        int32_t sum = 1 << (t.precision - 1);
        for (int64_t j = 0; j < t.taps; ++j) {
          sum += from[4 * j + colour] * t.weights[x * t.taps + j];
        }
        to[row][3 * x + colour] = to_byte(sum >> t.precision);
      }
    }
  }
}

STMETA_INLINE void resize_rows_step(const YuvTaps& t, int64_t y, const uint8_t* from, int64_t pitch,
                                    uint8_t* out) {
  for (int64_t x = 0; x < 16; ++x) {
    const uint8_t* p = from + t.first[y] * pitch + x;
    int32_t sum = 1 << (t.precision - 1);
    for (int64_t j = 0; j < t.taps; ++j) sum += p[j * pitch] * t.weights[y * t.taps + j];
    out[x] = to_byte(sum >> t.precision);
  }
}

#endif

// A row of the window, from its even column on; no byte outside the planes is read.
STMETA_FN void convert_row(const YuvClip& p, const int64_t* picture, int64_t row, uint8_t* out) {
  const int64_t begin = p.left & ~int64_t{1}, end = p.left + p.columns;
  const uint8_t* y = reinterpret_cast<const uint8_t*>(picture[0]) + row * picture[3];
  const uint8_t* u = reinterpret_cast<const uint8_t*>(picture[1]) + (row >> 1) * picture[4];
  const uint8_t* v = reinterpret_cast<const uint8_t*>(picture[2]) + (row >> 1) * picture[4];
  int64_t x = begin;
  for (; x < end && x + kStep <= p.width; x += kStep, out += 4 * kStep) {
    convert_step(p.colours, y + x, u + x / 2, v + x / 2, out);
  }
  if (x >= end) return;
  uint8_t tail[2 * kStep] = {};
  const size_t pixels = static_cast<size_t>(p.width - x), half = (pixels + 1) / 2;
  __builtin_memcpy(tail, y + x, pixels);
  __builtin_memcpy(tail + kStep, u + x / 2, half);
  __builtin_memcpy(tail + kStep * 3 / 2, v + x / 2, half);
  convert_step(p.colours, tail, tail + kStep, tail + kStep * 3 / 2, out);
}

// `line` holds two converted rows of `wide` bytes each; `table` the window's rows, `pitch` bytes
// each, once their columns are resized.
STMETA_FN void crop_resize(const YuvClip& p, const YuvTaps& across, const YuvTaps& down,
                           uint8_t* line, int64_t wide, uint8_t* table, int64_t pitch) {
  const int64_t odd = 4 * (p.left & 1), width = 3 * p.out_columns;
  uint8_t* out = p.out;
  for (int64_t f = 0; f < p.frames; ++f) {
    const int64_t* picture = p.pictures + 5 * f;
    for (int64_t row = 0; row < p.rows; row += 2) {
      const int64_t other = row + 1 < p.rows ? 1 : 0;  // the last row may be its own partner
      convert_row(p, picture, p.top + row, line);
      if (other == 1) convert_row(p, picture, p.top + row + 1, line + wide);
      uint8_t* to = table + row * pitch;
      resize_columns(across, line + odd, line + other * wide + odd, to, to + other * pitch);
    }
    for (int64_t y = 0; y < p.out_rows; ++y, out += width) {
      int64_t x = 0;
      for (; x + 16 <= width; x += 16) resize_rows_step(down, y, table + x, pitch, out + x);
      if (x == width) continue;
      uint8_t tail[16];
      resize_rows_step(down, y, table + x, pitch, tail);
      __builtin_memcpy(out + x, tail, static_cast<size_t>(width - x));
    }
  }
}

}  // namespace stmeta::STMETA_ISA
