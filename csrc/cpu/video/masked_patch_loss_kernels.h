// Kernels of masked_patch_loss for one instruction set; csrc/common/each_isa.h includes this file.
//
// The pixels of a token are short runs in the video: p * C bytes. They are copied side by side, as
// they are, and then converted by whole vectors to floats in L1, where mean, variance and error
// look at them. The target never leaves L1; pred is read once and in order.

namespace stmeta::STMETA_ISA {

typedef unsigned char Bytes __attribute__((vector_size(16), aligned(1), may_alias));

// Copies `count` numbers. With kRoom it reads and writes up to 15 bytes behind them.
template <bool kRoom, typename In>
STMETA_INLINE void copy_run(const In* from, In* to, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(In));
  if (!kRoom) {
    __builtin_memcpy(to, from, static_cast<size_t>(bytes));
    return;
  }
  const unsigned char* source = reinterpret_cast<const unsigned char*>(from);
  unsigned char* out = reinterpret_cast<unsigned char*>(to);
  for (int64_t i = 0; i < bytes; i += 16) {
    *reinterpret_cast<Bytes*>(out + i) = *reinterpret_cast<const Bytes*>(source + i);
  }
}

// The runs under a token: [dt][dy][p * C], or planar [c][dt][dy][p], each plane from its own place.
template <bool kRoom, typename In>
STMETA_INLINE void pack_runs(const PatchLoss& p, const In* corner, In* out) {
  const bool planar = p.layout == PixelLayout::planar;
  const int64_t planes = planar ? p.channels : 1, run = planar ? p.patch : p.patch * p.channels;
  const int64_t tubelet = p.tubelet, patch = p.patch, plane = p.plane;
  const int64_t by_channel = p.stride[1], by_frame = p.stride[2], by_line = p.stride[3];
  for (int64_t c = 0; c < planes; ++c) {
    In* to = out + c * plane;
    for (int64_t dt = 0; dt < tubelet; ++dt) {
      const In* line = corner + c * by_channel + dt * by_frame;
      for (int64_t dy = 0; dy < patch; ++dy, line += by_line, to += run) {
        copy_run<kRoom>(line, to, run);
      }
    }
  }
}

template <typename In>
STMETA_FN void pack_numbers(const PatchLoss& p, const In* corner, In* out) {
  for (int64_t dt = 0; dt < p.tubelet; ++dt) {
    for (int64_t dy = 0; dy < p.patch; ++dy) {
      for (int64_t dx = 0; dx < p.patch; ++dx) {
        const In* pixel = corner + dt * p.stride[2] + dy * p.stride[3] + dx * p.stride[4];
        for (int64_t c = 0; c < p.channels; ++c) *out++ = pixel[c * p.stride[1]];
      }
    }
  }
}

// The numbers under the token of a row, side by side.
template <typename In>
STMETA_FN void pack(const PatchLoss& p, int64_t row, In* out) {
  constexpr int64_t kChunk = 16 / sizeof(In);
  const int64_t batch = row / p.rows;
  const int64_t token = p.ids == nullptr ? row - batch * p.rows : p.ids[row];
  const int64_t place = batch * p.stride[0] + p.corners[token];
  const In* corner = static_cast<const In*>(p.video) + place;
  if (p.layout == PixelLayout::strided) {
    pack_numbers(p, corner, out);
    return;
  }
  if (place + p.last + 1 + kChunk <= p.end) {
    pack_runs<true>(p, corner, out);
  } else {
    pack_runs<false>(p, corner, out);
  }
  if (p.layout == PixelLayout::interleaved) {  // no tail of a run may stay behind the end
    __builtin_memset(out + p.features, 0, 16);
  }
}

STMETA_INLINE void interleave(const float* planes, int64_t plane, int64_t channels, int64_t pixels,
                              float* __restrict out) {
  if (channels == 3) {
    const float *a = planes, *b = a + plane, *c = b + plane;
    for (int64_t x = 0; x < pixels; ++x) {
      out[3 * x] = a[x];
      out[3 * x + 1] = b[x];
      out[3 * x + 2] = c[x];
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = 0; x < pixels; ++x) out[x * channels + c] = planes[c * plane + x];
  }
}

