// Parts of the memory ops for one instruction set, on one batch element: memory [N][wide], weights
// [heads][padded], keys and vectors [heads][wide], all fp32 and zero where padded. No guard: each
// instruction set includes it.

#include "common/wide.h"

namespace stmeta::STMETA_ISA {

STMETA_INLINE void clear(float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = 0.0f;
}

// Rows of numbers to padded rows of floats. The last vectors of a row overlap.
template <typename T>
STMETA_FN void read_rows(const T* source, int64_t stride, int64_t rows, int64_t width, int64_t wide,
                         float* out) {
  for (int64_t n = 0; n < rows; ++n, source += stride, out += wide) {
    if (width < kLanes) {
      for (int64_t m = 0; m < width; ++m) out[m] = to_float(source[m]);
      for (int64_t m = width; m < wide; ++m) out[m] = 0.0f;
      continue;
    }
    for (int64_t m = width / kLanes * kLanes; m < wide; m += kLanes) store(out + m, Vec{});
    for (int64_t m = 0; m + kLanes <= width; m += kLanes) store(out + m, load(source + m));
    store(out + width - kLanes, load(source + width - kLanes));
  }
}

// Batch element b of a source, as [rows][wide].
template <typename T>
STMETA_INLINE float* take_rows(Scratch& scratch, const Source& source, int64_t b, int64_t rows,
                               int64_t width, int64_t wide) {
  float* out = scratch.take(rows * wide);
  const T* data = static_cast<const T*>(source.data) + b * source.batch_stride;
  read_rows(data, source.row_stride, rows, width, wide, out);
  return out;
}

// Rows of a memory [rows][wide] to read. `own`: the copy, or null where they are used as they lie.
struct Rows {
  const float* data;
  float* own;
};

template <typename T>
STMETA_INLINE Rows see_rows(Scratch& scratch, const Source& source, int64_t b,
                            const MemorySizes& s) {
  if constexpr (std::is_same_v<T, float>) {
    if (s.width == s.wide && source.row_stride == s.wide) {
      return {static_cast<const float*>(source.data) + b * source.batch_stride, nullptr};
    }
  }
  float* own = take_rows<T>(scratch, source, b, s.rows, s.width, s.wide);
  return {own, own};
}

// Rows to write: those of batch element b of `target` itself, or else `own`, for `write_rows`.
template <typename T>
STMETA_INLINE float* place_rows(void* target, int64_t b, const MemorySizes& s, float* own) {
  if constexpr (std::is_same_v<T, float>) {
    if (s.width == s.wide) return static_cast<float*>(target) + b * s.rows * s.wide;
  }
  return own;
}

// Padded rows of floats to the rows of batch element b of a dense tensor.
template <typename T>
STMETA_FN void write_rows(const float* source, int64_t rows, int64_t width, int64_t wide,
                          void* target, int64_t b) {
  T* out = static_cast<T*>(target) + b * rows * width;
  if (static_cast<const void*>(source) == out) return;
  for (int64_t n = 0; n < rows; ++n, source += wide, out += width) {
    if (width < kLanes) {
      for (int64_t m = 0; m < width; ++m) from_float(source[m], out + m);
      continue;
    }
    for (int64_t m = 0; m + kLanes <= width; m += kLanes) store(out + m, load(source + m));
    store(out + width - kLanes, load(source + width - kLanes));
  }
}

// Sums over rows go by this many: of a long chain of additions the last ones lose digits.
constexpr int64_t kChain = 16;

// Clears `total` [count], and gives a part of it from the scratch, cleared.
STMETA_INLINE float* start_sum(int64_t count, float* total, Scratch& scratch) {
  float* part = scratch.take(count);
  clear(total, count);
  clear(part, count);
  return part;
}

// total += part, and part = 0. Both are [count], whole vectors.
STMETA_FN inline void move_sum(int64_t count, float* part, float* total) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store(total + i, load(total + i) + load(part + i));
    store(part + i, Vec{});
  }
}

// Of whole vectors.
STMETA_FN inline float sum_of(const float* x, int64_t count) {
  Vec sum = {};
  for (int64_t first = 0; first < count; first += kChain * kLanes) {
    const int64_t last = first + kChain * kLanes < count ? first + kChain * kLanes : count;
    Vec part = {};
    for (int64_t i = first; i < last; i += kLanes) part += load(x + i);
    sum += part;
  }
  return sum_tree(sum);
}

