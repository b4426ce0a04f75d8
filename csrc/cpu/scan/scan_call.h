// The host side of the scans: checks, packed weights, outputs, threads.
#pragma once

#include "cpu/memory/memory_call.h"
#include "cpu/scan/scan_problem.h"

namespace stmeta {

// Elements of a tile, at most. More of them share a load of the weights; fewer leave more of their
// memories, of which the backward has several for each, in the cache that the threads share.
inline int64_t tile_rows(const MemorySizes& s, bool backward) {
  const int64_t bytes = s.rows * s.wide * static_cast<int64_t>(sizeof(float));
  if (!backward || bytes < 48 * 1024) return 16;
  return bytes < 256 * 1024 ? 8 : 4;
}

// Numbers of an fp32 tensor of a scan, dense. `tensor` keeps them alive.
inline const float* scan_data(Tensor& tensor, const Ints& size, const char* name) {
  check_memory(tensor, size, ScalarType::Float, name);
  tensor = torch::stable::contiguous(tensor);
  return tensor.const_data_ptr<float>();
}

// What the forward kept, which the backward only reads.
inline float* scan_kept(Tensor& tensor, const Ints& size, const char* name) {
  return const_cast<float*>(scan_data(tensor, size, name));
}

// The gradient of y, with any strides: that of a sum is one number.
inline void take_grad(Scan& p, const Tensor& grad, const char* name) {
  check_memory(grad, {p.sizes.batch, p.steps, p.hidden + p.read()}, ScalarType::Float, name);
  for (int d = 0; d < 3; ++d) p.grad_strides[d] = grad.stride(d);
  p.grad_y = grad.const_data_ptr<float>();
}

// A new tensor, and where its numbers lie.
inline Tensor scan_output(const Tensor& like_this, const Ints& size, float*& numbers) {
  Tensor out = like(like_this, size);
  numbers = out.mutable_data_ptr<float>();
  return out;
}

// [inner][width], or with `transposed` [width][inner], as panels with `group` rows side by side.
template <typename T>
void pack_rows(const Tensor& matrix, bool transposed, int64_t group, T* to) {
  const int64_t inner = matrix.size(transposed ? 1 : 0), width = matrix.size(transposed ? 0 : 1);
  const T* from = static_cast<const T*>(matrix.const_data_ptr());
  const int64_t row = transposed ? 1 : width, column = transposed ? inner : 1;
  for (int64_t n = 0; n < width; n += kPanel) {
    for (int64_t k = 0; k < inner; k += group) {
      for (int64_t i = n; i < n + kPanel; ++i) {
        for (int64_t j = k; j < k + group; ++j) {
          *to++ = i < width && j < inner ? from[j * row + i * column] : T{};
        }
      }
    }
  }
}

// A matrix, dense fp32 or bf16, as panels in `buffer`.
inline Panels pack(const Tensor& matrix, bool transposed, Buffer<float>& buffer) {
  Panels panels = {};
  panels.inner = matrix.size(transposed ? 1 : 0);
  panels.wide = round_up(matrix.size(transposed ? 0 : 1), kPanel);
  if (matrix.scalar_type() == ScalarType::Float) {
    buffer = Buffer<float>(panels.wide * panels.inner);
    panels.data = buffer.get();
    pack_rows(matrix, transposed, 1, buffer.get());
  } else {
    buffer = Buffer<float>(panels.wide * panels.pairs());
    panels.rounded = reinterpret_cast<const bf16*>(buffer.get());
    pack_rows(matrix, transposed, 2, reinterpret_cast<bf16*>(buffer.get()));
  }
  return panels;
}

// A matrix of weights, dense: fp32, or bf16 where products are to be of bf16 numbers.
inline void take_weights(Tensor& matrix, const Ints& size, ScalarType dtype, const char* name) {
  check_memory(matrix, size, dtype == ScalarType::BFloat16 ? dtype : ScalarType::Float, name);
  matrix = torch::stable::contiguous(matrix);
}

// What forward and backward both need. Kept alive during a call: dense copies and packed weights.
struct ScanInputs {
  Tensor recurrent, interface, previous, c;
  std::optional<Tensor> lengths;
  Buffer<float> packed[2] = {};
};

// Fills in all but the pointers of one direction; `p.sizes` and `p.numbers` are there.
// `transposed`: weights as the forward reads them.
inline void start_call(Scan& p, ScanInputs& t, int64_t steps, bool transposed) {
  const MemorySizes& s = p.sizes;
  p.steps = steps;
  p.hidden = t.c.size(1);
  p.recurrent_size = t.recurrent.size(1);
  check_product("scan: a sequence", {steps, p.hidden});
  check_product("scan: recurrent", {p.hidden, p.recurrent_size});
  p.every = 1;
  while (p.every * p.every < steps) ++p.every;
  p.slots = p.every;
  STD_TORCH_CHECK(p.recurrent_size == p.hidden || p.recurrent_size == p.hidden + p.read(),
                  "scan: recurrent has a wrong shape");
  const ScalarType dtype = t.recurrent.scalar_type();
  take_weights(t.recurrent, {4 * p.hidden, p.recurrent_size}, dtype, "scan: recurrent");
  take_weights(t.interface, {p.numbers, p.hidden}, dtype, "scan: interface");
  p.previous = scan_data(t.previous, {s.batch, s.heads, s.rows}, "scan: weights");
  p.c = scan_data(t.c, {s.batch, p.hidden}, "scan: c");
  if (t.lengths.has_value()) {
    check_memory(*t.lengths, {s.batch}, ScalarType::Long, "scan: lengths");
    t.lengths = torch::stable::contiguous(*t.lengths);
    p.lengths = t.lengths->const_data_ptr<int64_t>();
  }
  p.recurrent = pack(t.recurrent, transposed, t.packed[0]);
  p.interface = pack(t.interface, transposed, t.packed[1]);
}

// Floats of a thread's scratch, for a tile of `rows`, without the memory's own part.
inline int64_t scan_floats(const Scan& p, int64_t rows, bool backward) {
  const MemorySizes& s = p.sizes;
  const int64_t size = s.rows * s.wide, weight_floats = s.heads * s.padded;
  const int64_t gates = 4 * p.hidden + kPanel, heads = p.numbers + kPanel;
  int64_t floats =
      rows * (p.recurrent_size + p.hidden + gates + heads + size + 2 * weight_floats + p.pairs());
  if (backward) {
    floats += rows * (p.recurrent_size + 2 * p.hidden + 2 * kPanel + gates + heads +
                      2 * weight_floats + (p.slots + 1) * size);
  }
  return floats + s.reads * s.wide + 512;
}

// f(first, rows, scratch) over tiles of the batch.
template <typename F>
void over_tiles(const Scan& p, int64_t own_floats, bool backward, const F& f) {
  const int64_t batch = p.sizes.batch;
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t most = tile_rows(p.sizes, backward);
  const int64_t rows = std::min(most, (batch + threads - 1) / threads);
  if (batch == 0 || p.steps == 0) return;
  const int64_t tiles = (batch + rows - 1) / rows;
  torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    const Buffer<float> scratch(scan_floats(p, rows, backward) + own_floats);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * rows;
      f(first, std::min(rows, batch - first), scratch.get());
    }
  });
}

}  // namespace stmeta
