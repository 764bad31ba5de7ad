// Attention of five queries or more to bfloat16 keys: eight queries in the lanes of a vector.
//
// Each query has two lanes, for two pairs of elements that follow each other, so that a score is a
// sum of two lanes, and eight of them cost few moves between lanes. Scores, their maxima and the
// weights stay in the lanes of their queries.
//
// Scores of eight queries and two tokens, a and b, are a vector; a quarter of it is
// [query 2k at a, query 2k + 1 at a, query 2k at b, query 2k + 1 at b]. Weights of two tokens are
// eight pairs of bfloat16, one for each query, which is what PairValues mixes with.

#ifndef HEADRACE_LANES_AVX512_BF16_H
#define HEADRACE_LANES_AVX512_BF16_H

#include "pairs_avx512_bf16.h"

namespace headrace {
namespace {

struct Lanes {
  static constexpr int kQueries = 8;
  static constexpr int kTogether = 4;     // elements of a query that lie side by side
  static constexpr int kTokens = 8;       // whose scores are made at once
  static constexpr int kPerAdvance = 16;  // elements of a key between two prefetches
  static constexpr int kScores = kQueries * kBlock;  // of a group of eight queries

  // Fewer queries than these, or keys of other widths, are better met one by one.
  static bool pay(int64_t queries, int64_t width) {
    return queries > kQueries / 2 && width % kPerAdvance == 0;
  }

  static int64_t groups(int64_t queries) { return (queries + kQueries - 1) / kQueries; }

  // Writes queries in the order of lanes, with zeros for those that a group of eight lacks.
  static void prepare(int64_t queries, int64_t width, const Bfloat16* from, Bfloat16* to) {
    const int64_t all = groups(queries) * kQueries * width;
    memset(to, 0, static_cast<size_t>(all) * sizeof(Bfloat16));
    for (int64_t q = 0; q < queries; ++q) {
      Bfloat16* place = to + q / kQueries * kQueries * width + q % kQueries * kTogether;
      for (int64_t i = 0; i < width; i += kTogether) {
        memcpy(place + i * kQueries, from + q * width + i, kTogether * sizeof(Bfloat16));
      }
    }
  }

  static int64_t advances(int64_t queries, int64_t width, int count) {
    return groups(queries) * ((count + kTokens - 1) / kTokens) * (width / kPerAdvance);
  }

  // Writes the scores of a group, a vector for each two tokens; returns the largest of each lane.
  // Unless scores are plain, they are scaled and capped; those beyond the last token are -inf.
  static HEADRACE_INLINE __m512 score(const Shape& shape, const Bfloat16* query,
                                      const TokenBlock& block, float* scores, Ahead& ahead) {
    __m512 largest = Avx512::set(-INFINITY);
    for (int token = 0; token < block.count; token += kTokens) {
      __m512 two[4];
      score_tile(shape.width, query, block.key + token, two, ahead);
      if (!is_plain(shape)) {
        HEADRACE_UNROLL
        for (auto& some : two) some = scaled<Avx512>(shape, some);
      }
      if (token + kTokens > block.count) hide(two, block.count - token);
      HEADRACE_UNROLL
      for (int i = 0; i < 4; ++i) {
        Avx512::store_vec(scores + 8 * token + 16 * i, two[i]);
        largest = Avx512::max(two[i], largest);
      }
    }
    return largest;
  }

  // Turns a group's scores into weights; takes their maxima and sums into the running ones.
  static HEADRACE_INLINE void weigh(const Shape& shape, const Scratch& scratch, int64_t group,
                                    int count, __m512 largest) {
    float* scores = scratch.scores + group * kScores;
    const bool plain = is_plain(shape);
    largest = Avx512::max(_mm512_permute_ps(largest, 0x4e), largest);
    const __m512i firsts = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13);
    __m512 maximum = _mm512_permutexvar_ps(firsts, largest);
    if (plain) maximum = Avx512::mul(maximum, Avx512::set(shape.scale));
    const int64_t q = group * kQueries;
    const __m512 old = load_8(scratch.maximum + q);
    maximum = Avx512::max(maximum, old);
    const __m512 finite = Avx512::finite(maximum);
    const __m512 factor = exp_of<Avx512>(Avx512::sub(old, finite));
    const __m512i spread = _mm512_setr_epi32(0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7);
    const __m512 less = _mm512_permutexvar_ps(spread, Avx512::mul(finite, Avx512::set(-kLog2E)));
    const __m512 by = Avx512::set(plain ? shape.scale * kLog2E : kLog2E);
    const __m512 sum = weigh_all(scores, count, by, less);
    const __m512 total = Avx512::fma(load_8(scratch.total + q), factor, sum);
    store_8(scratch.maximum + q, maximum);
    store_8(scratch.factor + q, factor);
    store_8(scratch.total + q, total);
  }

