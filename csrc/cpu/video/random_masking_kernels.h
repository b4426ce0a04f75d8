// Kernels of random_masking for one instruction set; csrc/common/each_isa.h includes this file.
//
// Nothing is sorted. The noise of a row becomes integers of the same order, and a bisection finds
// the keep-th smallest: some ten passes that count by vectors.

namespace stmeta::STMETA_ISA {

// Integers in the order of the floats: -0 equals 0, and NaN comes last, as in torch's sort.
STMETA_FN inline void make_keys(const float* noise, int64_t count, int32_t* __restrict keys) {
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;  // not a float's own comparisons: to them a subnormal number may be 0
    __builtin_memcpy(&bits, noise + i, sizeof bits);
    const int32_t size = bits & INT32_MAX;
    const int32_t key = bits < 0 ? -size : bits;
    keys[i] = size > 0x7f800000 ? INT32_MAX : key;
  }
}

STMETA_INLINE int64_t count_up_to(const int32_t* keys, int64_t count, int32_t bound) {
  int32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found += keys[i] <= bound;
  return found;
}

// A bound that at least `keep` keys do not exceed, while fewer than `keep` are below it. keep > 0.
STMETA_FN inline int32_t find_bound(const int32_t* keys, int64_t count, int64_t keep) {
  int32_t smallest = INT32_MAX, largest = INT32_MIN;
  for (int64_t i = 0; i < count; ++i) {
    smallest = keys[i] < smallest ? keys[i] : smallest;
    largest = keys[i] > largest ? keys[i] : largest;
  }
  int64_t low = smallest, high = largest;
  while (low < high) {
    const int64_t middle = low + ((high - low) >> 1);
    const int64_t found = count_up_to(keys, count, static_cast<int32_t>(middle));
    if (found < keep) {
      low = middle + 1;
    } else {
      high = middle;
      if (found == keep) break;  // all of them are kept, whatever lies at the bound
    }
  }
  return static_cast<int32_t>(high);
}

// masked[u] of one row's units: 1 = masked. Of the keys at the bound the first ones are kept.
STMETA_FN inline void mask_units(const int32_t* keys, int64_t count, int64_t keep,
                                 uint8_t* __restrict masked) {
  if (keep == 0) {
    __builtin_memset(masked, 1, static_cast<size_t>(count));
    return;
  }
  const int32_t bound = find_bound(keys, count, keep);
  int64_t below = 0;
  for (int64_t i = 0; i < count; ++i) below += keys[i] < bound;
  int64_t ties = keep - below;
  for (int64_t i = 0; i < count; ++i) {
    const bool tie = keys[i] == bound;
    masked[i] = static_cast<uint8_t>(keys[i] > bound || (tie && ties <= 0));
    ties -= tie;
  }
}

// Rows [begin, end) of the batch. `scratch`: keys, and a byte per unit.
STMETA_FN inline void draw_rows(const Masks& f, int64_t begin, int64_t end, float* scratch) {
  int32_t* keys = reinterpret_cast<int32_t*>(scratch);
  uint8_t* masked_units = reinterpret_cast<uint8_t*>(scratch + f.units);
  const int64_t tokens = f.frames * f.places;
  for (int64_t b = begin; b < end; ++b) {
    make_keys(f.noise + b * f.units, f.units, keys);
    mask_units(keys, f.units, f.keep, masked_units);
    int64_t* kept = f.ids_keep + b * f.kept;
    int64_t* masked = f.ids_masked + b * (tokens - f.kept);
    int64_t* restore = f.ids_restore + b * tokens;
    uint8_t* mask = f.mask + b * tokens;
    int64_t n = 0, kept_so_far = 0;
    for (int64_t t = 0; t < f.frames; ++t) {
      const uint8_t* unit = masked_units + t * f.frame_step;
      for (int64_t s = 0; s < f.places; ++s, ++n, unit += f.unit_step) {
        const bool hidden = *unit != 0;
        const int64_t masked_so_far = n - kept_so_far;
        *(hidden ? masked + masked_so_far : kept + kept_so_far) = n;
        restore[n] = hidden ? f.kept + masked_so_far : kept_so_far;
        mask[n] = *unit;
        kept_so_far += !hidden;
      }
    }
  }
}

}  // namespace stmeta::STMETA_ISA
