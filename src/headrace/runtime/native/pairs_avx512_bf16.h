// Products of pairs of bfloat16, summed in float: how queries meet keys, and weights meet values.

#ifndef HEADRACE_PAIRS_AVX512_BF16_H
#define HEADRACE_PAIRS_AVX512_BF16_H

#include "kernel.h"
#include "vectors_avx512.h"

namespace headrace {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

// 2^x, for x below about 0, within 3e-6, a thousandth of what rounding to bfloat16 changes: 2 to a
// whole number times a polynomial (least largest relative error, and 1 at 0) for 2 to the rest,
// -0.5 to 0.5. Results below the smallest normal number become 0 when rounded to bfloat16.
HEADRACE_INLINE __m512 exp2_of(__m512 x) {
  x = Avx512::max(Avx512::set(-127.0f), x);  // in this order NaN stays
  // Adding 1.5 * 2^23 leaves no bits for a fraction, and the whole number in the lowest ones.
  const auto big = Avx512::set(12582912.0f);
  const auto whole = Avx512::add(x, big);
  const auto rest = Avx512::sub(x, Avx512::sub(whole, big));
  auto p = Avx512::set(0.009582852944731712f);
  p = Avx512::fma(p, rest, Avx512::set(0.055906426161527634f));
  p = Avx512::fma(p, rest, Avx512::set(0.24024099111557007f));
  p = Avx512::fma(p, rest, Avx512::set(0.6931241750717163f));
  p = Avx512::fma(p, rest, Avx512::set(1.0f));
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(whole), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

HEADRACE_INLINE __m512bh bfloat16_ones() { return (__m512bh)_mm512_set1_epi16(0x3f80); }

// Queries meet keys in pairs of bfloat16; the products are exact, and summed in float.
struct PairScores {
  using Element = Bfloat16;
  using Query = Bfloat16;
  using Part = __m512bh;
  static constexpr int kStep = 32;

  static HEADRACE_INLINE Part key(const Bfloat16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static HEADRACE_INLINE Part key(const Bfloat16* p, int n) {
    return (__m512bh)_mm512_maskz_loadu_epi16(Avx512::first(n), p);
  }
  static HEADRACE_INLINE Part query(const Bfloat16* p) { return key(p); }
  static HEADRACE_INLINE __m512 add(__m512 sum, Part q, Part k) {
    return _mm512_dpbf16_ps(sum, q, k);
  }
  static void prepare(const Bfloat16* from, int64_t width, Bfloat16* to) {
    memcpy(to, from, static_cast<size_t>(width) * sizeof(Bfloat16));
    for (int64_t at = width; at < whole_steps(width, kStep); ++at) to[at] = {0};
  }
};

// Weights meet values in pairs of tokens, both in bfloat16. The sum is that of the rounded
// weights, so that the output is still a mean of values.
struct PairValues {
  struct Part {
    __m512bh low, high;
  };
  using Weight = __m512bh;
  static constexpr int kStep = 32;
  static constexpr int kTokens = 2;
  static constexpr int kWeights = 32;

  // The weights, of 16 bits, take the first half of their row of products.
  static HEADRACE_INLINE float weigh(float* row, int vectors, float scale, float maximum) {
    const auto by = Avx512::set(scale * kLog2E), less = Avx512::set(-maximum * kLog2E);
    auto sum = Avx512::zero();
    for (int i = 0; i < vectors; i += 2) {
      const auto first = exp2_of(Avx512::fma(Avx512::load_vec(row + 16 * i), by, less));
      const auto second = exp2_of(Avx512::fma(Avx512::load_vec(row + 16 * i + 16), by, less));
      const __m512bh rounded = _mm512_cvtne2ps_pbh(second, first);
      _mm512_storeu_si512(row + 8 * i, (__m512i)rounded);
      sum = _mm512_dpbf16_ps(sum, rounded, bfloat16_ones());
    }
    return Avx512::sum(sum);
  }

  static HEADRACE_INLINE Part value(const char* const* rows, int64_t at) {
    return interleave(_mm512_loadu_si512(rows[0] + 2 * at), _mm512_loadu_si512(rows[1] + 2 * at));
  }
  static HEADRACE_INLINE Part value(const char* const* rows, int64_t at, int n) {
    const __mmask32 mask = Avx512::first(n);
    return interleave(_mm512_maskz_loadu_epi16(mask, rows[0] + 2 * at),
                      _mm512_maskz_loadu_epi16(mask, rows[1] + 2 * at));
  }
  static HEADRACE_INLINE const float* weights_of(const float* scores, int64_t q) {
    return scores + q * kBlock;
  }
  static HEADRACE_INLINE Weight weight(const float* weights, int q, int token) {
    return pair_of(weights + q * kBlock + token / 2);
  }
  static HEADRACE_INLINE void add(Avx512::Pair& sum, Weight weight, const Part& part) {
    sum.first = _mm512_dpbf16_ps(sum.first, weight, part.low);
    sum.second = _mm512_dpbf16_ps(sum.second, weight, part.high);
  }
  // Interleaving works within quarters of a vector: four elements low, four high, and so on.
  static HEADRACE_INLINE void natural(const float* sum, float* out) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      memcpy(out + 8 * quarter, sum + 4 * quarter, 4 * sizeof(float));
      memcpy(out + 8 * quarter + 4, sum + 16 + 4 * quarter, 4 * sizeof(float));
    }
  }

 protected:
  static HEADRACE_INLINE Weight pair_of(const float* weights) {
    int pair;
    memcpy(&pair, weights, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
  }

 private:
  static HEADRACE_INLINE Part interleave(__m512i even, __m512i odd) {
    return {(__m512bh)_mm512_unpacklo_epi16(even, odd), (__m512bh)_mm512_unpackhi_epi16(even, odd)};
  }
};

}  // namespace
}  // namespace headrace

#endif
