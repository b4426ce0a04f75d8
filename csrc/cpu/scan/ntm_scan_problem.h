// What ntm_scan's host side hands to its kernels.
#pragma once

#include "cpu/scan/scan_problem.h"

namespace stmeta {

// The first R heads read, the last W write.
struct NtmScan : Scan {
  int64_t per_head;  // numbers of a head: key, strength, sharpness, gate, shifts
  bool read_first, tanh_key, tanh_add;
  float eps;
};

}  // namespace stmeta
