// Forward and backward of csrc/cuda/memory/temporal_link.cuh on the CPU.
#include "cuda/memory/temporal_link.cuh"

#include "memory_case.h"

using namespace stmeta::temporal_link;

template <typename T>
void run(Case& io) {
  const MemoryCase<T> c(io);
  const Matrix<T> link(io);
  const auto precedence = io.array<T>(), weight = io.array<T>();
  const Matrix<T> grad(io);
  const auto grad_precedence = io.array<T>();

  const Shape s = make_shape(c.batch, c.heads, c.rows, c.tile);
  const auto links = make_links(s, link.storage.data(), link.strides.data());
  const auto v = make_vectors(s, weight.data(), precedence.data());
  std::vector<T> link_out(c.batch * c.heads * c.rows * c.rows);
  auto precedence_out = c.weights();
  forward(s, links, v, link_out.data(), precedence_out.data(), nullptr);
  io.result(link_out);
  io.result(precedence_out);

  std::vector<T> d_link(link_out.size());
  auto d_precedence = c.weights(), d_weight = c.weights();
  const Grads<T> g{make_links(s, grad.storage.data(), grad.strides.data()), grad_precedence.data(),
                   d_link.data(), d_precedence.data(), d_weight.data()};
  auto scratch = scratch_of(scratch_size(s));
  backward(s, links, v, g, scratch.data(), nullptr);
  for (const auto& result : {d_link, d_precedence, d_weight}) io.result(result);
}

STMETA_MEMORY_MAIN(run)
