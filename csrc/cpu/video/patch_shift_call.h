// A checked call of patch_shift, for the ops that make its tokens.
#pragma once

#include "common/cpu_host.h"
#include "cpu/video/patch_shift_problem.h"

namespace stmeta {

using Ints = std::vector<int64_t>;
using Doubles = std::vector<double>;

// The numbers of a call, and the memory they point to.
struct Call {
  PatchShift p = {};
  Tensor ids;
  Ints shifts;
  std::vector<int32_t> sources;
  std::vector<float> scale, offset, scale_row, offset_row;
  Buffer<float> weight, bias;

  int64_t scratch() const {  // planes, token, gradient, two windows
    return 3 * p.plane + 2 * (p.padded + 16) + 2 * p.window_floats;
  }
  int64_t work() const { return p.group * p.features; }
};

// Checks the arguments, and lays out the windows. The tensors must outlive the call.
std::unique_ptr<Call> prepare(const Tensor& video, const std::optional<Tensor>& ids,
                              const std::optional<Tensor>& weight,
                              const std::optional<Tensor>& bias, const Ints& patch,
                              const Ints& shifts, const Doubles& scale, const Doubles& offset);

// Makes the tokens of items [begin, end): runs `forward` of patch_shift_kernels.h on all threads.
void make_tokens(const Call& call, const Forward& f, ScalarType video, ScalarType tokens,
                 int64_t begin, int64_t end);

}  // namespace stmeta
