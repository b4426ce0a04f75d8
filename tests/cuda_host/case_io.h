// Arguments from, and results to, the file pair that tests/ops/_harness/cuda_host.py writes and
// reads: one item after another, each an int64 count of bytes and then the bytes.
#pragma once

#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

class Case {
 public:
  Case(int argc, char** argv) {
    if (argc != 3) throw std::runtime_error("usage: PROGRAM INPUT OUTPUT");
    in_.open(argv[1], std::ios::binary);
    out_.open(argv[2], std::ios::binary);
    in_.exceptions(std::ios::failbit | std::ios::badbit);
    out_.exceptions(std::ios::failbit | std::ios::badbit);
  }

  // An allocation of exactly the size of the array, so that AddressSanitizer finds its ends.
  template <typename T>
  std::vector<T> array() {
    int64_t bytes = 0;
    in_.read(reinterpret_cast<char*>(&bytes), sizeof bytes);
    std::vector<T> values(bytes / sizeof(T));
    in_.read(reinterpret_cast<char*>(values.data()), bytes);
    return values;
  }

  int64_t integer() { return array<int64_t>().at(0); }
  double real() { return array<double>().at(0); }

  template <typename T>
  void result(const std::vector<T>& values) {
    const int64_t bytes = values.size() * sizeof(T);
    out_.write(reinterpret_cast<const char*>(&bytes), sizeof bytes);
    out_.write(reinterpret_cast<const char*>(values.data()), bytes);
  }

 private:
  std::ifstream in_;
  std::ofstream out_;
};

// The array's data, or null if it is empty: an optional argument.
template <typename T>
T* or_null(std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}
