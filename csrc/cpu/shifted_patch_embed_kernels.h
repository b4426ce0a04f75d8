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

// Columns [begin, end) of the sums of grad: over all rows, and per token.
template <typename T>
STMETA_FN void sum_rows(const EmbedRows& e, int64_t begin, int64_t end) {
  const T* rows = static_cast<const T*>(e.rows);
  for (int64_t row = 0; row < e.count; ++row) {
    const T* grad = rows + row * e.dim;
    float* pos = e.grad_pos == nullptr ? nullptr : e.grad_pos + e.token(row) * e.dim;
    int64_t d = begin;
    for (; d + kLanes <= end; d += kLanes) {
      const Vec g = load(grad + d);
      store(e.sum + d, load(e.sum + d) + g);
      if (pos != nullptr) store(pos + d, load(pos + d) + g);
    }
    for (; d < end; ++d) {
      e.sum[d] += to_float(grad[d]);
      if (pos != nullptr) pos[d] += to_float(grad[d]);
    }
  }
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
STMETA_FN void finish_columns(const EmbedNorm& e, int64_t begin, int64_t end) {
  for (int64_t f = begin; f < end; ++f) e.grad_gamma[f] = e.grad_beta[f] = 0.0f;
  for (int64_t d = 0; d < e.dim; ++d) {
    const T* weight = static_cast<const T*>(e.weight) + d * e.features;
    float* product = e.product + d * e.features;
    const float sum = e.sum[d];
    int64_t f = begin;
    for (; f + kLanes <= end; f += kLanes) {
      const Vec w = load(weight + f), g = load(product + f);
      store(e.grad_gamma + f, load(e.grad_gamma + f) + w * g);
      store(e.grad_beta + f, load(e.grad_beta + f) + w * splat(sum));
      store(product + f, g * load(e.gamma + f) + load(e.beta + f) * splat(sum));
    }
    for (; f < end; ++f) {
      const float w = to_float(weight[f]), g = product[f];
      e.grad_gamma[f] += w * g;
      e.grad_beta[f] += w * sum;
      product[f] = g * e.gamma[f] + e.beta[f] * sum;
    }
  }
}

}  // namespace stmeta::STMETA_ISA
