// Kernels of patch_shift for one instruction set; csrc/common/each_isa.h includes this file.
//
// A window of pixels is staged once in L1 or L2, as normalised floats. A token's features are then
// short runs of C floats from the window, one per (dt, dy, dx, s), so it is put together by copies
// of 16 bytes, each over the tail of the one before; LayerNorm looks at it while it is in L1; and
// it leaves by one pass of streaming stores.

namespace stmeta::STMETA_ISA {

STMETA_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
STMETA_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

STMETA_INLINE Item locate(const PatchShift& p, int64_t index) {
  Item item;
  int64_t token;
  if (p.picked) {
    item.batch = index / p.kept;
    token = p.ids[index];
    item.first = index;
    item.count = 1;
  } else {
    const int64_t row = index / p.groups;
    const int64_t begin = index % p.groups * p.group;
    token = row * p.grid[kWidth] + begin;
    item.batch = token / p.tokens;
    item.first = token;
    item.count = least(p.group, p.grid[kWidth] - begin);
    token %= p.tokens;
  }
  item.corner[kWidth] = token % p.grid[kWidth] * p.patch;
  item.corner[kHeight] = token / p.grid[kWidth] % p.grid[kHeight] * p.patch;
  item.corner[kTime] = token / p.grid[kWidth] / p.grid[kHeight] * p.tubelet;
  return item;
}

STMETA_INLINE void zero(float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = 0.0f;
}

// Three planes to pixels of three channels.
STMETA_FN inline void interleave3(const float* a, const float* b, const float* c, int64_t count,
                                  float* out) {
  int64_t x = 0;
  for (; x + 4 <= count; x += 4, out += 12) {
    const Vec4 u = load4(a + x), v = load4(b + x), w = load4(c + x);
    const Vec4 uv = __builtin_shufflevector(u, v, 0, 4, 1, 5);  // a0 b0 a1 b1
    const Vec4 vw = __builtin_shufflevector(v, w, 1, 5, 2, 6);  // b1 c1 b2 c2
    const Vec4 wu = __builtin_shufflevector(w, u, 2, 7, 3, 6);  // c2 a3 c3 a2
    const Vec4 last = __builtin_shufflevector(v, w, 3, 7, 3, 7);
    store4(out,
           __builtin_shufflevector(uv, __builtin_shufflevector(w, uv, 0, 6, 0, 6), 0, 1, 4, 5));
    store4(out + 4,
           __builtin_shufflevector(vw, __builtin_shufflevector(u, v, 2, 6, 2, 6), 0, 1, 4, 5));
    store4(out + 8, __builtin_shufflevector(wu, last, 0, 1, 4, 5));
  }
  for (; x < count; ++x, out += 3) {
    out[0] = a[x];
    out[1] = b[x];
    out[2] = c[x];
  }
}

// `count` pixels from `source` on, normalised, to out [count][C].
template <typename In>
STMETA_FN void convert_row(const PatchShift& p, const In* source, int64_t count, float* planes,
                           float* out) {
  const int64_t channels = p.channels, stride = p.stride[4], plane = p.stride[1];
  if (stride == channels && (plane == 1 || channels == 1)) {
    const int64_t total = count * channels;
    const float *scale = p.scale_row, *offset = p.offset_row;
    int64_t i = 0;
    for (; i + kLanes <= total; i += kLanes) {
      store(out + i, load(source + i) * load(scale + i) + load(offset + i));
    }
    for (; i < total; ++i) out[i] = to_float(source[i]) * scale[i] + offset[i];
    return;
  }
  for (int64_t c = 0; c < channels; ++c, source += plane) {
    const float scale = p.scale[c], offset = p.offset[c];
    float* row = channels == 3 ? planes + c * p.plane : planes;
    int64_t x = 0;
    if (stride == 1) {
      for (; x + kLanes <= count; x += kLanes) {
        store(row + x, load(source + x) * splat(scale) + splat(offset));
      }
    }
    for (; x < count; ++x) row[x] = to_float(source[x * stride]) * scale + offset;
    if (channels != 3) {
      for (x = 0; x < count; ++x) out[x * channels + c] = row[x];
    }
  }
  if (channels == 3) interleave3(planes, planes + p.plane, planes + 2 * p.plane, count, out);
}

// Fills the window of `item`; zero outside the clip.
template <typename In>
STMETA_FN void stage(const PatchShift& p, const Item& item, float* planes, float* window) {
  const In* clip = static_cast<const In*>(p.video) + item.batch * p.stride[0];
  const int64_t x = item.corner[kWidth] - p.reach[kWidth];
  const int64_t width = p.window[kWidth] - (p.group - item.count) * p.patch;
  const int64_t begin = least(most(x, 0), p.size[kWidth]);
  const int64_t end = most(least(x + width, p.size[kWidth]), begin);
  for (int64_t i = 0; i < p.window[kTime]; ++i) {
    const int64_t t = item.corner[kTime] - p.reach[kTime] + i;
    for (int64_t j = 0; j < p.window[kHeight]; ++j, window += p.pitch) {
      const int64_t y = item.corner[kHeight] - p.reach[kHeight] + j;
      if (t < 0 || t >= p.size[kTime] || y < 0 || y >= p.size[kHeight] || begin == end) {
        zero(window, p.pitch);
        continue;
      }
      const In* row = clip + t * p.stride[2] + y * p.stride[3] + begin * p.stride[4];
      zero(window, (begin - x) * p.channels);
      convert_row(p, row, end - begin, planes, window + (begin - x) * p.channels);
      zero(window + (end - x) * p.channels, p.pitch - (end - x) * p.channels);
    }
  }
}

template <int kChannels>  // 0: any number
STMETA_FN void gather(const PatchShift& p, const float* corner, float* token) {
  // Locals, because the compiler must assume that a store to `token` changes `p`.
  const int64_t runs = p.patch * p.shift_count, channels = kChannels ? kChannels : p.channels;
  const int64_t frames = p.tubelet, patch = p.patch, pitch = p.pitch, height = p.window[kHeight];
  const int32_t* sources = p.sources;
  for (int64_t dt = 0; dt < frames; ++dt) {
    for (int64_t dy = 0; dy < patch; ++dy) {
      const float* row = corner + (dt * height + dy) * pitch;
#pragma GCC unroll 4
      for (int64_t i = 0; i < runs; ++i, token += channels) {
        const float* source = row + sources[i];
        if (kChannels == 1) {
          token[0] = source[0];
        } else {
          for (int64_t c = 0; c < channels; c += 4) store4(token + c, load4(source + c));
        }
      }
    }
  }
}

// The features of token `index` of a staged window. Up to 3 floats behind them are overwritten.
STMETA_INLINE void make_token(const PatchShift& p, const float* window, int64_t index,
                              float* token) {
  const float* corner = window + index * p.patch * p.channels;
  if (p.channels == 3) {
    gather<3>(p, corner, token);
  } else if (p.channels == 1) {
    gather<1>(p, corner, token);
  } else {
    gather<0>(p, corner, token);
  }
}

// Two passes, so that a bright token with little contrast keeps its variance.
STMETA_INLINE void statistics(const PatchShift& p, float* token, float& mean, float& rstd) {
  const int64_t features = p.features, padded = p.padded;
  const float count = static_cast<float>(features);
  Vec sum[4] = {}, square[4] = {};
  for (int64_t i = features; i < padded; ++i) token[i] = 0.0f;
  for (int64_t i = 0; i < padded; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) sum[k] += load(token + i + k * kLanes);
  }
  const float centre = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) / count;
  for (int64_t i = features; i < padded; ++i) token[i] = centre;
  for (int64_t i = 0; i < padded; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const Vec d = load(token + i + k * kLanes) - splat(centre);
      square[k] += d * d;
    }
  }
  const float total = sum_lanes((square[0] + square[1]) + (square[2] + square[3]));
  mean = centre;
  rstd = 1.0f / __builtin_sqrtf(total / count + p.eps);
}

