// Vectors of 16 floats. Needs AVX-512 F, BW, VL and DQ, and F16C.

#ifndef HEADRACE_VECTORS_AVX512_H
#define HEADRACE_VECTORS_AVX512_H

#include "kernel_parts.h"

namespace headrace {
namespace {

struct Avx512 {
  using Vec = __m512;
  struct Pair {
    Vec first, second;
  };
  static constexpr int kLanes = 16;
  static constexpr int kTile = 16;
  static constexpr int kMixPairs = 8;
  static constexpr float kLeastExponent = -150.0f;  // becomes 0

  static HEADRACE_INLINE Vec zero() { return _mm512_setzero_ps(); }
  static HEADRACE_INLINE Vec set(float x) { return _mm512_set1_ps(x); }
  static HEADRACE_INLINE Vec load_vec(const float* p) { return _mm512_loadu_ps(p); }
  static HEADRACE_INLINE void store_vec(float* p, Vec x) { _mm512_storeu_ps(p, x); }
  static HEADRACE_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static HEADRACE_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static HEADRACE_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static HEADRACE_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static HEADRACE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static HEADRACE_INLINE Vec add_products(Pair a, Pair b, Vec c) {
    return fma(a.second, b.second, fma(a.first, b.first, c));
  }
  static HEADRACE_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
  static HEADRACE_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static HEADRACE_INLINE float sum(Vec x) { return _mm512_reduce_add_ps(x); }
  static HEADRACE_INLINE float largest(Vec x) { return _mm512_reduce_max_ps(x); }
  static HEADRACE_INLINE Vec round(Vec x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static HEADRACE_INLINE Vec times_power_of_two(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
  static HEADRACE_INLINE Vec finite(Vec x) {
    const __mmask16 infinite = _mm512_cmp_ps_mask(x, set(-INFINITY), _CMP_EQ_OQ);
    return _mm512_mask_blend_ps(infinite, x, zero());
  }

  // Even elements first, then odd ones: a bfloat16 is the upper half of a float.
  static HEADRACE_INLINE Pair widen(__m512i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-65536)))};
  }
  static HEADRACE_INLINE __mmask32 first(int n) { return (__mmask32)((1ull << n) - 1); }

  static HEADRACE_INLINE Pair load(const Bfloat16* p) { return widen(_mm512_loadu_si512(p)); }
  static HEADRACE_INLINE Pair load(const Bfloat16* p, int n) {
    return widen(_mm512_maskz_loadu_epi16(first(n), p));
  }
  static HEADRACE_INLINE Pair load(const Float16* p) {
    const auto* half = reinterpret_cast<const __m256i*>(p);
    return {_mm512_cvtph_ps(_mm256_loadu_si256(half)),
            _mm512_cvtph_ps(_mm256_loadu_si256(half + 1))};
  }
  static HEADRACE_INLINE Pair load(const Float16* p, int n) {
    const __m512i bits = _mm512_maskz_loadu_epi16(first(n), p);
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(bits)),
            _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1))};
  }
  static HEADRACE_INLINE Pair load(const float* p) { return {load_vec(p), load_vec(p + 16)}; }
  static HEADRACE_INLINE Pair load(const float* p, int n) {
    const __mmask32 mask = first(n);
    return {_mm512_maskz_loadu_ps((__mmask16)mask, p),
            _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), p + 16)};
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

  // Sums pairs of vectors, halving what is left of each, until each has one place of the result.
  static HEADRACE_INLINE void reduce(const Vec* v, float* out) {
    Vec four[4];
    HEADRACE_UNROLL
    for (int i = 0; i < 4; ++i) {
      four[i] = fold_4(fold_2(v[4 * i], v[4 * i + 1]), fold_2(v[4 * i + 2], v[4 * i + 3]));
    }
    store_vec(out, fold_lanes(fold_lanes(four[0], four[1]), fold_lanes(four[2], four[3])));
  }

 private:
  static HEADRACE_INLINE Vec fold_2(Vec a, Vec b) {
    return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  static HEADRACE_INLINE Vec fold_4(Vec a, Vec b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
               _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  static HEADRACE_INLINE Vec fold_lanes(Vec a, Vec b) {
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
};

uint64_t sum_avx512(const char* data, size_t bytes) {
  __m512i sum[4];
  for (auto& one : sum) one = _mm512_setzero_si512();
  size_t at = 0;
  for (; at + 256 <= bytes; at += 256) {
    HEADRACE_UNROLL
    for (int i = 0; i < 4; ++i) {
      __builtin_prefetch(data + at + 64 * i + kReadAhead, 0, 2);
      sum[i] = _mm512_add_epi64(sum[i], _mm512_loadu_si512(data + at + 64 * i));
    }
  }
  uint64_t rest = 0;
  for (; at < bytes; ++at) rest += static_cast<unsigned char>(data[at]);
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, _mm512_add_epi64(_mm512_add_epi64(sum[0], sum[1]),
                                             _mm512_add_epi64(sum[2], sum[3])));
  for (uint64_t one : lanes) rest += one;
  return rest;
}

}  // namespace
}  // namespace headrace

#endif
