// One step of a lrua_scan for one instruction set, without the memory's own part: what a tile of
// the batch holds, and the heads. No guard: each instruction set includes it.
#include "cpu/memory/lrua_element.h"
#include "cpu/scan/scan_controller.h"

namespace stmeta::STMETA_ISA {

// A tile of a scan, with usage, and working rows of one element.
struct Tile : ScanTile {
  float* usage;                               // [rows][padded]
  float *key, *add, *strength, *gate, *read;  // of one element, padded
};

STMETA_FN inline Tile take_tile(const LruaScan& p, int64_t first, int64_t rows, Scratch& scratch) {
  const MemorySizes& s = p.sizes;
  const int64_t line = round_line(s.heads), vectors = s.heads * s.wide;
  Tile t = {take_scan_tile(p, first, rows, scratch)};
  t.usage = scratch.take(rows * s.padded);
  t.key = scratch.take(vectors);
  t.add = scratch.take(vectors);
  t.read = scratch.take(vectors);
  t.strength = scratch.take(line);
  t.gate = scratch.take(line);
  return t;
}

// ---- heads ----

// Raw heads [R][P] of one element become keys, strengths, gates, in place.
STMETA_FN inline void shape_heads(const LruaScan& p, int64_t at, float* heads) {
  const MemorySizes& s = p.sizes;
  const int64_t width = s.width;
  const bool adds = p.add != nullptr && !p.write_key;  // a written key gets it in `spread_heads`
  for (int64_t r = 0; r < s.heads; ++r) {
    float* head = heads + r * p.per_head;
    const int64_t extra = (at * s.heads + r) * width;
    for (int64_t m = 0; p.key != nullptr && m < width; ++m) head[m] += p.key[extra + m];
    for (int64_t m = 0; adds && m < width; ++m) head[width + m] += p.add[extra + m];
    float* last = head + p.per_head - 2;
    const float x = last[0];
    // softplus, without overflow
    const float soft = (x > 0.0f ? x : 0.0f) + __builtin_log1pf(__builtin_expf(x > 0.0f ? -x : x));
    last[0] = p.strength ? 1.0f + 10.0f * soft : 1.0f;
    last[1] = sigmoid_number(last[1]);
  }
}

// Shaped heads [R][P] of element and step `at` to the padded vectors of the memory.
STMETA_FN inline LruaInputs spread_heads(const LruaScan& p, int64_t at, const float* heads,
                                         const Tile& t, const float* memory,
                                         const float* previous) {
  const MemorySizes& s = p.sizes;
  for (int64_t r = 0; r < s.heads; ++r) {
    const float* head = heads + r * p.per_head;
    const float* written = head + (p.write_key ? 0 : s.width);
    float* add = t.add + r * s.wide;
    read_rows(head, s.width, 1, s.width, s.wide, t.key + r * s.wide);
    read_rows(written, s.width, 1, s.width, s.wide, add);
    if (p.write_key && p.add != nullptr) {
      const float* extra = p.add + (at * s.heads + r) * s.width;
      for (int64_t m = 0; m < s.width; ++m) add[m] += extra[m];
    }
    t.strength[r] = head[p.per_head - 2];
    t.gate[r] = head[p.per_head - 1];
  }
  return {memory, previous, t.key, t.strength, t.gate, t.add};
}

}  // namespace stmeta::STMETA_ISA
