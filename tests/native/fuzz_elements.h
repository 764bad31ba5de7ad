// Numbers of 16 and 32 bits, in memory of just their size.

#ifndef HEADRACE_FUZZ_ELEMENTS_H
#define HEADRACE_FUZZ_ELEMENTS_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "headrace_attention.h"

namespace fuzz {

// Rounds to bfloat16 by cutting, which is all that a test needs.
inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);
}

inline float from_bfloat16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float from_float16(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int fraction = half & 1023;
  const float sign = half >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
}

inline uint16_t to_float16(float x) {
  if (std::isnan(x)) return 0x7e00;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::min(std::fabs(x), 65504.0f);
  if (size < std::ldexp(1.0f, -14)) return sign | static_cast<uint16_t>(std::ldexp(size, 24));
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // 0.5 to 1
  const int digits = static_cast<int>(std::ldexp(fraction, 11)) & 1023;
  return static_cast<uint16_t>(sign | (exponent + 14) << 10 | digits);
}

// Elements of a dtype, in memory of just their size, and what numbers they are.
class Elements {
 public:
  Elements(int dtype, int64_t count)
      : dtype_(dtype),
        bytes_(static_cast<size_t>(count) * (dtype == HEADRACE_FLOAT32 ? 4 : 2)),
        numbers_(static_cast<size_t>(count)) {}

  void* data() { return bytes_.data(); }

  void set(int64_t i, float x) {
    if (dtype_ == HEADRACE_FLOAT32) {
      std::memcpy(bytes_.data() + 4 * i, &x, 4);
      numbers_[i] = x;
    } else {
      const uint16_t half = dtype_ == HEADRACE_FLOAT16 ? to_float16(x) : to_bfloat16(x);
      std::memcpy(bytes_.data() + 2 * i, &half, 2);
      numbers_[i] = dtype_ == HEADRACE_FLOAT16 ? from_float16(half) : from_bfloat16(half);
    }
  }

  float get(int64_t i) const { return numbers_[i]; }

 private:
  int dtype_;
  std::vector<char> bytes_;
  std::vector<float> numbers_;
};

}  // namespace fuzz

#endif