template <bool kStream, bool kNorm, typename Out>
STMETA_FN void finish(const PatchShift& p, const float* token, float mean, float rstd, Out* out) {
  const Vec m = splat(mean), r = splat(rstd);
  const float *weight = p.weight, *bias = p.bias;
  const int64_t features = p.features;
  int64_t i = 0;
  for (; i + kLanes <= features; i += kLanes) {
    Vec y = load(token + i);
    if (kNorm) y = (y - m) * r * load(weight + i) + load(bias + i);
    if (kStream) {
      stream(out + i, y);
    } else {
      store(out + i, y);
    }
  }
  for (; i < features; ++i) {
    const float y = (token[i] - mean) * rstd * weight[i] + bias[i];
    from_float(kNorm ? y : token[i], out + i);
  }
}

// Normalises one token and writes its row.
template <typename Out>
STMETA_INLINE void write_token(const Forward& f, float* token, int64_t row) {
  const PatchShift& p = f.problem;
  Out* out = static_cast<Out*>(f.tokens) + (row - f.first) * p.features;
  if (!p.norm) {
    (f.stream ? &finish<true, false, Out> : &finish<false, false, Out>)(p, token, 0, 1, out);
    return;
  }
  float &mean = f.mean[row], &rstd = f.rstd[row];
  if (!f.known) statistics(p, token, mean, rstd);
  (f.stream ? &finish<true, true, Out> : &finish<false, true, Out>)(p, token, mean, rstd, out);
}

