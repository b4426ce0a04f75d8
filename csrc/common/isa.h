// Which instruction set the CPU kernels use, decided once at run time: a wheel must run elsewhere.
// STMETA_CPU=plain|avx2|avx512 in the environment lowers it, for tests and for bug reports. A build
// with STMETA_ONE_ISA has that set alone.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace stmeta {

// `bf16dot`: AVX-512 and its products of bf16 pairs.
enum class Isa { plain, avx2, avx512, bf16dot };

inline Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return avx2 ? Isa::avx2 : Isa::plain;
  return __builtin_cpu_supports("avx512bf16") ? Isa::bf16dot : Isa::avx512;
#else
  return Isa::plain;
#endif
}

#if defined(STMETA_ONE_ISA)
constexpr Isa kOnly = Isa::STMETA_ONE_ISA;
inline bool is_built(Isa isa) { return isa == kOnly; }
#else
inline bool is_built(Isa) { return true; }
#endif

inline const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::bf16dot:
      return "bf16dot";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "plain";
  }
}

// The choice itself: a lower one than the best only by request.
inline std::atomic<Isa>& chosen_isa() {
#if defined(STMETA_ONE_ISA)
  static std::atomic<Isa> chosen = kOnly;
#else
  static std::atomic<Isa> chosen = [] {
    const char* wanted = std::getenv("STMETA_CPU");
    const Isa best = best_isa();
    if (wanted == nullptr) return best;
    Isa named = best;
    for (const Isa isa : {Isa::plain, Isa::avx2, Isa::avx512}) {
      if (std::strcmp(wanted, isa_name(isa)) == 0) named = isa;
    }
    return named < best ? named : best;
  }();
#endif
  return chosen;
}

inline Isa current_isa() { return chosen_isa().load(std::memory_order_relaxed); }

}  // namespace stmeta
