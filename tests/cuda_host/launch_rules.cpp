// The host side of launches, csrc/common/cuda_base.cuh, on the runtime of toolkit/: each line of a
// scenario is a call, and the result of each is a number. Driven by
// tests/ops/rules/test_cuda_host.py.
#include "case_io.h"
#include "common/cuda_base.cuh"
#include "toolkit/cuda_runtime.h"

using namespace stmeta;

void kernel() {}
void not_built() {}

// Numbers of a call: what (0 launch, 1 runs_clusters, 2 resident_blocks, 3 dynamic_limit), device,
// cluster, grid x y z, threads, bytes of dynamic shared memory. Launches 0 = refused or empty.
int64_t call(const int64_t* c, bool built) {
  toolkit::device = static_cast<int>(c[1]);
  const int cluster = static_cast<int>(c[2]), threads = static_cast<int>(c[6]);
  const dim3 grid(c[3], c[4], c[5]);
  const size_t shared = c[7];
  void (*entry)() = built ? kernel : not_built;
  if (c[0] == 1) return runs_clusters(entry, cluster, threads, shared);
  if (c[0] == 2) return resident_blocks(entry, threads, shared);
  if (c[0] == 3) return static_cast<int64_t>(dynamic_limit(entry));
  const int before = toolkit::launches;
  launch_clusters(entry, cluster, grid, threads, shared, nullptr);
  return toolkit::launches - before;
}

int main(int argc, char** argv) {
  Case io(argc, argv);
  const auto setup = io.array<int64_t>();  // declared bytes, largest cluster, built or not
  const auto calls = io.array<int64_t>();
  toolkit::kernels[reinterpret_cast<const void*>(kernel)] = {static_cast<size_t>(setup.at(0)), 1024,
                                                             90};
  toolkit::largest_cluster = static_cast<int>(setup.at(1));
  std::vector<int64_t> results;
  try {
    for (size_t i = 0; i + 8 <= calls.size(); i += 8) {
      results.push_back(call(calls.data() + i, setup.at(2) != 0));
    }
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    io.result(std::vector<char>(text.begin(), text.end()));
    return 0;
  }
  io.result(std::vector<char>());
  io.result(results);
  io.result(std::vector<int64_t>{toolkit::asked, toolkit::last_error});
}
