// CPU implementation of stmeta::temporal_link. Reference: stmeta/ops/memory/temporal_link.py
// check -> allocate -> dispatch dtype -> parallel over rows of the links, or, backward, over heads
#include "cpu/memory/memory_call.h"

namespace stmeta {

// [B, W, N, N]: the numbers of a row side by side.
struct Links {
  const void* data;
  int64_t batch_stride, head_stride, row_stride;
};

struct TemporalLink {
  int64_t batch, heads, rows, padded;  // B, W, N; N rounded up
  int64_t blocks;                      // of kBlock rows, in a head
  Links link, grad;
  Source precedence, weight, grad_precedence;      // [B * W, N]
  void *link_out, *precedence_out, *d_weight_out;  // the new ones, or the gradients
};

constexpr int64_t kBlock = 64;

}  // namespace stmeta

#define STMETA_KERNELS "cpu/memory/temporal_link_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

Links links_of(Tensor& tensor) {
  tensor = with_dense_rows(tensor);
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// [B, W, N], a row for each head.
Source heads_of(Tensor& tensor) {
  tensor = torch::stable::contiguous(tensor);
  return {tensor.const_data_ptr(), tensor.size(2), tensor.size(2)};
}

TemporalLink make_problem(Tensor& link, Tensor& precedence, Tensor& weight) {
  STD_TORCH_CHECK(link.dim() == 4, "temporal_link: link must be [B, W, N, N]");
  TemporalLink p = {};
  p.batch = link.size(0), p.heads = link.size(1), p.rows = link.size(2);
  p.padded = round_up(p.rows, 16);
  p.blocks = (p.rows + kBlock - 1) / kBlock;
  const ScalarType dtype = link.scalar_type();
  const Ints size = {p.batch, p.heads, p.rows};
  check_memory(link, {p.batch, p.heads, p.rows, p.rows}, dtype, "temporal_link: link");
  check_memory(precedence, size, dtype, "temporal_link: precedence");
  check_memory(weight, size, dtype, "temporal_link: write_weight");
  p.link = links_of(link);
  p.precedence = heads_of(precedence);
  p.weight = heads_of(weight);
  return p;
}

std::tuple<Tensor, Tensor> temporal_link(Tensor link, Tensor precedence, Tensor weight) {
  TemporalLink p = make_problem(link, precedence, weight);
  Tensor link_out = like(link, {p.batch, p.heads, p.rows, p.rows});
  Tensor precedence_out = like(link, {p.batch, p.heads, p.rows});
  p.link_out = link_out.mutable_data_ptr();
  p.precedence_out = precedence_out.mutable_data_ptr();
  const auto kernel = with_float_type(link.scalar_type(), "temporal_link: link", [](auto number) {
    return STMETA_BY_ISA(forward<decltype(number)>);
  });
  parallel_flushing(
      p.batch * p.heads * p.blocks, 2 * kBlock * p.rows, 3 * p.padded,
      [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {link_out, precedence_out};
}

std::tuple<Tensor, Tensor, Tensor> temporal_link_backward(Tensor grad_link, Tensor grad_precedence,
                                                          Tensor link, Tensor precedence,
                                                          Tensor weight) {
  TemporalLink p = make_problem(link, precedence, weight);
  const Ints size = {p.batch, p.heads, p.rows};
  check_memory(grad_link, {p.batch, p.heads, p.rows, p.rows}, link.scalar_type(),
               "temporal_link: grad_link");
  check_memory(grad_precedence, size, link.scalar_type(), "temporal_link: grad_precedence");
  p.grad = links_of(grad_link);
  p.grad_precedence = heads_of(grad_precedence);
  Tensor d_link = like(link, {p.batch, p.heads, p.rows, p.rows});
  Tensor d_precedence = like(link, size), d_weight = like(link, size);
  p.link_out = d_link.mutable_data_ptr();
  p.precedence_out = d_precedence.mutable_data_ptr();
  p.d_weight_out = d_weight.mutable_data_ptr();
  if (p.rows == 0) return {d_link, d_precedence, d_weight};
  const auto kernel = with_float_type(link.scalar_type(), "temporal_link: link", [](auto number) {
    return STMETA_BY_ISA(backward<decltype(number)>);
  });
  parallel_flushing(
      p.batch * p.heads, 3 * p.rows * p.rows, 6 * p.padded,
      [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {d_link, d_precedence, d_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("temporal_link", TORCH_BOX(&temporal_link));
  m.impl("temporal_link_backward", TORCH_BOX(&temporal_link_backward));
}

}  // namespace stmeta