STMETA_INLINE float dot(const float* a, const float* b, int64_t count) {
  Vec sum = {};
  for (int64_t i = 0; i < count; i += kLanes) sum += load(a + i) * load(b + i);
  return sum_tree(sum);
}

// ---- addressing by content ----

struct Content {
  float *unit, *key_size;  // [H][wide], [H]: key / (|key| + eps), |key|
  float *dot, *size;       // [H][padded], [padded]: unit . row, |row|
};

STMETA_FN inline Content compare(const MemorySizes& s, const float* memory, const float* key,
                                 float eps, Scratch& scratch) {
  Content c = {scratch.take(s.heads * s.wide), scratch.take(s.heads),
               scratch.take(s.heads * s.padded), scratch.take(s.padded)};
  const int64_t wide = s.wide, padded = s.padded, heads = s.heads;
  for (int64_t h = 0; h < heads; ++h) {
    c.key_size[h] = __builtin_sqrtf(dot(key + h * wide, key + h * wide, wide));
    const Vec scale = splat(1.0f / (c.key_size[h] + eps));
    for (int64_t m = 0; m < wide; m += kLanes) {
      store(c.unit + h * wide + m, load(key + h * wide + m) * scale);
    }
  }
  clear(c.dot, heads * padded);
  clear(c.size, padded);
  int64_t n = 0;
  for (; n + kLanes <= s.rows; n += kLanes) {
    const float* rows = memory + n * wide;
    Vec sum[kLanes] = {};
    for (int64_t m = 0; m < wide; m += kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        const Vec row = load(rows + i * wide + m);
        sum[i] += row * row;
      }
    }
    store(c.size + n, root_of(sum_each(sum)));
    for (int64_t h = 0; h < heads; ++h) {
      for (int i = 0; i < kLanes; ++i) sum[i] = Vec{};
      for (int64_t m = 0; m < wide; m += kLanes) {
        const Vec unit = load(c.unit + h * wide + m);
        for (int i = 0; i < kLanes; ++i) sum[i] += load(rows + i * wide + m) * unit;
      }
      store(c.dot + h * padded + n, sum_each(sum));
    }
  }
  for (; n < s.rows; ++n) {
    const float* row = memory + n * wide;
    c.size[n] = __builtin_sqrtf(dot(row, row, wide));
    for (int64_t h = 0; h < heads; ++h) {
      c.dot[h * padded + n] = dot(row, c.unit + h * wide, wide);
    }
  }
  return c;
}

// weight [H][padded] = softmax(strength * dot / (size + eps)).
STMETA_FN inline void softmax_of_scores(const MemorySizes& s, const Content& c,
                                        const float* strength, float eps, float* weight) {
  for (int64_t h = 0; h < s.heads; ++h, weight += s.padded) {
    const float* products = c.dot + h * s.padded;
    for (int64_t n = 0; n < s.padded; n += kLanes) {
      const Vec cosine = load(products + n) / (load(c.size + n) + splat(eps));
      store(weight + n, cosine * splat(strength[h]));
    }
    for (int64_t n = s.rows; n < s.padded; ++n) weight[n] = weight[0];  // no row: not the largest
    Vec most = load(weight);
    for (int64_t n = kLanes; n < s.padded; n += kLanes) most = larger(most, load(weight + n));
    float top = most[0];
    for (int i = 1; i < kLanes; ++i) top = most[i] > top ? most[i] : top;
    for (int64_t n = 0; n < s.padded; n += kLanes) {
      store(weight + n, exp_of(load(weight + n) - splat(top)));
    }
    clear(weight + s.rows, s.padded - s.rows);
    const Vec scale = splat(1.0f / sum_of(weight, s.padded));
    for (int64_t n = 0; n < s.padded; n += kLanes) store(weight + n, load(weight + n) * scale);
  }
}

