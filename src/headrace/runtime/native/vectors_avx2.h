// Vectors of 8 floats. Needs AVX2, FMA and F16C.

#ifndef HEADRACE_VECTORS_AVX2_H
#define HEADRACE_VECTORS_AVX2_H

#include "kernel_parts.h"

namespace headrace {
namespace {

struct Avx2 {
  using Vec = __m256;
  struct Pair {
    Vec first, second;
  };
  static constexpr int kLanes = 8;
  static constexpr int kTile = 8;
  static constexpr int kMixPairs = 4;
  static constexpr float kLeastExponent = -88.0f;  // becomes 0

  static HEADRACE_INLINE Vec zero() { return _mm256_setzero_ps(); }
  static HEADRACE_INLINE Vec set(float x) { return _mm256_set1_ps(x); }
  static HEADRACE_INLINE Vec load_vec(const float* p) { return _mm256_loadu_ps(p); }
  static HEADRACE_INLINE void store_vec(float* p, Vec x) { _mm256_storeu_ps(p, x); }
  static HEADRACE_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static HEADRACE_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static HEADRACE_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static HEADRACE_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  static HEADRACE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static HEADRACE_INLINE Vec add_products(Pair a, Pair b, Vec c) {
    return fma(a.second, b.second, fma(a.first, b.first, c));
  }
  static HEADRACE_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
  static HEADRACE_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static HEADRACE_INLINE float sum(Vec x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static HEADRACE_INLINE float largest(Vec x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  static HEADRACE_INLINE Vec round(Vec x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static HEADRACE_INLINE Vec times_power_of_two(Vec x, Vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return mul(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  static HEADRACE_INLINE Vec finite(Vec x) {
    return _mm256_andnot_ps(_mm256_cmp_ps(x, set(-INFINITY), _CMP_EQ_OQ), x);
  }

  // Even elements first, then odd ones: a bfloat16 is the upper half of a float.
  static HEADRACE_INLINE Pair load(const Bfloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-65536)))};
  }
  static HEADRACE_INLINE Pair load(const Float16* p) {
    const auto* half = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(half)), _mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
  }
  static HEADRACE_INLINE Pair load(const float* p) { return {load_vec(p), load_vec(p + 8)}; }

  template <class T>
  static HEADRACE_INLINE Pair load(const T* p, int n) {
    T all[2 * kLanes] = {};
    memcpy(all, p, static_cast<size_t>(n) * sizeof(T));
    return load(all);
  }

  static HEADRACE_INLINE void natural(const Bfloat16*, const float* sum, float* out) {
    for (int i = 0; i < kLanes; ++i) {
      out[2 * i] = sum[i];
      out[2 * i + 1] = sum[kLanes + i];
    }
  }
  static HEADRACE_INLINE void natural(const void*, const float* sum, float* out) {
    memcpy(out, sum, 2 * kLanes * sizeof(float));
  }

  static HEADRACE_INLINE void reduce(const Vec* v, float* out) {
    const Vec a = fold_4(fold_2(v[0], v[1]), fold_2(v[2], v[3]));
    const Vec b = fold_4(fold_2(v[4], v[5]), fold_2(v[6], v[7]));
    store_vec(out, add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)));
  }

 private:
  static HEADRACE_INLINE Vec fold_2(Vec a, Vec b) {
    return add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  }
  static HEADRACE_INLINE Vec fold_4(Vec a, Vec b) {
    const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
    return add(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
               _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  }
};

uint64_t sum_avx2(const char* data, size_t bytes) {
  __m256i sum[4];
  for (auto& one : sum) one = _mm256_setzero_si256();
  size_t at = 0;
  for (; at + 128 <= bytes; at += 128) {
    __builtin_prefetch(data + at + kReadAhead, 0, 2);
    __builtin_prefetch(data + at + 64 + kReadAhead, 0, 2);
    HEADRACE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto* place = reinterpret_cast<const __m256i*>(data + at + 32 * i);
      sum[i] = _mm256_add_epi64(sum[i], _mm256_loadu_si256(place));
    }
  }
  uint64_t rest = 0;
  for (; at < bytes; ++at) rest += static_cast<unsigned char>(data[at]);
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(
      reinterpret_cast<__m256i*>(lanes),
      _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3])));
  return rest + lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

}  // namespace
}  // namespace headrace

#endif
