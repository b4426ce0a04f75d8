// CPU implementation of stmeta::locality_attention. Reference:
// stmeta/ops/video/locality_attention.py check -> allocate -> dispatch dtype -> parallel over
// (clip, head)
#include "common/cpu_host.h"
#include "cpu/video/locality_attention_problem.h"

#define STMETA_KERNELS "cpu/video/locality_attention_kernels.h"
#define STMETA_BF16DOT
#include "common/each_isa.h"

namespace stmeta {

#if defined(__x86_64__) && (!defined(STMETA_ONE_ISA) || defined(STMETA_ONE_BF16DOT))
// bf16 in pairs where the CPU multiplies them, else in fp32.
namespace bf16dot {
template <typename T>
using PolicyOf = std::conditional_t<std::is_same_v<T, bf16>, Dot, Plain>;
}
#endif

namespace {

using Kernel = void (*)(const Attention&, int64_t, int64_t, float*);

template <typename T>
Kernel forward_kernel(T) {
#if defined(STMETA_ONE_BF16DOT)
  return &bf16dot::forward<bf16dot::PolicyOf<T>, T>;
#elif defined(STMETA_ONE_ISA)
  return &STMETA_ONE_ISA::forward<STMETA_ONE_ISA::Plain, T>;
#else
#if defined(__x86_64__)
  if (current_isa() == Isa::bf16dot) return &bf16dot::forward<bf16dot::PolicyOf<T>, T>;
  if (current_isa() == Isa::avx512) return &avx512::forward<avx512::Plain, T>;
  if (current_isa() == Isa::avx2) return &avx2::forward<avx2::Plain, T>;
#endif
  return &plain::forward<plain::Plain, T>;
#endif
}

template <typename T>
Kernel backward_kernel(T) {
#if defined(STMETA_ONE_BF16DOT)
  return &bf16dot::backward<bf16dot::PolicyOf<T>, T>;
#elif defined(STMETA_ONE_ISA)
  return &STMETA_ONE_ISA::backward<STMETA_ONE_ISA::Plain, T>;
#else
#if defined(__x86_64__)
  if (current_isa() == Isa::bf16dot) return &bf16dot::backward<bf16dot::PolicyOf<T>, T>;
  if (current_isa() == Isa::avx512) return &avx512::backward<avx512::Plain, T>;
  if (current_isa() == Isa::avx2) return &avx2::backward<avx2::Plain, T>;
#endif
  return &plain::backward<plain::Plain, T>;
#endif
}

Attention make_problem(const Tensor& qkv, const Tensor& temperature, bool exclude_self) {
  STD_TORCH_CHECK(qkv.dim() == 5 && qkv.size(2) == 3 &&
                      (qkv.stride(4) == 1 || qkv.size(4) == 1 || qkv.numel() == 0),
                  "locality_attention: qkv must be [B, N, 3, H, E] with a dense last axis");
  STD_TORCH_CHECK(temperature.dim() == 1 && temperature.size(0) == qkv.size(3) &&
                      temperature.is_contiguous() && temperature.is_cpu() &&
                      temperature.scalar_type() == ScalarType::Float,
                  "locality_attention: temperature must be [H] float32 on the CPU");
  check_product("locality_attention: qkv", {qkv.size(1), qkv.size(4)});
  Attention a = {};
  a.qkv = qkv.const_data_ptr();
  a.temperature = temperature.const_data_ptr<float>();
  a.batch = qkv.size(0);
  a.tokens = qkv.size(1);
  a.exclude_self = exclude_self && a.tokens > 1;  // a lone token sees itself
  a.heads = qkv.size(3);
  a.width = qkv.size(4);
  for (int i = 0; i < 4; ++i) a.stride[i] = qkv.stride(i);
  a.padded = round_up(a.tokens, 32);
  a.wide = round_up(a.width, 16);
  return a;
}

Tensor dense_rows(const Tensor& tensor) {
  return tensor.size(tensor.dim() - 1) <= 1 || tensor.stride(tensor.dim() - 1) == 1
             ? tensor
             : torch::stable::contiguous(tensor);
}

void run(const Attention& a, Kernel kernel) {
  const int64_t matrix = a.padded * a.wide;
  const int64_t scratch = 6 * matrix + kRows * (a.padded + 4 * a.wide) + 64;
  const int64_t few = std::min<int64_t>(a.tokens, 256);  // more are as many to `parallel`
  parallel_flushing(
      a.batch * a.heads, few * few * a.width, scratch,
      [&](int64_t begin, int64_t end, float* floats) { kernel(a, begin, end, floats); });
}

std::tuple<Tensor, Tensor> locality_attention(Tensor qkv, Tensor temperature, bool exclude_self) {
  qkv = dense_rows(qkv);
  temperature = torch::stable::contiguous(temperature);
  Attention a = make_problem(qkv, temperature, exclude_self);
  Tensor out = new_tensor(qkv, {a.batch, a.tokens, a.heads, a.width}, qkv.scalar_type());
  Tensor stats = new_tensor(qkv, {a.batch, a.heads, a.tokens, 2}, ScalarType::Float);
  if (out.numel() == 0) return {out, stats};
  a.out = out.mutable_data_ptr();
  a.stats = stats.mutable_data_ptr<float>();
  run(a, with_float_type(qkv.scalar_type(), "locality_attention: qkv",
                         [](auto t) { return forward_kernel(t); }));
  return {out, stats};
}

std::tuple<Tensor, Tensor> locality_attention_backward(Tensor grad, Tensor qkv, Tensor temperature,
                                                       Tensor out, Tensor stats,
                                                       bool exclude_self) {
  qkv = dense_rows(qkv);
  temperature = torch::stable::contiguous(temperature);
  grad = torch::stable::contiguous(torch::stable::to(grad, qkv.scalar_type()));
  out = torch::stable::contiguous(out);
  stats = torch::stable::contiguous(stats);
  Attention a = make_problem(qkv, temperature, exclude_self);
  STD_TORCH_CHECK(grad.numel() == a.batch * a.tokens * a.heads * a.width &&
                      out.numel() == grad.numel() && out.scalar_type() == qkv.scalar_type() &&
                      stats.numel() == 2 * a.batch * a.heads * a.tokens,
                  "locality_attention: grad and out must be [B, N, H, E], stats [B, H, N, 2]");
  Tensor grad_qkv = new_tensor(qkv, {a.batch, a.tokens, 3, a.heads, a.width}, qkv.scalar_type());
  Tensor grad_temperature = new_tensor(qkv, {a.heads}, ScalarType::Float);
  float* sum = grad_temperature.mutable_data_ptr<float>();
  std::fill_n(sum, a.heads, 0.0f);
  if (grad_qkv.numel() == 0) return {grad_qkv, grad_temperature};
  const Buffer<float> partial(a.batch * a.heads);
  a.out = out.mutable_data_ptr();
  a.stats = stats.mutable_data_ptr<float>();
  a.grad = grad.const_data_ptr();
  a.grad_qkv = grad_qkv.mutable_data_ptr();
  a.grad_temperature = partial.get();
  run(a, with_float_type(qkv.scalar_type(), "locality_attention: qkv",
                         [](auto t) { return backward_kernel(t); }));
  for (int64_t h = 0; h < a.heads; ++h) {
    for (int64_t b = 0; b < a.batch; ++b) sum[h] += partial[b * a.heads + h];
  }
  return {grad_qkv, grad_temperature};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("locality_attention", TORCH_BOX(&locality_attention));
  m.impl("locality_attention_backward", TORCH_BOX(&locality_attention_backward));
}

}  // namespace stmeta