// The values of a token, zero from F on to `padded`. Returns their sum, by lanes.
template <typename In>
STMETA_FN Vec make_values(const PatchLoss& p, const In* packed, float* planes, float* values) {
  const float *scale = p.scale, *offset = p.offset;
  const int64_t padded = p.padded, features = p.features;
  Vec sum[4] = {};
  if (p.layout != PixelLayout::planar) {
    for (int64_t i = 0; i < padded; i += 4 * kLanes) {
      for (int k = 0; k < 4; ++k) {
        const int64_t j = i + k * kLanes;
        const Vec value = load(packed + j) * load(scale + j) + load(offset + j);
        store(values + j, value);
        sum[k] += value;
      }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  const int64_t plane = p.plane;
  for (int64_t c = 0; c < p.channels; ++c) {
    const Vec s = splat(scale[c]), o = splat(offset[c]);
    for (int64_t i = c * plane; i < (c + 1) * plane; i += kLanes) {
      store(planes + i, load(packed + i) * s + o);
    }
  }
  interleave(planes, plane, p.channels, p.tubelet * p.patch * p.patch, values);
  for (int64_t i = features; i < padded; ++i) values[i] = 0.0f;
  for (int64_t i = 0; i < padded; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) sum[k] += load(values + i + k * kLanes);
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Mean and 1 / deviation: two passes, so that a bright token with little contrast keeps its
// variance. The numbers behind F become the mean.
STMETA_INLINE void measure(const PatchLoss& p, float* values, Vec sum, float& mean, float& rstd) {
  const int64_t features = p.features, padded = p.padded;
  Vec square[4] = {};
  mean = sum_tree(sum) / static_cast<float>(features);
  for (int64_t i = features; i < padded; ++i) values[i] = mean;
  const Vec centre = splat(mean);
  for (int64_t i = 0; i < padded; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const Vec d = load(values + i + k * kLanes) - centre;
      square[k] += d * d;
    }
  }
  const float total = sum_tree((square[0] + square[1]) + (square[2] + square[3]));
  const double variance = static_cast<double>(total) / static_cast<double>(features - 1);
  rstd = static_cast<float>(1.0 / __builtin_sqrt(variance + static_cast<double>(p.eps)));
}

// The tokens of one block of rows after the other. The next one is packed before this one is
// converted: its stores must have left for L1 by then, because a load that crosses two pending
// stores waits for both.
template <typename In>
struct Tokens {
  const PatchLoss& p;
  In *packed, *next;
  float *planes, *values;
  Vec sum;
  int64_t rows[kBlockRows], count, index, row;

  STMETA_FN Tokens(const PatchLoss& problem, float* scratch) : p(problem) {
    const int64_t pitch = p.scratch;
    // Zeros behind a token, where the conversion reads too: 0 * NaN would be NaN.
    __builtin_memset(scratch, 0, static_cast<size_t>(2 * pitch) * sizeof(float));
    packed = reinterpret_cast<In*>(scratch);
    next = reinterpret_cast<In*>(scratch + pitch);
    planes = scratch + 2 * pitch;
    values = scratch + 3 * pitch;
  }
  STMETA_FN void start(int64_t begin, int64_t end) {
    count = index = 0;
    for (int64_t i = begin; i < end; ++i) {
      rows[count] = i;
      count += p.mask == nullptr || p.mask[i] != 0;
    }
    if (count > 0) pack(p, rows[0], next);
  }
  // False at the end of the block; else the values of `row` are there.
  STMETA_FN bool step() {
    if (index == count) return false;
    row = rows[index++];
    In* const now = next;
    next = packed;
    packed = now;
    if (index < count) pack(p, rows[index], next);
    sum = make_values(p, now, planes, values);
    return true;
  }
};

template <typename Pred>
STMETA_INLINE const Pred* pred_row(const PatchLoss& p, int64_t row) {
  const int64_t batch = row / p.rows;
  return static_cast<const Pred*>(p.pred) + batch * p.pred_stride[0] +
         (row - batch * p.rows) * p.pred_stride[1];
}

template <typename Pred>
STMETA_INLINE double squared_error(const float* values, const Pred* pred, int64_t features,
                                   float mean, float rstd) {
  const Vec m = splat(mean), r = splat(rstd);
  Vec sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= features; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const int64_t j = i + k * kLanes;
      const Vec d = load(pred + j) - (load(values + j) - m) * r;
      sum[k] += d * d;
    }
  }
  for (; i + kLanes <= features; i += kLanes) {
    const Vec d = load(pred + i) - (load(values + i) - m) * r;
    sum[0] += d * d;
  }
  float tail = 0.0f;  // apart: small numbers lose digits when they are added to a large one
  for (; i < features; ++i) {
    const float d = to_float(pred[i]) - (values[i] - mean) * rstd;
    tail += d * d;
  }
  const float total = sum_tree((sum[0] + sum[1]) + (sum[2] + sum[3]));
  return static_cast<double>(total) + static_cast<double>(tail);
}

