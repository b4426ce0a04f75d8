// What lrua_scan's host side hands to its kernels.
#pragma once

#include "cpu/scan/scan_problem.h"

namespace stmeta {

// R heads, which all read and write.
struct LruaScan : Scan {
  int64_t per_head;     // numbers of a head: key, add (unless the key is written), strength, gate
  int64_t inner_every;  // a segment's memories are kept one every `inner_every` steps, and those of
                        // one part
  LruaOptions options;
  bool strength, write_key;
  const float *key, *add;  // [B, T, R, M] or null
  const float* usage;
  int64_t* rows;                 // out of the forward, in of the backward: [B, T, R]
  float *usage_out, *d_written;  // d_written may be null
};

}  // namespace stmeta
