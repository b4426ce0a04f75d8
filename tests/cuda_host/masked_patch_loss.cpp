// Forward and backward of csrc/cuda/masked_patch_loss.cuh on the CPU. Driven by
// tests/ops/test_tokens_cuda.py, which lists the arguments in the same order.
#include "../../csrc/cuda/masked_patch_loss.cuh"

#include "case_io.h"

using namespace stmeta::masked_patch_loss;

template <typename In, typename T>
void run(Case& io) {
  const auto sizes = io.array<int64_t>(), strides = io.array<int64_t>();
  const auto video = io.array<In>();
  const auto pred_sizes = io.array<int64_t>(), pred_strides = io.array<int64_t>();
  const auto pred = io.array<T>();
  auto ids = io.array<int64_t>();
  const auto mask_bytes = io.array<uint8_t>();
  const auto patch = io.array<int64_t>();
  const auto scale = io.array<double>(), offset = io.array<double>();
  const bool norm_pix = io.integer() != 0, by_mask = io.integer() != 0;
  const double eps = io.real();
  const auto grad = io.array<float>();

  const auto mask = std::make_unique<bool[]>(mask_bytes.size());  // std::vector packs bits
  std::copy(mask_bytes.begin(), mask_bytes.end(), mask.get());
  const Problem p =
      stmeta::patch_shift::make_problem(sizes.data(), strides.data(), or_null(ids), pred_sizes[1],
                                        patch, {0, 0, 0}, scale, offset);
  const Options options =
      make_options(p, video.data(), by_mask ? mask.get() : nullptr, norm_pix, eps);
  const auto rows = make_rows(pred.data(), pred_strides.data(), pred_sizes[2]);
  std::vector<float> sums(p.total()), mean(p.total()), rstd(p.total()), loss(1), inverse(1);
  std::vector<T> out(p.total() * pred_sizes[2]);
  forward<In, T>(p, options, video.data(), rows, sums.data(), mean.data(), rstd.data(), loss.data(),
                 inverse.data(), nullptr);
  backward<In, T>(p, options, video.data(), rows, grad.data(), mean.data(), rstd.data(),
                  inverse.data(), out.data(), nullptr);
  io.result(loss);
  io.result(out);
}

int main(int argc, char** argv) {
  Case io(argc, argv);
  const auto types = io.array<char>();
  const std::string name(types.begin(), types.end());
  if (name == "uint8 float32") return run<uint8_t, float>(io), 0;
  if (name == "uint8 bfloat16") return run<uint8_t, __nv_bfloat16>(io), 0;
  if (name == "float32 float32") return run<float, float>(io), 0;
  if (name == "float32 bfloat16") return run<float, __nv_bfloat16>(io), 0;
  if (name == "bfloat16 bfloat16") return run<__nv_bfloat16, __nv_bfloat16>(io), 0;
  throw std::runtime_error("no such types: " + name);
}