STMETA_INLINE int64_t block_end(const PatchLoss& p, int64_t block) {
  const int64_t end = (block + 1) * kBlockRows;
  return end < p.count ? end : p.count;
}

// Blocks [begin, end) of the sum of squared errors.
template <typename In, typename Pred>
STMETA_FN void sum_errors(const PatchLoss& p, int64_t begin, int64_t end, float* scratch) {
  Tokens<In> tokens(p, scratch);
  for (int64_t block = begin; block < end; ++block) {
    double total = 0.0;
    tokens.start(block * kBlockRows, block_end(p, block));
    while (tokens.step()) {
      float mean = 0.0f, rstd = 1.0f;
      if (p.norm) {
        measure(p, tokens.values, tokens.sum, mean, rstd);
        p.mean[tokens.row] = mean;
        p.rstd[tokens.row] = rstd;
      }
      total += squared_error(tokens.values, pred_row<Pred>(p, tokens.row), p.features, mean, rstd);
    }
    p.partial[block] = total;
  }
}

template <bool kStream, typename Pred>
STMETA_FN void write_row(const float* values, const Pred* pred, int64_t features, float mean,
                         float rstd, float factor, Pred* out) {
  const Vec m = splat(mean), r = splat(rstd), f = splat(factor);
  int64_t i = 0;
  for (; i + kLanes <= features; i += kLanes) {
    const Vec y = (load(pred + i) - (load(values + i) - m) * r) * f;
    if (kStream) {
      stream(out + i, y);
    } else {
      store(out + i, y);
    }
  }
  for (; i < features; ++i) {
    from_float((to_float(pred[i]) - (values[i] - mean) * rstd) * factor, out + i);
  }
}

// Blocks [begin, end) of the gradient of pred.
template <typename In, typename Pred>
STMETA_FN void write_grad(const PatchLoss& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t features = p.features;
  Pred* grad = static_cast<Pred*>(p.grad);
  const auto write = p.stream ? &write_row<true, Pred> : &write_row<false, Pred>;
  Tokens<In> tokens(p, scratch);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kBlockRows, stop = block_end(p, block);
    for (int64_t row = first; row < stop && p.mask != nullptr; ++row) {
      if (p.mask[row] != 0) continue;
      __builtin_memset(grad + row * features, 0, static_cast<size_t>(features) * sizeof(Pred));
    }
    tokens.start(first, stop);
    while (tokens.step()) {
      const int64_t row = tokens.row;
      write(tokens.values, pred_row<Pred>(p, row), features, p.known_mean[row], p.known_rstd[row],
            p.factor, grad + row * features);
    }
  }
  if (p.stream) end_stream();
}

}  // namespace stmeta::STMETA_ISA
