// Compiles one file of CPU kernels once per instruction set, each into its own namespace:
//
//   #define STMETA_KERNELS "cpu/video/patch_shift_kernels.h"  // as seen from csrc
//   #include "common/each_isa.h"
//   ... STMETA_BY_ISA(forward)(problem, begin, end);
//
// With STMETA_BF16DOT defined there is a fourth set, AVX-512 with products of bf16 pairs, in which
// STMETA_DOT is defined. With STMETA_ONE_ISA, the name of a set, that one alone is compiled, for
// quick rounds of edit, build and test (setup.py).
//
// In the kernels' file every function is STMETA_FN or STMETA_INLINE, and lies in the namespace
// stmeta::STMETA_ISA. It calls no function template from outside (std::min and the like): the
// linker could keep a copy that was compiled for a newer CPU.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <utility>

#include "half.h"
#include "isa.h"

#define STMETA_INLINE STMETA_FN inline __attribute__((always_inline))

#if !defined(STMETA_ONE_ISA) || defined(STMETA_ONE_PLAIN)
#define STMETA_ISA plain
#define STMETA_LANES 4
#define STMETA_FN
#include "vec.h"
#include STMETA_KERNELS
#undef STMETA_ISA
#undef STMETA_LANES
#undef STMETA_FN
#endif

#if defined(__x86_64__)
#if !defined(STMETA_ONE_ISA) || defined(STMETA_ONE_AVX2)
#define STMETA_ISA avx2
#define STMETA_LANES 8
#define STMETA_FN __attribute__((target("avx2,fma,f16c")))
#include "vec.h"
#include STMETA_KERNELS
#undef STMETA_ISA
#undef STMETA_LANES
#undef STMETA_FN
#endif

#if !defined(STMETA_ONE_ISA) || defined(STMETA_ONE_AVX512) || \
    (defined(STMETA_ONE_BF16DOT) && !defined(STMETA_BF16DOT))
#define STMETA_ISA avx512
#define STMETA_LANES 16
#define STMETA_FN __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#include "vec.h"
#include STMETA_KERNELS
#undef STMETA_ISA
#undef STMETA_LANES
#undef STMETA_FN
#endif

#if defined(STMETA_BF16DOT) && (!defined(STMETA_ONE_ISA) || defined(STMETA_ONE_BF16DOT))
#define STMETA_ISA bf16dot
#define STMETA_DOT
#define STMETA_LANES 16
#define STMETA_FN \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")))
#include "vec.h"
#include STMETA_KERNELS
#undef STMETA_ISA
#undef STMETA_LANES
#undef STMETA_FN
#undef STMETA_DOT
#elif !defined(STMETA_ONE_ISA) || defined(STMETA_ONE_BF16DOT)
namespace stmeta {
namespace bf16dot = avx512;
}
#endif
#endif

#if defined(STMETA_ONE_ISA)
#define STMETA_BY_ISA(...) (&::stmeta::STMETA_ONE_ISA::__VA_ARGS__)
#elif defined(__x86_64__)
#define STMETA_BY_ISA(...)                                          \
  (current_isa() == Isa::bf16dot  ? &::stmeta::bf16dot::__VA_ARGS__ \
   : current_isa() == Isa::avx512 ? &::stmeta::avx512::__VA_ARGS__  \
   : current_isa() == Isa::avx2   ? &::stmeta::avx2::__VA_ARGS__    \
                                  : &::stmeta::plain::__VA_ARGS__)
#else
#define STMETA_BY_ISA(...) (&::stmeta::plain::__VA_ARGS__)
#endif
