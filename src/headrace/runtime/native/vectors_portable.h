// Vectors of 4 floats in the compilers' own terms: SSE2, NEON, or whatever the machine has.

#ifndef HEADRACE_VECTORS_PORTABLE_H
#define HEADRACE_VECTORS_PORTABLE_H

#include "kernel_parts.h"

namespace headrace {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));

struct Portable {
  using Vec = Floats;
  struct Pair {
    Vec first, second;
  };
  static constexpr int kLanes = 4;
  static constexpr int kTile = 8;
  static constexpr int kMixPairs = 4;
  static constexpr float kLeastExponent = -88.0f;  // becomes 0

  static HEADRACE_INLINE Vec zero() { return Vec{}; }
  static HEADRACE_INLINE Vec set(float x) { return Vec{x, x, x, x}; }
  static HEADRACE_INLINE Vec load_vec(const float* p) {
    Vec x;
    memcpy(&x, p, sizeof(x));
    return x;
  }
  static HEADRACE_INLINE void store_vec(float* p, Vec x) { memcpy(p, &x, sizeof(x)); }
  static HEADRACE_INLINE Vec add(Vec a, Vec b) { return a + b; }
  static HEADRACE_INLINE Vec sub(Vec a, Vec b) { return a - b; }
  static HEADRACE_INLINE Vec mul(Vec a, Vec b) { return a * b; }
  static HEADRACE_INLINE Vec div(Vec a, Vec b) { return a / b; }
  static HEADRACE_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  // Products are added to each other first: with few lanes, a sum of many would else lose digits.
  static HEADRACE_INLINE Vec add_products(Pair a, Pair b, Vec c) {
    return c + (a.first * b.first + a.second * b.second);
  }
  // Where one is NaN, these return b, as x86's instructions do.
  static HEADRACE_INLINE Vec min(Vec a, Vec b) { return choose(a < b, a, b); }
  static HEADRACE_INLINE Vec max(Vec a, Vec b) { return choose(a > b, a, b); }
  static HEADRACE_INLINE float sum(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static HEADRACE_INLINE float largest(Vec x) {
    const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
  }
  // Adding 1.5 * 2^23 leaves no bits for a fraction.
  static HEADRACE_INLINE Vec round(Vec x) {
    const Vec big = set(12582912.0f);
    return (x + big) - big;
  }
  static HEADRACE_INLINE Vec times_power_of_two(Vec x, Vec n) {
    const Ints exponent = __builtin_convertvector(n, Ints) + 127;
    return x * (Vec)((Bits)exponent << 23);
  }
  static HEADRACE_INLINE Vec finite(Vec x) { return choose(x == set(-INFINITY), zero(), x); }

  static HEADRACE_INLINE Pair load(const Bfloat16* p) {
    return {(Vec)(widen(p) << 16), (Vec)(widen(p + 4) << 16)};
  }
  static HEADRACE_INLINE Pair load(const Float16* p) {
    return {from_half(widen(p)), from_half(widen(p + 4))};
  }
  static HEADRACE_INLINE Pair load(const float* p) { return {load_vec(p), load_vec(p + 4)}; }

  template <class T>
  static HEADRACE_INLINE Pair load(const T* p, int n) {
    T all[2 * kLanes] = {};
    memcpy(all, p, static_cast<size_t>(n) * sizeof(T));
    return load(all);
  }

  static HEADRACE_INLINE void natural(const void*, const float* sum, float* out) {
    memcpy(out, sum, 2 * kLanes * sizeof(float));
  }

  static HEADRACE_INLINE void reduce(const Vec* v, float* out) {
    HEADRACE_UNROLL
    for (int i = 0; i < kTile; ++i) out[i] = sum(v[i]);
  }

 private:
  static HEADRACE_INLINE Vec choose(Ints which, Vec a, Vec b) {
    return (Vec)((which & (Ints)a) | (~which & (Ints)b));
  }
  template <class T>
  static HEADRACE_INLINE Bits widen(const T* p) {
    return Bits{p[0].bits, p[1].bits, p[2].bits, p[3].bits};
  }
  // Exponent and fraction are moved to their places; a factor mends the bias, also of numbers
  // below the smallest normal one. What was infinite or NaN has the largest exponent.
  static HEADRACE_INLINE Vec from_half(Bits half) {
    const Bits sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    const Vec value = (Vec)(magnitude << 13) * set(5.192296858534828e33f);  // 2^112
    const Bits special = (Bits)((Ints)magnitude > 0x7bff) & 0x7f800000u;
    return (Vec)((Bits)value | special | sign);
  }
};

uint64_t sum_portable(const char* data, size_t bytes) {
  uint64_t sum[8] = {};
  size_t at = 0;
  for (; at + sizeof(sum) <= bytes; at += sizeof(sum)) {
    __builtin_prefetch(data + at + kReadAhead, 0, 2);
    uint64_t line[8];
    memcpy(line, data + at, sizeof(line));
    for (int i = 0; i < 8; ++i) sum[i] += line[i];
  }
  uint64_t all = 0;
  for (; at < bytes; ++at) all += static_cast<unsigned char>(data[at]);
  for (uint64_t one : sum) all += one;
  return all;
}

}  // namespace
}  // namespace headrace

#endif
