// The kernel for processors with AVX-512 and products of pairs of bfloat16.

#include "variants.h"

#if defined(HEADRACE_HAS_BF16)

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "processor.h"

#define HEADRACE_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"
#include "target_begin.h"

#include "kernel.h"
#include "vectors_avx512.h"

namespace headrace {
namespace {

// From so many queries on, values are mixed in pairs of bfloat16, with the weights rounded to
// bfloat16 as torch's own attention rounds them. Fewer queries leave time for float.
constexpr int64_t kRoundedWeights = 3;

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

// Queries in the lanes of a vector, 8 or 16 of them, each with the same pair of a key's elements:
// no sums over lanes, which for many queries cost more than the products.
template <int kQueries>
struct LaneScores;

// Writes eight tokens' scores of eight queries, a row for each query. In v, each quarter of a
// vector has two queries' scores of two tokens: of one query, then of the other, twice.
HEADRACE_INLINE void write_rows(const __m512* v, float* scores) {
  const __m512 a = _mm512_shuffle_f32x4(v[0], v[1], 0x44),
               b = _mm512_shuffle_f32x4(v[0], v[1], 0xee);
  const __m512 c = _mm512_shuffle_f32x4(v[2], v[3], 0x44),
               d = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
  const __m512 two[4] = {_mm512_shuffle_f32x4(a, c, 0x88), _mm512_shuffle_f32x4(a, c, 0xdd),
                         _mm512_shuffle_f32x4(b, d, 0x88), _mm512_shuffle_f32x4(b, d, 0xdd)};
  const __m512i apart = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  HEADRACE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512 rows = _mm512_permutexvar_ps(apart, two[i]);
    _mm256_storeu_ps(scores + 2 * i * kBlock, _mm512_castps512_ps256(rows));
    _mm256_storeu_ps(scores + (2 * i + 1) * kBlock, _mm512_extractf32x8_ps(rows, 1));
  }
}

// Eight queries: each has two lanes, for two pairs that follow each other.
template <>
struct LaneScores<8> {
  static HEADRACE_INLINE void score(int64_t width, const Bfloat16* query, const char* const* keys,
                                    float* scores) {
    __m512 sum[8];
    HEADRACE_UNROLL
    for (int t = 0; t < 8; ++t) sum[t] = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += 4) {
      const auto all = (__m512bh)_mm512_loadu_si512(query + at * 8);
      HEADRACE_UNROLL
      for (int t = 0; t < 8; ++t)
        sum[t] = _mm512_dpbf16_ps(sum[t], all, repeated(keys[t] + 2 * at));
    }
    __m512 two[4];
    HEADRACE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const __m512 a = sum[2 * i], b = sum[2 * i + 1];
      two[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
    }
    write_rows(two, scores);
  }

  // Where element i of query q goes.
  static int64_t place(int64_t q, int64_t i) { return i / 4 * 32 + q * 4 + i % 4; }

 private:
  static HEADRACE_INLINE __m512bh repeated(const char* elements) {
    int64_t bits;
    memcpy(&bits, elements, sizeof(bits));
    return (__m512bh)_mm512_set1_epi64(bits);
  }
};

// Sixteen queries: a lane each.
template <>
struct LaneScores<16> {
  static HEADRACE_INLINE void score(int64_t width, const Bfloat16* query, const char* const* keys,
                                    float* scores) {
    __m512 sum[8];
    HEADRACE_UNROLL
    for (int t = 0; t < 8; ++t) sum[t] = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += 2) {
      const auto all = (__m512bh)_mm512_loadu_si512(query + at * 16);
      HEADRACE_UNROLL
      for (int t = 0; t < 8; ++t)
        sum[t] = _mm512_dpbf16_ps(sum[t], all, repeated(keys[t] + 2 * at));
    }
    __m512 low[4], high[4];
    HEADRACE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const __m512 a = sum[2 * i], b = sum[2 * i + 1];
      low[i] = _mm512_permutex2var_ps(a, two_of_two(0), b);
      high[i] = _mm512_permutex2var_ps(a, two_of_two(8), b);
    }
    write_rows(low, scores);
    write_rows(high, scores + 8 * kBlock);
  }

  static int64_t place(int64_t q, int64_t i) { return i / 2 * 32 + q * 2 + i % 2; }

 private:
  static HEADRACE_INLINE __m512bh repeated(const char* elements) {
    int bits;
    memcpy(&bits, elements, sizeof(bits));
    return (__m512bh)_mm512_set1_epi32(bits);
  }
  // Two queries of one token, the same two of the other, and so on from a first query.
  static HEADRACE_INLINE __m512i two_of_two(int first) {
    return _mm512_add_epi32(
        _mm512_set1_epi32(first),
        _mm512_setr_epi32(0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23));
  }
};

// How queries meet keys: many in lanes, what is left over one by one.
struct PairedScores {
  using Element = Bfloat16;
  using Query = Bfloat16;
  using Rest = TiledScores<Avx512, PairScores>;

  // Lanes for the next of so many queries, or 0: from there on one by one. Lanes without a query
  // pay as long as most have one.
  static int lanes(int64_t queries, int64_t width) {
    if (width % 16 != 0) return 0;
    return queries >= 13 ? 16 : queries >= 5 ? 8 : 0;
  }

