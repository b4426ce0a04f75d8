// Forward and backward of csrc/cuda/gather_tokens.cuh on the CPU. Driven by
// tests/ops/test_tokens_cuda.py, which lists the arguments in the same order.
#include "../../csrc/cuda/gather_tokens.cuh"

#include "case_io.h"

using namespace stmeta::gather_tokens;

template <typename T, typename P>
void run(Case& io) {
  const auto sizes = io.array<int64_t>();  // B, N, D, K
  const int64_t batch = sizes[0], tokens = sizes[1], width = sizes[2], kept = sizes[3];
  const auto x_strides = io.array<int64_t>();
  const auto x = io.array<T>();
  const auto pos_strides = io.array<int64_t>();  // the first is 0
  auto pos = io.array<P>();
  const auto ids = io.array<int64_t>(), restore = io.array<int64_t>();
  const auto grad_strides = io.array<int64_t>();
  const auto grad = io.array<T>();
  const auto needs = io.array<int64_t>();

  std::vector<T> out(batch * kept * width), grad_x(needs[0] * batch * tokens * width);
  std::vector<float> grad_pos(needs[1] * tokens * width);
  const P* table = or_null(pos);
  forward<T, P>(make_rows(x.data(), x_strides.data(), width),
                make_rows(table, pos_strides.data(), width), ids.data(), batch, tokens, kept, width,
                out.data(), nullptr);
  backward<T>(make_rows(grad.data(), grad_strides.data(), width), restore.data(), batch, tokens,
              kept, width, or_null(grad_x), or_null(grad_pos), nullptr);
  io.result(out);
  io.result(grad_x);
  io.result(grad_pos);
}

int main(int argc, char** argv) {
  Case io(argc, argv);
  const auto types = io.array<char>();
  const std::string name(types.begin(), types.end());
  if (name == "float32 float32") return run<float, float>(io), 0;
  if (name == "float16 float32") return run<__half, float>(io), 0;
  if (name == "bfloat16 float32") return run<__nv_bfloat16, float>(io), 0;
  if (name == "bfloat16 bfloat16") return run<__nv_bfloat16, __nv_bfloat16>(io), 0;
  throw std::runtime_error("no such types: " + name);
}