// The share of kCount rows from row n on: grad_memory += own row + alpha unit, grad_key += alpha
// row.
template <int kCount>
STMETA_INLINE void share_rows(const MemorySizes& s, const Content& c, const float* memory,
                              const float* own, const float* alpha, int64_t n, float* grad_memory,
                              float* grad_key) {
  const int64_t wide = s.wide, padded = s.padded, heads = s.heads;
  for (int64_t m = 0; m < wide; m += kLanes) {
    Vec row[kCount], sum[kCount];
    for (int i = 0; i < kCount; ++i) {
      row[i] = load(memory + (n + i) * wide + m);
      sum[i] = load(grad_memory + (n + i) * wide + m) + splat(own[n + i]) * row[i];
    }
    for (int64_t h = 0; h < heads; ++h) {
      const Vec unit = load(c.unit + h * wide + m);
      Vec key = load(grad_key + h * wide + m);
      for (int i = 0; i < kCount; ++i) {
        const Vec x = splat(alpha[h * padded + n + i]);
        sum[i] += x * unit;
        key += x * row[i];
      }
      store(grad_key + h * wide + m, key);
    }
    for (int i = 0; i < kCount; ++i) store(grad_memory + (n + i) * wide + m, sum[i]);
  }
}

// Adds to grad_memory, and writes grad_key [H][wide] and grad_strength [H]. `grad` [H][padded], the
// gradient of the weights, is used up.
STMETA_FN inline void content_backward(const MemorySizes& s, const Content& c, const float* memory,
                                       const float* key, const float* strength, const float* weight,
                                       float eps, float* grad, float* grad_memory, float* grad_key,
                                       float* grad_strength, Scratch scratch) {
  const int64_t wide = s.wide, padded = s.padded, heads = s.heads;
  float* own = scratch.take(padded);  // factor of a row itself in its gradient
  clear(own, padded);
  float* key_part = start_sum(heads * wide, grad_key, scratch);
  for (int64_t h = 0; h < heads; ++h) {
    float* g = grad + h * padded;
    const float *w = weight + h * padded, *products = c.dot + h * padded;
    const Vec inner = splat(dot_wide(g, w, padded));
    Wide sum = {};
    for (int64_t n = 0; n < padded; n += kLanes) {
      const Vec size = load(c.size + n), q = splat(1.0f) / (size + splat(eps));
      const Vec dz = load(w + n) * (load(g + n) - inner), cosine = load(products + n) * q;
      const Vec alpha = dz * splat(strength[h]) * q;
      sum += widen(dz * cosine);
      store(g + n, alpha);
      const Vec share = alpha * cosine / size;
      store(own + n, load(own + n) - (size > splat(0.0f) ? share : Vec{}));
    }
    grad_strength[h] = static_cast<float>(sum_wide(sum));
  }
  for (int64_t n = 0; n < s.rows;) {
    const int64_t last = n + kChain < s.rows ? n + kChain : s.rows;
    for (; n + 4 <= last; n += 4) share_rows<4>(s, c, memory, own, grad, n, grad_memory, key_part);
    for (; n < last; ++n) share_rows<1>(s, c, memory, own, grad, n, grad_memory, key_part);
    move_sum(heads * wide, key_part, grad_key);
  }
  for (int64_t h = 0; h < heads; ++h) {
    const float size = c.key_size[h], scale = 1.0f / (size + eps);
    float* out = grad_key + h * wide;
    const float* k = key + h * wide;
    const float along = size > 0.0f ? dot_wide(out, k, wide) * scale * scale / size : 0.0f;
    for (int64_t m = 0; m < wide; m += kLanes) {
      store(out + m, load(out + m) * splat(scale) - load(k + m) * splat(along));
    }
  }
}

// ---- addressing by location, of one head ----

struct Location {
  float *ring, *moved;  // the gated weights with both ends repeated; after the shift [padded]
  float largest;        // of `moved`
};

// ring[i + half] = x[i mod N] for i in [-half, N + half); zero behind it.
STMETA_INLINE void wrap(const MemorySizes& s, const float* x, float* ring) {
  const int64_t half = s.taps / 2, rows = s.rows;
  for (int64_t i = 0; i < half; ++i) {
    ring[i] = x[rows - half + i];
    ring[rows + half + i] = x[i];
  }
  __builtin_memcpy(ring + half, x, static_cast<size_t>(rows) * sizeof(float));
  for (int64_t i = rows + 2 * half; i < s.padded + s.taps + kLine; ++i) ring[i] = 0.0f;
}

