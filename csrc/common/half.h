// The 16-bit floats, and their conversions in plain C++ (round to nearest, ties to even).
#pragma once

#include <cstdint>
#include <cstring>

namespace stmeta {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_float(float value) { return value; }
inline float to_float(uint8_t value) { return static_cast<float>(value); }
inline float to_float(bf16 value) { return bits_to_float(uint32_t{value.bits} << 16); }

inline float to_float(fp16 value) {
  const uint32_t sign = uint32_t{value.bits} >> 15 << 31;
  const uint32_t rest = value.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x400u) return bits_to_float(sign | ((rest << 13) + (112u << 23)));
  const float small = static_cast<float>(rest) * 0x1p-24f;  // exact: a subnormal of fp16
  return sign != 0 ? -small : small;
}

inline void from_float(float value, float* out) { *out = value; }

inline void from_float(float value, bf16* out) {
  const uint32_t bits = float_to_bits(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline void from_float(float value, fp16* out) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t rest = bits & 0x7fffffffu;
  uint32_t result;
  if (rest > 0x7f800000u) {
    result = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // rounds to 65536 or more
    result = 0x7c00u;
  } else if (rest < 0x38800000u) {  // subnormal: let the adder round at 2^-24
    const float sum = bits_to_float(rest) + 0.5f;
    result = float_to_bits(sum) - float_to_bits(0.5f);
  } else {
    result = (rest + 0xfffu + (rest >> 13 & 1u) - (112u << 23)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | result);
}

}  // namespace stmeta
