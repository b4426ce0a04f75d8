// Between torch's stable ABI and device code: current stream, dtypes, data pointers.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "cuda_base.cuh"

namespace stmeta {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// While it lives, the device of `tensor` is the current one; `stream` is torch's current stream.
struct DeviceScope {
  explicit DeviceScope(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<Stream>(current);
  }
  torch::stable::accelerator::DeviceGuard guard;
  Stream stream;
};

// Calls f with a zero of the device type of a floating point dtype; `what` names the tensor.
template <typename F>
void with_device_float(ScalarType dtype, const char* what, F&& f) {
  if (dtype == ScalarType::Float) return f(float{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{});
  STD_TORCH_CHECK(dtype == ScalarType::Half, what, " must be float32, bfloat16 or float16, got ",
                  torch::headeronly::toString(dtype));
  f(__half{});
}

// The same, and uint8.
template <typename F>
void with_device_video(ScalarType dtype, const char* what, F&& f) {
  if (dtype == ScalarType::Byte) return f(uint8_t{});
  with_device_float(dtype, what, f);
}

// The elements of an optional or empty tensor; null if there are none.
template <typename T>
T* data(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : static_cast<T*>(tensor.data_ptr());
}

template <typename T>
T* data(const std::optional<Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

// A contiguous tensor of `dtype`; the tensor itself where it is one already.
inline std::optional<Tensor> contiguous_as(const std::optional<Tensor>& tensor, ScalarType dtype) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(torch::stable::to(*tensor, dtype));
}

// Kernels of rows want the elements of a row side by side; other strides are left as they are.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor
                                                            : torch::stable::contiguous(tensor);
}

// Whether a tensor, which must be fp32 or of `dtype`, is fp32.
inline bool is_single(const Tensor& tensor, ScalarType dtype, const char* what) {
  const ScalarType own = tensor.scalar_type();
  STD_TORCH_CHECK(own == ScalarType::Float || own == dtype, what, " must be float32 or ",
                  torch::headeronly::toString(dtype), ", got ", torch::headeronly::toString(own));
  return own == ScalarType::Float;
}

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

inline Tensor zeros(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_zeros(like, sizes, dtype);
}

}  // namespace stmeta