// Interpolates and shifts.
STMETA_FN inline Location move_weights(const MemorySizes& s, const float* content,
                                       const float* previous, float gate, const float* shift,
                                       Scratch& scratch) {
  const int64_t padded = s.padded, taps = s.taps;
  Location l = {scratch.take(padded + taps + kLine), scratch.take(padded), 0.0f};
  for (int64_t n = 0; n < padded; n += kLanes) {
    const Vec p = load(previous + n);
    store(l.moved + n, p + splat(gate) * (load(content + n) - p));
  }
  wrap(s, l.moved, l.ring);
  for (int64_t n = 0; n < padded; n += kLanes) {
    Vec sum = {};
    for (int64_t t = 0; t < taps; ++t) sum += splat(shift[t]) * load(l.ring + n + taps - 1 - t);
    store(l.moved + n, sum);
  }
  clear(l.moved + s.rows, padded - s.rows);
  Vec most = {};  // NaN where there is one
  for (int64_t n = 0; n < padded; n += kLanes) {
    const Vec v = load(l.moved + n), more = v > most ? v : most;
    most = v == v ? more : v;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (most[i] > l.largest || most[i] != most[i]) l.largest = most[i];
  }
  return l;
}

// weight [padded] = (moved / largest)^sharpen, over its sum.
STMETA_FN inline void sharpen_weights(const MemorySizes& s, const Location& l, float sharpen,
                                      float* weight) {
  if (l.largest <= 0.0f) {
    clear(weight, s.padded);
    return;
  }
  for (int64_t n = 0; n < s.padded; n += kLanes) {
    const Vec v = load(l.moved + n);
    const Vec power = pow_of(larger(v, splat(1e-37f)), l.largest, sharpen);
    store(weight + n, v > splat(0.0f) ? power : larger(v, Vec{}));  // NaN stays
  }
  const Vec inverse = splat(1.0f / sum_of(weight, s.padded));
  for (int64_t n = 0; n < s.padded; n += kLanes) store(weight + n, load(weight + n) * inverse);
}

// `grad` [padded] is used up. grad_content and grad_previous: [padded].
STMETA_FN inline void location_backward(const MemorySizes& s, const Location& l,
                                        const float* content, const float* previous, float gate,
                                        const float* shift, float sharpen, const float* weight,
                                        float* grad, float* grad_content, float* grad_previous,
                                        float& grad_gate, float* grad_shift, float& grad_sharpen,
                                        Scratch scratch) {
  const int64_t padded = s.padded, taps = s.taps;
  float* ring = scratch.take(padded + taps + kLine);
  // Twice: the first mean's own rounding would shift every term by the same amount.
  for (int pass = 0; pass < 2; ++pass) {
    const Vec inner = splat(dot_wide(grad, weight, padded));
    for (int64_t n = 0; n < padded; n += kLanes) store(grad + n, load(grad + n) - inner);
  }
  Vec all = {};  // where the exponent is 1, v = 0 has a slope as well
  for (int64_t n = 0; n < padded; n += kLanes) all += larger(load(l.moved + n), Vec{});
  const float total = sum_tree(all), unit = l.largest > 0.0f ? l.largest : 1.0f;
  const Vec at_zero = splat(sharpen == 1.0f && total > 0.0f ? 1.0f / total : 0.0f);
  Wide sharp = {};
  for (int64_t n = 0; n < padded; n += kLanes) {
    // d v^p / dv = p v^p / v: the weight itself stands for the power.
    const Vec v = load(l.moved + n), e = load(grad + n), w = load(weight + n);
    const Vec positive = larger(v, splat(1e-37f)), x = v > splat(0.0f) ? e * w : Vec{};
    sharp += widen(x) * log_of(positive, unit);
    store(grad + n, x * splat(sharpen) / positive + (v == splat(0.0f) ? e * at_zero : Vec{}));
  }
  clear(grad + s.rows, padded - s.rows);
  grad_sharpen = static_cast<float>(sum_wide(sharp));
  for (int64_t t = 0; t < taps; ++t) grad_shift[t] = dot_wide(grad, l.ring + taps - 1 - t, padded);
  wrap(s, grad, ring);
  Wide gates = {};
  for (int64_t n = 0; n < padded; n += kLanes) {
    Vec sum = {};
    for (int64_t t = 0; t < taps; ++t) sum += splat(shift[t]) * load(ring + n + t);
    gates += widen(sum * (load(content + n) - load(previous + n)));
    store(grad_content + n, sum * splat(gate));
    store(grad_previous + n, sum * splat(1.0f - gate));
  }
  grad_gate = static_cast<float>(sum_wide(gates));
}

}  // namespace stmeta::STMETA_ISA