// Goes through items [begin, end). The next window is staged before this one is read: its stores
// must have left for L1 by then, because a copy that crosses two pending stores waits for both
// (twice the time, where a window is one token).
template <typename In>
struct Walk {
  const PatchShift& p;
  float *planes, *window, *other;
  int64_t index, end;
  Item item, next;

  STMETA_FN Walk(const PatchShift& problem, int64_t begin, int64_t stop, float* row, float* windows)
      : p(problem),
        planes(row),
        window(windows),
        other(windows + p.window_floats),
        index(begin),
        end(stop) {
    if (index < end) {
      next = locate(p, index);
      stage<In>(p, next, planes, other);
    }
  }
  // False at the end; else `item` lies in `window`.
  STMETA_FN bool step() {
    if (index == end) return false;
    item = next;
    float* const staged = other;
    other = window;
    window = staged;
    if (++index < end) {
      next = locate(p, index);
      stage<In>(p, next, planes, other);
    }
    return true;
  }
};

// Items [begin, end). `scratch`: planes, token, two windows.
template <typename In, typename Out>
STMETA_FN void forward(const Forward& f, int64_t begin, int64_t end, float* scratch) {
  const PatchShift& p = f.problem;
  float* token = scratch + 3 * p.plane;
  Walk<In> walk(p, begin, end, scratch, token + p.padded + kLine);
  while (walk.step()) {
    for (int64_t i = 0; i < walk.item.count; ++i) {
      make_token(p, walk.window, i, token);
      write_token<Out>(f, token, walk.item.first + i);
    }
  }
  if (f.stream) end_stream();
}

// Adds one token's share to the gradients of weight and bias. `terms`: its sums, where wanted.
template <bool kTerms, typename Grad>
STMETA_FN void accumulate(const PatchShift& p, const float* token, const Grad* grad, float mean,
                          float rstd, float* weight, float* bias, TokenTerms* terms) {
  const Vec m = splat(mean), r = splat(rstd);
  const float* factor = p.weight;
  const int64_t features = p.features;
  Vec sums = {}, products = {};
  int64_t i = 0;
  for (; i + kLanes <= features; i += kLanes) {
    const Vec g = load(grad + i), x = (load(token + i) - m) * r;
    store(weight + i, load(weight + i) + g * x);
    store(bias + i, load(bias + i) + g);
    if (kTerms) {
      sums += load(factor + i) * g;
      products += load(factor + i) * g * x;
    }
  }
  float sum = sum_lanes(sums), product = sum_lanes(products);
  for (; i < features; ++i) {
    const float g = to_float(grad[i]), x = (token[i] - mean) * rstd;
    weight[i] += g * x;
    bias[i] += g;
    sum += factor[i] * g;
    product += factor[i] * g * x;
  }
  if (kTerms) {
    const float count = static_cast<float>(features);
    *terms = {mean, rstd, rstd * sum / count, rstd * rstd * product / count};
  }
}

