// Writing to a memory and reading from it, for one instruction set, on one batch element, forward
// and backward; sizes and paddings as in memory_kernels.h. No guard: each instruction set includes
// it.

#include "cpu/memory/memory_kernels.h"

namespace stmeta::STMETA_ISA {

struct Access {
  const float* read_weight;   // [R][padded]
  const float* write_weight;  // [W][padded]
  const float* erase;         // [W][wide], or null
  const float* add;           // [W][wide]
  const float* keep;          // [padded], a factor of each row before the writes, or null
  bool read_first;
};

// out [N][wide], which may be `memory`, is what is written; read [R][wide]. kReads and kWrites: -1
// for any number.
template <int kReads, int kWrites>
STMETA_FN void write_and_read_of(const MemorySizes& s, const Access& a, const float* memory,
                                 float* out, float* read) {
  const int64_t wide = s.wide, padded = s.padded, rows = s.rows;
  const int64_t reads = kReads < 0 ? s.reads : kReads, writes = kWrites < 0 ? s.writes : kWrites;
  constexpr int kMost = kReads < 0 ? kMaxHeads : kReads + 1;
  const bool erases = a.erase != nullptr, read_first = a.read_first;
  const bool stores = out != nullptr && (writes > 0 || out != memory);
  for (int64_t m = 0; m < wide; m += kLanes) {
    Vec seen_by[kMost], total[kMost];
    for (int64_t r = 0; r < reads; ++r) seen_by[r] = total[r] = Vec{};
    for (int64_t n = 0; n < rows; ++n) {
      if (n % kChain == 0) {
        for (int64_t r = 0; r < reads; ++r) {
          total[r] += seen_by[r];
          seen_by[r] = Vec{};
        }
      }
      const Vec old = load(memory + n * wide + m);
      Vec sum = {}, now = old;
      if (a.keep != nullptr) now *= splat(a.keep[n]);
      for (int64_t w = 0; w < writes; ++w) {
        const Vec weight = splat(a.write_weight[w * padded + n]);
        if (erases) now -= now * (weight * load(a.erase + w * wide + m));
        sum += weight * load(a.add + w * wide + m);
      }
      now += sum;
      const Vec seen = read_first ? old : now;
      for (int64_t r = 0; r < reads; ++r) {
        seen_by[r] += splat(a.read_weight[r * padded + n]) * seen;
      }
      if (stores) store(out + n * wide + m, now);
    }
    for (int64_t r = 0; r < reads; ++r) store(read + r * wide + m, total[r] + seen_by[r]);
  }
}

STMETA_FN inline void write_and_read(const MemorySizes& s, const Access& a, const float* memory,
                                     float* out, float* read) {
  const auto any = &write_and_read_of<-1, -1>;
  (s.reads == 4 && s.writes == 4   ? &write_and_read_of<4, 4>
   : s.reads == 4 && s.writes == 0 ? &write_and_read_of<4, 0>
   : s.reads == 0 && s.writes == 4 ? &write_and_read_of<0, 4>
   : s.reads == 1 && s.writes == 1 ? &write_and_read_of<1, 1>
                                   : any)(s, a, memory, out, read);
}

struct AccessGrads {
  const float* after;   // of the memory after the writes
  float* before;        // of the memory before them, reads included; may be `after`
  const float* read;    // [R][wide]
  float* read_weight;   // [R][padded], added to
  float* write_weight;  // [W][padded], added to
  float *erase, *add;   // [W][wide]; may be null
};

// kCount rows, from row n on.
template <int kReads, int kWrites, int kCount>
STMETA_INLINE void access_backward_rows(const MemorySizes& s, const Access& a, const float* memory,
                                        const AccessGrads& g, int64_t n) {
  constexpr int kR = kReads < 0 ? kMaxHeads : kReads + 1;
  constexpr int kW = kWrites < 0 ? kMaxHeads : kWrites + 1;
  const int64_t wide = s.wide, padded = s.padded;
  const int64_t reads = kReads < 0 ? s.reads : kReads, writes = kWrites < 0 ? s.writes : kWrites;
  const bool erases = a.erase != nullptr, read_first = a.read_first;
  const float* write = writes > 0 ? a.write_weight + n : nullptr;
  const float* look = reads > 0 ? a.read_weight + n : nullptr;
  Vec of_read[kCount][kR], of_write[kCount][kW];
  for (int i = 0; i < kCount; ++i) {
    for (int64_t r = 0; r < reads; ++r) of_read[i][r] = Vec{};
    for (int64_t w = 0; w < writes; ++w) of_write[i][w] = Vec{};
  }
  for (int64_t m = 0; m < wide; m += kLanes) {
    Vec grad[kCount], from_reads[kCount], seen[kCount], after[kCount], keep[kCount];
    Vec before[kCount][kW + 1];  // times the factors of the writes up to here
    for (int i = 0; i < kCount; ++i) {
      const Vec old = load(memory + (n + i) * wide + m);
      keep[i] = splat(a.keep == nullptr ? 1.0f : a.keep[n + i]);
      grad[i] = load(g.after + (n + i) * wide + m);
      from_reads[i] = Vec{};
      seen[i] = old;
      before[i][0] = old * keep[i];
    }
    for (int64_t w = 0; erases && w < writes; ++w) {
      const Vec erase = load(a.erase + w * wide + m);
      for (int i = 0; i < kCount; ++i) {
        before[i][w + 1] = before[i][w] - before[i][w] * (splat(write[w * padded + i]) * erase);
      }
    }
    if (!read_first) {
      for (int i = 0; i < kCount; ++i) seen[i] = before[i][erases ? writes : 0];
      for (int64_t w = 0; w < writes; ++w) {
        const Vec add = load(a.add + w * wide + m);
        for (int i = 0; i < kCount; ++i) seen[i] += splat(write[w * padded + i]) * add;
      }
    }
    for (int64_t r = 0; r < reads; ++r) {
      const Vec d = load(g.read + r * wide + m);
      for (int i = 0; i < kCount; ++i) {
        of_read[i][r] += d * seen[i];
        from_reads[i] += splat(look[r * padded + i]) * d;
      }
    }
    for (int i = 0; i < kCount; ++i) {
      if (!read_first) grad[i] += from_reads[i];
      after[i] = grad[i];  // times the factors of the writes behind
    }
    for (int64_t w = writes - 1; w >= 0; --w) {
      const Vec add = load(a.add + w * wide + m);
      Vec to_add = load(g.add + w * wide + m);
      for (int i = 0; i < kCount; ++i) {
        of_write[i][w] += grad[i] * add;
        to_add += splat(write[w * padded + i]) * grad[i];
      }
      store(g.add + w * wide + m, to_add);
      if (!erases) continue;
      const Vec erase = load(a.erase + w * wide + m);
      Vec to_erase = load(g.erase + w * wide + m);
      for (int i = 0; i < kCount; ++i) {
        const Vec weight = splat(write[w * padded + i]), d = after[i] * before[i][w];
        of_write[i][w] -= erase * d;
        to_erase -= weight * d;
        after[i] -= after[i] * (weight * erase);
      }
      store(g.erase + w * wide + m, to_erase);
    }
    for (int i = 0; i < kCount; ++i) {
      Vec result = after[i] * keep[i];
      if (read_first) result += from_reads[i];
      store(g.before + (n + i) * wide + m, result);
    }
  }
  if constexpr (kReads == 4 && kWrites == 4 && kLanes == 16 && kCount == 2) {
    Vec sums[16];
    for (int i = 0; i < 2; ++i) {
      for (int h = 0; h < 4; ++h) sums[8 * i + h] = of_read[i][h];
      for (int h = 0; h < 4; ++h) sums[8 * i + 4 + h] = of_write[i][h];
    }
    const Vec all = sum_each(sums);
    for (int i = 0; i < 2; ++i) {
      for (int h = 0; h < 4; ++h) g.read_weight[h * padded + n + i] += all[8 * i + h];
      for (int h = 0; h < 4; ++h) g.write_weight[h * padded + n + i] += all[8 * i + 4 + h];
    }
    return;
  }
  for (int i = 0; i < kCount; ++i) {
    for (int64_t r = 0; r < reads; ++r)
      g.read_weight[r * padded + n + i] += sum_tree(of_read[i][r]);
    for (int64_t w = 0; w < writes; ++w) {
      g.write_weight[w * padded + n + i] += sum_tree(of_write[i][w]);
    }
  }
}

template <int kReads, int kWrites>
STMETA_FN void access_backward_of(const MemorySizes& s, const Access& a, const float* memory,
                                  const AccessGrads& g, Scratch scratch) {
  const int64_t vectors = s.writes * s.wide;
  AccessGrads part = g;  // of kChain rows
  part.erase = a.erase != nullptr ? start_sum(vectors, g.erase, scratch) : nullptr;
  part.add = g.add != nullptr ? start_sum(vectors, g.add, scratch) : nullptr;
  constexpr int kCount = kReads < 0 ? 1 : 2;
  for (int64_t n = 0; n < s.rows;) {
    const int64_t last = n + kChain < s.rows ? n + kChain : s.rows;
    for (; n + kCount <= last; n += kCount) {
      access_backward_rows<kReads, kWrites, kCount>(s, a, memory, part, n);
    }
    for (; n < last; ++n) access_backward_rows<kReads, kWrites, 1>(s, a, memory, part, n);
    if (part.erase != nullptr) move_sum(vectors, part.erase, g.erase);
    if (part.add != nullptr) move_sum(vectors, part.add, g.add);
  }
}

STMETA_FN inline void access_backward(const MemorySizes& s, const Access& a, const float* memory,
                                      const AccessGrads& g, Scratch scratch) {
  const auto any = &access_backward_of<-1, -1>;
  (s.reads == 4 && s.writes == 4   ? &access_backward_of<4, 4>
   : s.reads == 4 && s.writes == 0 ? &access_backward_of<4, 0>
   : s.reads == 0 && s.writes == 4 ? &access_backward_of<0, 4>
   : s.reads == 1 && s.writes == 1 ? &access_backward_of<1, 1>
                                   : any)(s, a, memory, g, scratch);
}

}  // namespace stmeta::STMETA_ISA
