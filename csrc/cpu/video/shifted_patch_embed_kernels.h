// Kernels of shifted_patch_embed beside the matrix products; csrc/common/each_isa.h includes this.

namespace stmeta::STMETA_ISA {

// out[row] += bias + pos[token of the row], for rows [begin, end).
template <typename T>
STMETA_FN void add_rows(const EmbedRows& e, int64_t begin, int64_t end) {
  const int64_t dim = e.dim;
  for (int64_t row = begin; row < end; ++row) {
    T* out = static_cast<T*>(e.rows) + row * dim;
    const float* pos = e.pos == nullptr ? e.bias : e.pos + e.token(row) * dim;
    const bool both = e.pos != nullptr && e.bias != nullptr;
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
      Vec y = load(out + d) + load(pos + d);
      if (both) y += load(e.bias + d);
      store(out + d, y);
    }
    for (; d < dim; ++d) {
      from_float(to_float(out[d]) + pos[d] + (both ? e.bias[d] : 0.0f), out + d);
    }
  }
}

// Numbers of a column are summed by this many, and the sums after that: of a long chain of
// additions the last ones lose digits.
constexpr int64_t kChain = 32;

// Sums of columns in such parts; total and part: [count].
struct ColumnSums {
  float *total, *part;
  int64_t count, pending = 0;

  STMETA_INLINE ColumnSums(float* sums, float* scratch, int64_t columns)
      : total(sums), part(scratch), count(columns) {
    for (int64_t i = 0; i < count; ++i) total[i] = part[i] = 0.0f;
  }

  STMETA_INLINE void flush() {
    for (int64_t i = 0; i < count; ++i) total[i] += part[i];
    for (int64_t i = 0; i < count; ++i) part[i] = 0.0f;
    pending = 0;
  }
  STMETA_INLINE void end_row() {
    if (++pending == kChain) flush();
  }
};

// Columns [begin, end) of the sums of grad: over all rows, and per token.
template <typename T>
STMETA_FN void sum_rows(const EmbedRows& e, int64_t begin, int64_t end, float* scratch) {
  const T* rows = static_cast<const T*>(e.rows) + begin;
  ColumnSums sums(e.sum + begin, scratch, end - begin);
  for (int64_t row = 0; row < e.count; ++row) {
    const T* grad = rows + row * e.dim;
    float* pos = e.grad_pos == nullptr ? nullptr : e.grad_pos + e.token(row) * e.dim + begin;
    int64_t d = 0;
    for (; d + kLanes <= sums.count; d += kLanes) {
      const Vec g = load(grad + d);
      store(sums.part + d, load(sums.part + d) + g);
      if (pos != nullptr) store(pos + d, load(pos + d) + g);
    }
    for (; d < sums.count; ++d) {
      sums.part[d] += to_float(grad[d]);
      if (pos != nullptr) pos[d] += to_float(grad[d]);
    }
    sums.end_row();
  }
  sums.flush();
}

// total += part, numbers [begin, end).
template <typename T>
STMETA_FN void add_part(const void* part, float* total, int64_t begin, int64_t end) {
  const T* source = static_cast<const T*>(part);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) store(total + i, load(total + i) + load(source + i));
  for (; i < end; ++i) total[i] += to_float(source[i]);
}

// Columns [begin, end) of the gradients that follow from G = grad^T xhat and s, the sum of grad:
//   weight = gamma G + s beta^T, in the place of G;  gamma_f = sum_d W G;  beta_f = sum_d W s.
template <typename T>
STMETA_FN void finish_columns(const EmbedNorm& e, int64_t begin, int64_t end, float* scratch) {
  const int64_t count = end - begin;
  const float *gamma = e.gamma + begin, *beta = e.beta + begin;
  ColumnSums of_gamma(e.grad_gamma + begin, scratch, count);
  ColumnSums of_beta(e.grad_beta + begin, scratch + count, count);
  for (int64_t d = 0; d < e.dim; ++d) {
    const T* weight = static_cast<const T*>(e.weight) + d * e.features + begin;
    float* product = e.product + d * e.features + begin;
    const float sum = e.sum[d];
    int64_t f = 0;
    for (; f + kLanes <= count; f += kLanes) {
      const Vec w = load(weight + f), g = load(product + f);
      store(of_gamma.part + f, load(of_gamma.part + f) + w * g);
      store(of_beta.part + f, load(of_beta.part + f) + w * splat(sum));
      store(product + f, g * load(gamma + f) + load(beta + f) * splat(sum));
    }
    for (; f < count; ++f) {
      const float w = to_float(weight[f]), g = product[f];
      of_gamma.part[f] += w * g;
      of_beta.part[f] += w * sum;
      product[f] = g * gamma[f] + beta[f] * sum;
    }
    of_gamma.end_row();
    of_beta.end_row();
  }
  of_gamma.flush();
  of_beta.flush();
}

}  // namespace stmeta::STMETA_ISA
