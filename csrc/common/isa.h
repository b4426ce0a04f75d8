// Which instruction set the CPU kernels use, decided once at run time: a wheel must run elsewhere.
// STMETA_CPU=plain|avx2 in the environment lowers it, for tests and for bug reports.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace stmeta {

enum class Isa { plain, avx2, avx512 };

inline Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx2 ? (avx512 ? Isa::avx512 : Isa::avx2) : Isa::plain;
#else
  return Isa::plain;
#endif
}

// The choice itself: a lower one than the best only by request.
inline std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> chosen = [] {
    const char* wanted = std::getenv("STMETA_CPU");
    const Isa best = best_isa();
    if (wanted == nullptr) return best;
    const Isa named = std::strcmp(wanted, "plain") == 0  ? Isa::plain
                      : std::strcmp(wanted, "avx2") == 0 ? Isa::avx2
                                                         : best;
    return named < best ? named : best;
  }();
  return chosen;
}

inline Isa current_isa() { return chosen_isa().load(std::memory_order_relaxed); }

inline const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "plain";
}

}  // namespace stmeta