 private:
  static HEADRACE_INLINE void score_tile(int64_t width, const Bfloat16* query,
                                         const char* const* keys, __m512* two, Ahead& ahead) {
    __m512 sum[kTokens];
    HEADRACE_UNROLL
    for (int t = 0; t < kTokens; ++t) sum[t] = _mm512_setzero_ps();
    for (int64_t from = 0; from < width; from += kPerAdvance) {
      ahead.advance();
      HEADRACE_UNROLL
      for (int64_t at = from; at < from + kPerAdvance; at += kTogether) {
        const auto all = (__m512bh)_mm512_loadu_si512(query + at * kQueries);
        HEADRACE_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          sum[t] = _mm512_dpbf16_ps(sum[t], all, repeated(keys[t] + 2 * at));
        }
      }
    }
    HEADRACE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const __m512 a = sum[2 * i], b = sum[2 * i + 1];
      two[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
    }
  }

  static HEADRACE_INLINE __m512bh repeated(const char* elements) {
    int64_t bits;
    memcpy(&bits, elements, sizeof(bits));
    return (__m512bh)_mm512_set1_epi64(bits);
  }

  static HEADRACE_INLINE void hide(__m512* two, int visible) {
    for (int i = 0; i < 4; ++i) {
      const int left = visible - 2 * i;  // of the vector's two tokens
      const __mmask16 hidden = left >= 2 ? 0 : left == 1 ? 0xcccc : 0xffff;
      two[i] = _mm512_mask_blend_ps(hidden, two[i], Avx512::set(-INFINITY));
    }
  }

  // The weights take the first half of the scores' place. Returns their sums, twice.
  static HEADRACE_INLINE __m512 weigh_all(float* scores, int count, __m512 by, __m512 less) {
    const __m512i pairs = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    __m512 sum = _mm512_setzero_ps();
    for (int token = 0; token < count; token += 4) {
      const float* from = scores + 8 * token;
      const __m512 first = exp2_of(Avx512::fma(Avx512::load_vec(from), by, less));
      const __m512 second = exp2_of(Avx512::fma(Avx512::load_vec(from + 16), by, less));
      const auto rounded = (__m512i)_mm512_cvtne2ps_pbh(second, first);
      const __m512i weights = _mm512_shuffle_epi8(rounded, pairs);
      _mm512_storeu_si512(scores + 4 * token, weights);
      sum = _mm512_dpbf16_ps(sum, (__m512bh)weights, bfloat16_ones());
    }
    return Avx512::add(sum, _mm512_shuffle_f32x4(sum, sum, 0x4e));
  }

  static HEADRACE_INLINE __m512 load_8(const float* p) {
    return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
  }
  static HEADRACE_INLINE void store_8(float* p, __m512 x) {
    _mm256_storeu_ps(p, _mm512_castps512_ps256(x));
  }
};

// PairValues with the weights of eight queries side by side.
struct LaneValues : PairValues {
  static HEADRACE_INLINE const float* weights_of(const float* scores, int64_t q) {
    return scores + q / Lanes::kQueries * Lanes::kScores + q % Lanes::kQueries;
  }
  static HEADRACE_INLINE Weight weight(const float* weights, int q, int token) {
    return pair_of(weights + token / 2 * Lanes::kQueries + q);
  }
};

void attend_lanes(const Shape& shape, const Scratch& scratch, TokenBlock& block,
                  const TokenBlock* next) {
  const int64_t queries = shape.grouped, width = shape.width;
  auto* query = static_cast<Bfloat16*>(scratch.query);
  if (block.first) {
    begin_sums<Avx512, LaneValues>(shape, scratch);
    Lanes::prepare(queries, width, static_cast<const Bfloat16*>(block.query), query);
  }
  if (block.count == 0) return;
  find_rows(shape, block);
  if (next) touch_pages(*next, shape.row_bytes);
  Ahead keys(next, &Run::key, shape.row_bytes, Lanes::advances(queries, width, block.count));
  for (int64_t group = 0; group < Lanes::groups(queries); ++group) {
    const Bfloat16* some = query + group * Lanes::kQueries * width;
    float* scores = scratch.scores + group * Lanes::kScores;
    const __m512 largest = Lanes::score(shape, some, block, scores, keys);
    Lanes::weigh(shape, scratch, group, block.count, largest);
  }
  mix_block<Avx512, LaneValues>(shape, scratch, block, next);
}

}  // namespace
}  // namespace headrace

#endif
