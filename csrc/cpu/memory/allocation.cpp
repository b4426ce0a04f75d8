// CPU implementation of stmeta::allocation. Reference: stmeta/ops/memory/allocation.py
// check -> allocate -> dispatch dtype -> parallel over the rows of the batch
//
// Usages are sorted a byte at a time, from the lowest on: stable, and O(N). The product is a chain,
// so that there is nothing for vectors to do, and one version serves every instruction set. It is a
// double, as in torch's cumprod: hundreds of roundings would add up.
#include <cmath>

#include "cpu/memory/memory_call.h"

namespace stmeta {
namespace {

struct Allocation {
  int64_t batch, rows;
  const void *usage, *grad;  // [B, N]
  const int32_t* order;      // [B, N], of the backward
  int32_t* order_out;
  void* out;  // [B, N], dtype of usage: the weights, or the gradient
};

constexpr int kDigits = 4, kValues = 256;

// Unsigned numbers in the order of the usages: -0 is 0, and NaN comes last, as in torch's sort.
// From the bits: to a float's own comparisons a subnormal number may be 0.
uint32_t order_of(float usage) {
  const uint32_t bits = float_to_bits(usage), size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return 0xffffffffu;
  return bits >> 31 != 0 && size != 0 ? ~bits : size | 0x80000000u;
}

int digit_of(uint64_t item, int digit) { return static_cast<int>(item >> (32 + 8 * digit) & 0xff); }

// Rows by usage, each with its key in the upper half. Gives the one of two arrays that holds them.
const uint64_t* sort_rows(const float* usage, int64_t rows, uint64_t* items, uint64_t* spare) {
  uint32_t counts[kDigits][kValues] = {};
  for (int64_t n = 0; n < rows; ++n) {
    items[n] = uint64_t{order_of(usage[n])} << 32 | static_cast<uint64_t>(n);
    for (int d = 0; d < kDigits; ++d) ++counts[d][digit_of(items[n], d)];
  }
  for (int d = 0; d < kDigits; ++d) {
    if (counts[d][digit_of(items[0], d)] == rows) continue;  // all alike: half of a 16-bit float
    uint32_t place = 0;
    for (uint32_t& count : counts[d]) place += std::exchange(count, place);
    for (int64_t n = 0; n < rows; ++n) spare[counts[d][digit_of(items[n], d)]++] = items[n];
    std::swap(items, spare);
  }
  return items;
}

// A product that no float can show is 0: subnormal numbers would cost a hundred cycles each.
double next_product(double product, float usage) {
  product *= usage;
  return std::abs(product) < 0x1p-160 ? 0.0 : product;  // NaN stays
}

template <typename T>
void read(const void* source, int64_t b, int64_t rows, float* out) {
  const T* data = static_cast<const T*>(source) + b * rows;
  for (int64_t n = 0; n < rows; ++n) out[n] = to_float(data[n]);
}

// Scratch: usage, then two arrays of items.
template <typename T>
void forward(const Allocation& p, int64_t begin, int64_t end, float* usage) {
  const int64_t rows = p.rows;
  uint64_t* items = reinterpret_cast<uint64_t*>(usage + round_line(rows));
  for (int64_t b = begin; b < end; ++b) {
    read<T>(p.usage, b, rows, usage);
    const uint64_t* sorted = sort_rows(usage, rows, items, items + rows);
    int32_t* order = p.order_out + b * rows;
    T* out = static_cast<T*>(p.out) + b * rows;
    double before = 1.0;
    for (int64_t j = 0; j < rows; ++j) {
      const uint32_t row = static_cast<uint32_t>(sorted[j]);
      order[j] = static_cast<int32_t>(row);
      from_float(static_cast<float>((1.0 - usage[row]) * before), out + row);
      before = next_product(before, usage[row]);
    }
  }
}

// With P[j] = prod_{i < j} u[i] and S[j] = sum_{k > j} g[k] (1 - u[k]) prod_{j < i < k} u[i], rows
// in order: du[j] = P[j] (S[j] - g[j]). No quotient, as u may be 0. Scratch: usage, grad, P.
template <typename T>
void backward(const Allocation& p, int64_t begin, int64_t end, float* usage) {
  const int64_t rows = p.rows;
  float* grad = usage + round_line(rows);
  double* before = reinterpret_cast<double*>(grad + round_line(rows));
  for (int64_t b = begin; b < end; ++b) {
    read<T>(p.usage, b, rows, usage);
    read<T>(p.grad, b, rows, grad);
    const int32_t* order = p.order + b * rows;
    T* out = static_cast<T*>(p.out) + b * rows;
    double product = 1.0, after = 0.0;
    for (int64_t j = 0; j < rows; ++j) {
      before[j] = product;
      product = next_product(product, usage[order[j]]);
    }
    for (int64_t j = rows - 1; j >= 0; --j) {
      const int32_t row = order[j];
      from_float(static_cast<float>(before[j] * (after - grad[row])), out + row);
      after = grad[row] * (1.0 - usage[row]) + usage[row] * after;
    }
  }
}

Allocation make_problem(Tensor& usage) {
  STD_TORCH_CHECK(usage.dim() == 2 && usage.is_cpu(), "allocation: usage must be [B, N], a CPU's");
  STD_TORCH_CHECK(usage.size(1) <= INT32_MAX, "allocation: N must be below 2^31");
  usage = torch::stable::contiguous(usage);
  Allocation p = {};
  p.batch = usage.size(0), p.rows = usage.size(1);
  p.usage = usage.const_data_ptr();
  return p;
}

std::tuple<Tensor, Tensor> allocation(Tensor usage) {
  Allocation p = make_problem(usage);
  Tensor out = like(usage, {p.batch, p.rows});
  Tensor order = new_tensor(usage, {p.batch, p.rows}, ScalarType::Int);
  if (p.rows == 0) return {out, order};
  p.out = out.mutable_data_ptr();
  p.order_out = order.mutable_data_ptr<int32_t>();
  const auto kernel = with_float_type(usage.scalar_type(), "allocation: usage",
                                      [](auto number) { return &forward<decltype(number)>; });
  parallel_flushing(
      p.batch, 16 * p.rows, round_line(p.rows) + 4 * p.rows,
      [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {out, order};
}

Tensor allocation_backward(Tensor grad, Tensor usage, Tensor order) {
  Allocation p = make_problem(usage);
  check_memory(grad, {p.batch, p.rows}, usage.scalar_type(), "allocation: grad");
  check_memory(order, {p.batch, p.rows}, ScalarType::Int, "allocation: order");
  grad = torch::stable::contiguous(grad);
  order = torch::stable::contiguous(order);
  p.grad = grad.const_data_ptr();
  p.order = order.const_data_ptr<int32_t>();
  bool inside = true;
  for (int64_t i = 0; i < p.batch * p.rows; ++i) {
    inside &= static_cast<uint32_t>(p.order[i]) < static_cast<uint64_t>(p.rows);
  }
  STD_TORCH_CHECK(inside, "allocation: order must have values in [0, ", p.rows, ")");
  Tensor out = like(usage, {p.batch, p.rows});
  p.out = out.mutable_data_ptr();
  const auto kernel = with_float_type(usage.scalar_type(), "allocation: usage",
                                      [](auto number) { return &backward<decltype(number)>; });
  parallel_flushing(
      p.batch, 8 * p.rows, 4 * round_line(p.rows),
      [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("allocation", TORCH_BOX(&allocation));
  m.impl("allocation_backward", TORCH_BOX(&allocation_backward));
}

}  // namespace stmeta
