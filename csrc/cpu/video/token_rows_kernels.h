// Kernels of gather_tokens and restore_tokens for one instruction set; csrc/common/each_isa.h
// includes this file. All of them move rows of D numbers, so they are bound by memory.

namespace stmeta::STMETA_ISA {

template <bool kStream, bool kPos, typename T, typename Pos>
STMETA_INLINE void write_row(const T* row, const Pos* pos, int64_t dim, T* out) {
  if (!kPos && !kStream) {
    __builtin_memcpy(out, row, static_cast<size_t>(dim) * sizeof(T));
    return;
  }
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    Vec y = load(row + d);
    if (kPos) y += load(pos + d);
    if (kStream) {
      stream(out + d, y);
    } else {
      store(out + d, y);
    }
  }
  for (; d < dim; ++d) from_float(to_float(row[d]) + (kPos ? to_float(pos[d]) : 0.0f), out + d);
}

template <bool kStream, bool kPos, typename T, typename Pos>
STMETA_FN void place_some(const TokenRows& f, int64_t batch, int64_t begin, int64_t end) {
  const T* source = static_cast<const T*>(f.source) + batch * f.source_stride[0];
  const T* fill = static_cast<const T*>(f.fill);
  const Pos* pos = static_cast<const Pos*>(f.pos);
  T* out = static_cast<T*>(f.out);
  const int64_t *ids = f.ids, stride = f.source_stride[1], pos_stride = f.pos_stride;
  const int64_t kept = f.kept, dim = f.dim, first = batch * f.rows;
  const bool by_id = f.pos_by_id;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t id = ids[i];
    const T* row = id < kept ? source + id * stride : fill;
    const Pos* place = kPos ? pos + (by_id ? id : i - first) * pos_stride : nullptr;
    write_row<kStream, kPos>(row, place, dim, out + i * dim);
  }
}

// Rows [begin, end) of B * rows. A tile of positions serves all these batch elements in turn.
template <typename T, typename Pos>
STMETA_FN void place_rows(const TokenRows& f, int64_t begin, int64_t end) {
  const auto kernel =
      f.stream
          ? (f.pos == nullptr ? &place_some<true, false, T, Pos> : &place_some<true, true, T, Pos>)
          : (f.pos == nullptr ? &place_some<false, false, T, Pos>
                              : &place_some<false, true, T, Pos>);
  for (int64_t tile = 0; tile < f.rows; tile += f.tile) {
    const int64_t stop = tile + f.tile < f.rows ? tile + f.tile : f.rows;
    for (int64_t b = begin / f.rows; b * f.rows < end; ++b) {
      const int64_t i = b * f.rows + tile, j = b * f.rows + stop;
      kernel(f, b, i > begin ? i : begin, j < end ? j : end);
    }
  }
  if (f.stream) end_stream();
}

STMETA_INLINE void clear(float* out, int64_t count) {
  __builtin_memset(out, 0, static_cast<size_t>(count) * sizeof(float));
}

template <typename T>
STMETA_INLINE void add_to(float* total, const T* row, int64_t dim) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(total + d, load(total + d) + load(row + d));
  for (; d < dim; ++d) total[d] += to_float(row[d]);
}

// Tiles [begin, end): pos[n] = sum over b of the rows that were gathered from token n.
template <typename T>
STMETA_FN void sum_gathered(const TokenSums& f, int64_t begin, int64_t end) {
  const int64_t last = end * f.tile < f.tokens ? end * f.tile : f.tokens;
  for (int64_t tile = begin * f.tile; tile < last; tile += f.tile) {
    const int64_t stop = tile + f.tile < last ? tile + f.tile : last;
    clear(f.pos + tile * f.dim, (stop - tile) * f.dim);
    for (int64_t b = 0; b < f.batch; ++b) {
      const T* rows = static_cast<const T*>(f.grad) + b * f.grad_stride[0];
      const int64_t* ids = f.ids + b * f.tokens;
      for (int64_t n = tile; n < stop; ++n) {
        if (ids[n] < f.kept) add_to(f.pos + n * f.dim, rows + ids[n] * f.grad_stride[1], f.dim);
      }
    }
  }
}

// A sum of many rows: a long chain of fp32 additions loses digits, so it is cut into short ones,
// which are added up in double.
struct RowSum {
  float* run;     // [D]
  double* total;  // [D], or null: no sum is wanted
  int64_t dim, pending;

  STMETA_INLINE void flush() {
    const float* __restrict from = run;
    double* __restrict to = total;
    for (int64_t d = 0; d < dim; ++d) to[d] += static_cast<double>(from[d]);
    clear(run, dim);
    pending = 0;
  }
  template <typename T>
  STMETA_INLINE void add(const T* row) {
    if (total == nullptr) return;
    add_to(run, row, dim);
    if (++pending == 16) flush();
  }
};

// Tokens [begin, end) of one batch element of restore_tokens: takes the rows apart, and sums them
// in `pos`, [tile, D], where it is wanted. Returns how many rows were kept ones.
template <typename T>
STMETA_FN int64_t take_rows(const TokenSums& f, int64_t b, int64_t begin, int64_t end, float* pos,
                            RowSum& mask) {
  const T* row = static_cast<const T*>(f.grad) + b * f.grad_stride[0] + begin * f.grad_stride[1];
  T* latent = static_cast<T*>(f.latent);
  const int64_t *ids = f.ids + b * f.tokens, dim = f.dim, stride = f.grad_stride[1];
  int64_t kept = 0;
  for (int64_t n = begin; n < end; ++n, row += stride) {
    if (ids[n] >= f.kept) {
      mask.add(row);
    } else if (latent != nullptr) {
      const int64_t place = b * f.kept + ids[n];
      __builtin_memcpy(latent + place * dim, row, static_cast<size_t>(dim) * sizeof(T));
      f.seen[place] = 1;
      ++kept;
    }
    if (pos != nullptr) add_to(pos + (n - begin) * dim, row, dim);
  }
  return kept;
}

// Tiles [begin, end) of the gradients of restore_tokens, in one pass over grad.
// `scratch`: [1 + tile, D].
template <typename T>
STMETA_FN void sum_tiles(const TokenSums& f, int64_t begin, int64_t end, float* scratch) {
  constexpr int64_t kGroup = 8;  // short chains for the positions too
  float* group = f.pos == nullptr ? nullptr : scratch + f.dim;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * f.tile;
    const int64_t stop = first + f.tile < f.tokens ? first + f.tile : f.tokens;
    const int64_t numbers = (stop - first) * f.dim;
    RowSum mask = {scratch, f.mask == nullptr ? nullptr : f.mask + tile * f.dim, f.dim, 0};
    clear(scratch, f.dim);
    for (int64_t d = 0; d < f.dim && mask.total != nullptr; ++d) mask.total[d] = 0.0;
    if (f.pos != nullptr) clear(f.pos + first * f.dim, numbers);
    int64_t kept = 0;
    for (int64_t b = 0; b < f.batch;) {
      if (group != nullptr) clear(group, numbers);
      const int64_t last = b + kGroup < f.batch ? b + kGroup : f.batch;
      for (; b < last; ++b) kept += take_rows<T>(f, b, first, stop, group, mask);
      if (group != nullptr) add_to(f.pos + first * f.dim, group, numbers);
    }
    if (mask.total != nullptr) mask.flush();
    f.kept_rows[tile] = kept;
  }
}

}  // namespace stmeta::STMETA_ISA
