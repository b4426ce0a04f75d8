// Parts of the memory ops for one instruction set, on one batch element: memory [N][wide], weights
// [heads][padded], keys and vectors [heads][wide], all fp32 and zero where padded. No guard: each
// instruction set includes it.

namespace stmeta::STMETA_ISA {

STMETA_INLINE void clear(float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = 0.0f;
}

// Rows of numbers to padded rows of floats.
template <typename T>
STMETA_FN void read_rows(const T* source, int64_t stride, int64_t rows, int64_t width, int64_t wide,
                         float* out) {
  for (int64_t n = 0; n < rows; ++n, source += stride, out += wide) {
    int64_t m = 0;
    for (; m + kLanes <= width; m += kLanes) store(out + m, load(source + m));
    for (; m < width; ++m) out[m] = to_float(source[m]);
    for (; m < wide; ++m) out[m] = 0.0f;
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

// Padded rows of floats to the rows of batch element b of a dense tensor.
template <typename T>
STMETA_FN void write_rows(const float* source, int64_t rows, int64_t width, int64_t wide,
                          void* target, int64_t b) {
  T* out = static_cast<T*>(target) + b * rows * width;
  for (int64_t n = 0; n < rows; ++n, source += wide, out += width) {
    int64_t m = 0;
    for (; m + kLanes <= width; m += kLanes) store(out + m, load(source + m));
    for (; m < width; ++m) from_float(source[m], out + m);
  }
}

STMETA_INLINE float dot(const float* a, const float* b, int64_t count) {
  Vec sum = {};
  for (int64_t i = 0; i < count; i += kLanes) sum += load(a + i) * load(b + i);
  return sum_tree(sum);
}

STMETA_INLINE double sum_wide(Wide v) {
  double total = 0.0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// The same in doubles, for sums of terms that cancel.
STMETA_INLINE float dot_wide(const float* a, const float* b, int64_t count) {
  Wide sum = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    sum += __builtin_convertvector(load(a + i), Wide) * __builtin_convertvector(load(b + i), Wide);
  }
  return static_cast<float>(sum_wide(sum));
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
  for (int64_t n = 0; n < s.rows; ++n) {
    const float* row = memory + n * wide;
    c.size[n] = __builtin_sqrtf(dot(row, row, wide));
    int64_t h = 0;
    for (; h + 4 <= heads; h += 4) {
      const float* unit = c.unit + h * wide;
      Vec sum[4] = {};
      for (int64_t m = 0; m < wide; m += kLanes) {
        const Vec r = load(row + m);
        for (int k = 0; k < 4; ++k) sum[k] += r * load(unit + k * wide + m);
      }
      for (int k = 0; k < 4; ++k) c.dot[(h + k) * padded + n] = sum_tree(sum[k]);
    }
    for (; h < heads; ++h) c.dot[h * padded + n] = dot(row, c.unit + h * wide, wide);
  }
  return c;
}

// weight [H][padded] = softmax(strength * dot / (size + eps)).
STMETA_FN inline void soften(const MemorySizes& s, const Content& c, const float* strength,
                             float eps, float* weight) {
  for (int64_t h = 0; h < s.heads; ++h, weight += s.padded) {
    const float* products = c.dot + h * s.padded;
    for (int64_t n = 0; n < s.padded; n += kLanes) {
      const Vec cosine = load(products + n) / (load(c.size + n) + splat(eps));
      store(weight + n, cosine * splat(strength[h]));
    }
    float top = weight[0];
    for (int64_t n = 1; n < s.rows; ++n) top = weight[n] > top ? weight[n] : top;
    Vec sum = {};
    for (int64_t n = 0; n < s.padded; n += kLanes) {
      store(weight + n, exp_of(load(weight + n) - splat(top)));
    }
    clear(weight + s.rows, s.padded - s.rows);
    for (int64_t n = 0; n < s.padded; n += kLanes) sum += load(weight + n);
    const Vec scale = splat(1.0f / sum_tree(sum));
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
  clear(grad_key, heads * wide);
  for (int64_t h = 0; h < heads; ++h) {
    float* g = grad + h * padded;
    const float *w = weight + h * padded, *products = c.dot + h * padded;
    const Vec inner = splat(dot_wide(g, w, padded));
    Wide sum = {};
    for (int64_t n = 0; n < padded; n += kLanes) {
      const Vec size = load(c.size + n), q = splat(1.0f) / (size + splat(eps));
      const Vec dz = load(w + n) * (load(g + n) - inner), cosine = load(products + n) * q;
      const Vec alpha = dz * splat(strength[h]) * q;
      sum += __builtin_convertvector(dz * cosine, Wide);
      store(g + n, alpha);
      const Vec share = alpha * cosine / size;
      store(own + n, load(own + n) - (size > splat(0.0f) ? share : Vec{}));
    }
    grad_strength[h] = static_cast<float>(sum_wide(sum));
  }
  int64_t n = 0;
  for (; n + 4 <= s.rows; n += 4) share_rows<4>(s, c, memory, own, grad, n, grad_memory, grad_key);
  for (; n < s.rows; ++n) share_rows<1>(s, c, memory, own, grad, n, grad_memory, grad_key);
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
  for (int64_t i = 0; i < rows; ++i) ring[half + i] = x[i];
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
  for (int64_t n = 0; n < s.rows; ++n) l.largest = l.moved[n] > l.largest ? l.moved[n] : l.largest;
  return l;
}

// weight [padded] = (moved / largest)^sharpen, over its sum.
STMETA_FN inline void sharpen_weights(const MemorySizes& s, const Location& l, float sharpen,
                                      float* weight) {
  if (l.largest <= 0.0f) {
    clear(weight, s.padded);
    return;
  }
  Vec sum = {};
  for (int64_t n = 0; n < s.padded; n += kLanes) {
    const Vec v = load(l.moved + n);
    const Vec power = pow_of(larger(v, splat(1e-37f)), l.largest, sharpen);
    const Vec w = v > splat(0.0f) ? power : Vec{};
    sum += w;
    store(weight + n, w);
  }
  const Vec inverse = splat(1.0f / sum_tree(sum));
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
    sharp += __builtin_convertvector(x, Wide) * log_of(positive, unit);
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
    gates += __builtin_convertvector(sum * (load(content + n) - load(previous + n)), Wide);
    store(grad_content + n, sum * splat(gate));
    store(grad_previous + n, sum * splat(1.0f - gate));
  }
  grad_gate = static_cast<float>(sum_wide(gates));
}

// ---- writing and reading ----

struct Access {
  const float* read_weight;   // [R][padded]
  const float* write_weight;  // [W][padded]
  const float* erase;         // [W][wide], or null
  const float* add;           // [W][wide]
  const float* keep;          // [padded], a factor of each row before the writes, or null
  bool read_first;
};

// memory becomes what is written; read [R][wide]. kReads and kWrites: -1 for any number.
template <int kReads, int kWrites>
STMETA_FN void write_and_read_of(const MemorySizes& s, const Access& a, float* memory,
                                 float* read) {
  const int64_t wide = s.wide, padded = s.padded, rows = s.rows;
  const int64_t reads = kReads < 0 ? s.reads : kReads, writes = kWrites < 0 ? s.writes : kWrites;
  constexpr int kMost = kReads < 0 ? kMaxHeads : kReads + 1;
  const bool erases = a.erase != nullptr, read_first = a.read_first;
  for (int64_t m = 0; m < wide; m += kLanes) {
    Vec seen_by[kMost];
    for (int64_t r = 0; r < reads; ++r) seen_by[r] = Vec{};
    for (int64_t n = 0; n < rows; ++n) {
      float* row = memory + n * wide + m;
      const Vec old = load(row);
      Vec sum = {}, now = old;
      if (a.keep != nullptr) now *= splat(a.keep[n]);
      for (int64_t w = 0; w < writes; ++w) {
        const Vec weight = splat(a.write_weight[w * padded + n]);
        if (erases) now -= now * (weight * load(a.erase + w * wide + m));
        sum += weight * load(a.add + w * wide + m);
      }
      now += sum;
      const Vec seen = read_first ? old : now;
      for (int64_t r = 0; r < reads; ++r) {
        seen_by[r] += splat(a.read_weight[r * padded + n]) * seen;
      }
      if (writes > 0) store(row, now);
    }
    for (int64_t r = 0; r < reads; ++r) store(read + r * wide + m, seen_by[r]);
  }
}

STMETA_FN inline void write_and_read(const MemorySizes& s, const Access& a, float* memory,
                                     float* read) {
  const auto any = &write_and_read_of<-1, -1>;
  (s.reads == 4 && s.writes == 4   ? &write_and_read_of<4, 4>
   : s.reads == 4 && s.writes == 0 ? &write_and_read_of<4, 0>
   : s.reads == 0 && s.writes == 4 ? &write_and_read_of<0, 4>
   : s.reads == 1 && s.writes == 1 ? &write_and_read_of<1, 1>
                                   : any)(s, a, memory, read);
}

struct AccessGrads {
  float* memory;  // in: of the memory after the writes; out: of the memory before, reads included
  const float* read;    // [R][wide]
  float* read_weight;   // [R][padded], added to
  float* write_weight;  // [W][padded], added to
  float *erase, *add;   // [W][wide]; erase may be null
};

// kCount rows, from row n on.
template <int kReads, int kWrites, int kCount>
STMETA_INLINE void access_backward_rows(const MemorySizes& s, const Access& a, const float* memory,
                                        const AccessGrads& g, int64_t n) {
  constexpr int kR = kReads < 0 ? kMaxHeads : kReads + 1;
  constexpr int kW = kWrites < 0 ? kMaxHeads : kWrites + 1;
  const int64_t wide = s.wide, padded = s.padded;
  const int64_t reads = kReads < 0 ? s.reads : kReads, writes = kWrites < 0 ? s.writes : kWrites;
  const bool erases = a.erase != nullptr, read_first = a.read_first;
  const float* write = writes > 0 ? a.write_weight + n : nullptr;
  const float* look = reads > 0 ? a.read_weight + n : nullptr;
  Vec of_read[kCount][kR], of_write[kCount][kW];
  for (int i = 0; i < kCount; ++i) {
    for (int64_t r = 0; r < reads; ++r) of_read[i][r] = Vec{};
    for (int64_t w = 0; w < writes; ++w) of_write[i][w] = Vec{};
  }
  for (int64_t m = 0; m < wide; m += kLanes) {
    Vec grad[kCount], from_reads[kCount], seen[kCount], after[kCount], keep[kCount];
    Vec before[kCount][kW + 1];  // times the factors of the writes up to here
    for (int i = 0; i < kCount; ++i) {
      const Vec old = load(memory + (n + i) * wide + m);
      keep[i] = splat(a.keep == nullptr ? 1.0f : a.keep[n + i]);
      grad[i] = load(g.memory + (n + i) * wide + m);
      from_reads[i] = Vec{};
      seen[i] = old;
      before[i][0] = old * keep[i];
    }
    for (int64_t w = 0; erases && w < writes; ++w) {
      const Vec erase = load(a.erase + w * wide + m);
      for (int i = 0; i < kCount; ++i) {
        before[i][w + 1] = before[i][w] - before[i][w] * (splat(write[w * padded + i]) * erase);
      }
    }
    if (!read_first) {
      for (int i = 0; i < kCount; ++i) seen[i] = before[i][erases ? writes : 0];
      for (int64_t w = 0; w < writes; ++w) {
        const Vec add = load(a.add + w * wide + m);
        for (int i = 0; i < kCount; ++i) seen[i] += splat(write[w * padded + i]) * add;
      }
    }
    for (int64_t r = 0; r < reads; ++r) {
      const Vec d = load(g.read + r * wide + m);
      for (int i = 0; i < kCount; ++i) {
        of_read[i][r] += d * seen[i];
        from_reads[i] += splat(look[r * padded + i]) * d;
      }
    }
    for (int i = 0; i < kCount; ++i) {
      if (!read_first) grad[i] += from_reads[i];
      after[i] = grad[i];  // times the factors of the writes behind
    }
    for (int64_t w = writes - 1; w >= 0; --w) {
      const Vec add = load(a.add + w * wide + m);
      Vec to_add = load(g.add + w * wide + m);
      for (int i = 0; i < kCount; ++i) {
        of_write[i][w] += grad[i] * add;
        to_add += splat(write[w * padded + i]) * grad[i];
      }
      store(g.add + w * wide + m, to_add);
      if (!erases) continue;
      const Vec erase = load(a.erase + w * wide + m);
      Vec to_erase = load(g.erase + w * wide + m);
      for (int i = 0; i < kCount; ++i) {
        const Vec weight = splat(write[w * padded + i]), d = after[i] * before[i][w];
        of_write[i][w] -= erase * d;
        to_erase -= weight * d;
        after[i] -= after[i] * (weight * erase);
      }
      store(g.erase + w * wide + m, to_erase);
    }
    for (int i = 0; i < kCount; ++i) {
      Vec result = after[i] * keep[i];
      if (read_first) result += from_reads[i];
      store(g.memory + (n + i) * wide + m, result);
    }
  }
  for (int i = 0; i < kCount; ++i) {
    for (int64_t r = 0; r < reads; ++r)
      g.read_weight[r * padded + n + i] += sum_tree(of_read[i][r]);
    for (int64_t w = 0; w < writes; ++w) {
      g.write_weight[w * padded + n + i] += sum_tree(of_write[i][w]);
    }
  }
}

template <int kReads, int kWrites>
STMETA_FN void access_backward_of(const MemorySizes& s, const Access& a, const float* memory,
                                  const AccessGrads& g) {
  if (a.erase != nullptr) clear(g.erase, s.writes * s.wide);
  if (g.add != nullptr) clear(g.add, s.writes * s.wide);
  constexpr int kCount = kReads < 0 ? 1 : 2;
  int64_t n = 0;
  for (; n + kCount <= s.rows; n += kCount) {
    access_backward_rows<kReads, kWrites, kCount>(s, a, memory, g, n);
  }
  for (; n < s.rows; ++n) access_backward_rows<kReads, kWrites, 1>(s, a, memory, g, n);
}

STMETA_FN inline void access_backward(const MemorySizes& s, const Access& a, const float* memory,
                                      const AccessGrads& g) {
  const auto any = &access_backward_of<-1, -1>;
  (s.reads == 4 && s.writes == 4   ? &access_backward_of<4, 4>
   : s.reads == 4 && s.writes == 0 ? &access_backward_of<4, 0>
   : s.reads == 0 && s.writes == 4 ? &access_backward_of<0, 4>
   : s.reads == 1 && s.writes == 1 ? &access_backward_of<1, 1>
                                   : any)(s, a, memory, g);
}

}  // namespace stmeta::STMETA_ISA