  static void prepare(int64_t queries, int64_t width, const Bfloat16* from, Bfloat16* to) {
    while (const int many = lanes(queries, width)) {
      const int64_t used = queries < many ? queries : many;
      memset(to, 0, static_cast<size_t>(many * width) * sizeof(Bfloat16));
      if (many == 16) {
        place_lanes<16>(used, width, from, to);
      } else {
        place_lanes<8>(used, width, from, to);
      }
      from += used * width;
      to += many * width;
      queries -= used;
    }
    Rest::prepare(queries, width, from, to);
  }

  static void score(int64_t queries, int64_t width, const Bfloat16* query, const TokenBlock& block,
                    float* scores, Ahead& ahead) {
    while (const int many = lanes(queries, width)) {
      if (many == 16) {
        score_lanes<16>(width, query, block, scores, ahead);
      } else {
        score_lanes<8>(width, query, block, scores, ahead);
      }
      query += many * width;
      scores += many * kBlock;
      queries -= queries < many ? queries : many;
    }
    Rest::score(queries, width, query, block, scores, ahead);
  }

  static int64_t advances(int64_t queries, int64_t width, int count) {
    int64_t calls = 0;
    while (const int many = lanes(queries, width)) {
      calls += (count + 7) / 8;
      queries -= queries < many ? queries : many;
    }
    return calls + Rest::advances(queries, width, count);
  }

 private:
  template <int kQueries>
  static void place_lanes(int64_t queries, int64_t width, const Bfloat16* from, Bfloat16* to) {
    constexpr int64_t kTogether = 32 / kQueries;
    for (int64_t q = 0; q < queries; ++q) {
      for (int64_t i = 0; i < width; i += kTogether) {
        memcpy(to + LaneScores<kQueries>::place(q, i), from + q * width + i,
               kTogether * sizeof(Bfloat16));
      }
    }
  }

  template <int kQueries>
  static void score_lanes(int64_t width, const Bfloat16* query, const TokenBlock& block,
                          float* scores, Ahead& ahead) {
    for (int token = 0; token < block.count; token += 8) {
      ahead.advance();
      LaneScores<kQueries>::score(width, query, block.key + token, scores + token);
    }
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

  // The weights, of 16 bits, take the first half of their row of products.
  static HEADRACE_INLINE float weigh(float* row, int vectors, float scale, float maximum) {
    const auto by = Avx512::set(scale), less = Avx512::set(-maximum);
    auto sum = Avx512::zero();
    for (int i = 0; i < vectors; ++i) {
      const auto score = Avx512::fma(Avx512::load_vec(row + 16 * i), by, less);
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(short_exp(score));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + 8 * i), rounded);
      const __m512i back = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);
      sum = Avx512::add(sum, _mm512_castsi512_ps(back));
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
  static HEADRACE_INLINE Weight weight(const float* row, int token) {
    int pair;
    memcpy(&pair, row + token / 2, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
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

 private:
  // exp(x) within 3e-6, a thousandth of what rounding to bfloat16 changes: 2 to the whole part of
  // x * log2(e) times a polynomial (least largest relative error) for 2 to the rest, 0 to 1.
  static HEADRACE_INLINE __m512 short_exp(__m512 x) {
    x = Avx512::mul(x, Avx512::set(1.44269504088896341f));
    const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
    auto p = Avx512::set(0.013534167781472206f);
    p = Avx512::fma(p, rest, Avx512::set(0.05201146379113197f));
    p = Avx512::fma(p, rest, Avx512::set(0.2414427548646927f));
    p = Avx512::fma(p, rest, Avx512::set(0.6930038332939148f));
    p = Avx512::fma(p, rest, Avx512::set(1.0000026226043701f));
    return _mm512_scalef_ps(p, x);  // which takes x's whole part
  }
  static HEADRACE_INLINE Part interleave(__m512i even, __m512i odd) {
    return {(__m512bh)_mm512_unpacklo_epi16(even, odd), (__m512bh)_mm512_unpackhi_epi16(even, odd)};
  }
};

using FewValues = FloatValues<Avx512, Bfloat16>;

void attend_bfloat16(const Shape& shape, const Scratch& scratch, const TokenBlock& block,
                     const TokenBlock* next) {
  if (shape.grouped < kRoundedWeights) {
    attend_block<Avx512, PairedScores, FewValues>(shape, scratch, block, next);
  } else {
    attend_block<Avx512, PairedScores, PairValues>(shape, scratch, block, next);
  }
}

void finish_bfloat16(const Shape& shape, const Scratch& scratch, float* output, float* maximum,
                     float* total) {
  if (shape.grouped < kRoundedWeights) {
    finish_item<Avx512, FewValues>(shape, scratch, output, maximum, total);
  } else {
    finish_item<Avx512, PairValues>(shape, scratch, output, maximum, total);
  }
}

}  // namespace

extern const Variant kAvx512Bf16 = {
    "avx512_bf16",
    has_avx512_bf16,
    {float_kernel<Avx512, float>(),
     float_kernel<Avx512, Float16>(),
     {attend_bfloat16, finish_bfloat16}},
    sum_avx512,
};

}  // namespace headrace

#include "target_end.h"

#endif
