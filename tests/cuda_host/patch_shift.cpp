// Forward and backward of csrc/cuda/video/patch_shift.cuh on the CPU. Driven by
// tests/ops/video/test_patch_shift_cuda.py, which lists the arguments in the same order.
#include "cuda/video/patch_shift.cuh"

#include "case_io.h"

using namespace stmeta::patch_shift;

template <typename In, typename Out>
void run(Case& io) {
  const auto sizes = io.array<int64_t>(), strides = io.array<int64_t>();
  const auto storage = io.array<In>();
  const In* video = storage.data() + io.integer();
  auto ids = io.array<int64_t>();
  const int64_t kept = io.integer();
  auto weight = io.array<float>(), bias = io.array<float>();
  const auto patch = io.array<int64_t>(), shifts = io.array<int64_t>();
  const auto scale = io.array<double>(), offset = io.array<double>();
  const auto eps = static_cast<float>(io.real());
  const auto grad_storage = io.array<Out>();
  const auto grad_strides = io.array<int64_t>();

  const Problem p =
      make_problem(sizes.data(), strides.data(), or_null(ids), kept, patch, shifts, scale, offset);
  const size_t rows = weight.empty() ? 0 : p.total();
  std::vector<Out> tokens(int64_t{p.total()} * p.features);
  std::vector<float> mean(rows), rstd(rows);
  forward(p, video, or_null(weight), or_null(bias), eps, tokens.data(), mean.data(), rstd.data(),
          nullptr);
  io.result(tokens);
  io.result(mean);
  io.result(rstd);

  const BackwardGrid grid(p);
  const auto grad = make_gradient(p, grad_storage.data(), grad_strides.data());
  const Norm norm = make_norm(p, or_null(weight), mean.data(), rstd.data());
  std::vector<float> row_means, partials, sums(weight.size() * 2);
  const bool work = p.total() > 0;  // else the caller returns zeros, as here
  constexpr bool kVideo = !std::is_same_v<In, uint8_t>;
  if (norm.weight && work) {
    if (kVideo) row_means.resize(int64_t{grid.chunks} * p.total() * 2);
    partials.resize(int64_t{grid.blocks} * p.features * 2);
    backward_rows(p, grid, video, grad, norm, or_null(row_means), partials.data(), nullptr);
    for (int i = 0; i < 2; ++i) {
      stmeta::column_sum(partials.data() + i * int64_t{grid.blocks} * p.features,
                         sums.data() + int64_t{i} * p.features, grid.blocks, p.features, nullptr);
    }
  }
  io.result(sums);
  if constexpr (kVideo) {
    std::vector<int> slots(ids.empty() ? 0 : int64_t{p.batch} * p.sites);
    std::vector<In> out(int64_t{p.batch} * p.channels * p.frames * p.height * p.width);
    if (work) {
      backward_video(p, grid, video, grad, norm, or_null(row_means), or_null(slots), out.data(),
                     nullptr);
    }
    io.result(out);
  }
}

int main(int argc, char** argv) {
  Case io(argc, argv);
  const auto types = io.array<char>();
  const std::string name(types.begin(), types.end());
  if (name == "uint8 float32") return run<uint8_t, float>(io), 0;
  if (name == "uint8 bfloat16") return run<uint8_t, __nv_bfloat16>(io), 0;
  if (name == "float32 float32") return run<float, float>(io), 0;
  if (name == "float16 float16") return run<__half, __half>(io), 0;
  throw std::runtime_error("no such types: " + name);
}