// Sums of the parameters' gradients over blocks [begin, end) of the items, and the terms that the
// video's gradient needs of each token. `scratch`: planes, token, gradient, two windows.
template <typename In, typename Grad>
STMETA_FN void backward_tokens(const Backward& f, int64_t begin, int64_t end, float* scratch) {
  const PatchShift& p = f.problem;
  float* token = scratch + 3 * p.plane;
  float* row = token + p.padded + kLine;
  const bool dense = f.grad_stride[2] == 1;
  for (int64_t block = begin; block < end; ++block) {
    float* weight = f.partial + block * 2 * p.padded;
    float* bias = weight + p.padded;
    zero(weight, 2 * p.padded);
    Walk<In> walk(p, block * p.items / f.blocks, (block + 1) * p.items / f.blocks, scratch,
                  row + p.padded + kLine);
    while (walk.step()) {
      for (int64_t i = 0; i < walk.item.count; ++i) {
        const int64_t k = walk.item.first + i;
        const Grad* grad = static_cast<const Grad*>(f.grad) + walk.item.batch * f.grad_stride[0] +
                           k % p.kept * f.grad_stride[1];
        TokenTerms* terms = f.terms == nullptr ? nullptr : f.terms + k;
        make_token(p, walk.window, i, token);
        if (!dense) {
          for (int64_t n = 0; n < p.features; ++n) row[n] = to_float(grad[n * f.grad_stride[2]]);
          (terms == nullptr ? &accumulate<false, float>
                            : &accumulate<true, float>)(p, token, row, f.mean[k], f.rstd[k], weight,
                                                        bias, terms);
        } else {
          (terms == nullptr ? &accumulate<false, Grad>
                            : &accumulate<true, Grad>)(p, token, grad, f.mean[k], f.rstd[k], weight,
                                                       bias, terms);
        }
      }
    }
  }
}

// Adds the gradients of one shift to a row of pixels: out, value [W][C].
template <int kChannels, typename Grad>
STMETA_FN void gather_grad(const Backward& f, int64_t batch, int64_t t, int64_t y, int64_t s,
                           const float* value, float* out) {
  const PatchShift& p = f.problem;
  const int64_t channels = kChannels ? kChannels : p.channels;
  const int64_t run = p.shift_count * channels, shift = p.shifts[3 * s + 2];
  t -= p.shifts[3 * s];
  y -= p.shifts[3 * s + 1];
  if (t < 0 || t >= p.size[kTime] || y < 0 || y >= p.size[kHeight]) return;
  const int64_t row = (t / p.tubelet * p.grid[kHeight] + y / p.patch) * p.grid[kWidth];
  const int64_t feature = (t % p.tubelet * p.patch + y % p.patch) * p.patch * run + s * channels;
  const int64_t begin = most(0, -shift), end = least(p.size[kWidth], p.size[kWidth] - shift);
  for (int64_t x = begin; x < end;) {
    const int64_t column = x / p.patch, stop = least(end, (column + 1) * p.patch);
    const int64_t token = batch * p.tokens + row + column;
    const int64_t k = f.kept == nullptr ? row + column : f.kept[token];
    if (k < 0) {
      x = stop;
      continue;
    }
    const TokenTerms terms = f.terms[batch * p.kept + k];
    const Grad* grad =
        static_cast<const Grad*>(f.grad) + batch * f.grad_stride[0] + k * f.grad_stride[1];
    for (int64_t i = feature + x % p.patch * run; x < stop; ++x, i += run) {
      const int64_t pixel = (x + shift) * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const float g = to_float(grad[(i + c) * f.grad_stride[2]]) * p.weight[i + c];
        out[pixel + c] += terms.rstd * g - (terms.k0 + (value[pixel + c] - terms.mean) * terms.k1);
      }
    }
  }
}

// Rows [begin, end) of B * T * H rows of the video's gradient.
template <typename In, typename Grad>
STMETA_FN void backward_video(const Backward& f, int64_t begin, int64_t end, float* scratch) {
  const PatchShift& p = f.problem;
  const int64_t width = p.size[kWidth], numbers = width * p.channels;
  float* planes = scratch;
  float* value = planes + 3 * p.plane;
  float* sum = value + numbers;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t y = index % p.size[kHeight], t = index / p.size[kHeight] % p.size[kTime];
    const int64_t batch = index / p.size[kHeight] / p.size[kTime];
    const In* row =
        static_cast<const In*>(p.video) + batch * p.stride[0] + t * p.stride[2] + y * p.stride[3];
    convert_row(p, row, width, planes, value);
    zero(sum, numbers);
    for (int64_t s = 0; s < p.shift_count; ++s) {
      if (p.channels == 3) {
        gather_grad<3, Grad>(f, batch, t, y, s, value, sum);
      } else {
        gather_grad<0, Grad>(f, batch, t, y, s, value, sum);
      }
    }
    for (int64_t c = 0; c < p.channels; ++c) {
      In* out = static_cast<In*>(f.grad_video) +
                (((batch * p.channels + c) * p.size[kTime] + t) * p.size[kHeight] + y) * width;
      for (int64_t x = 0; x < width; ++x) from_float(sum[x * p.channels + c] * p.scale[c], out + x);
    }
  }
}

}  // namespace stmeta::STMETA_ISA
