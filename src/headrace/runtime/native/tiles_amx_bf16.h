// Attention to bfloat16 in tiles: see tile_registers.h for what a tile holds.
//
// Scores. The pairs of a key are its elements as they lie in memory, so that 16 keys are a tile
// without being moved; queries are laid out once for many blocks. A tile of scores is stored
// without gaps, [tokens, queries], so that a vector holds all queries at 16 / queries tokens.
//
// Weights become float rows, [queries, tokens], rounded to bfloat16: a float's upper half is its
// bfloat16, and its lower half is zero. One or two queries leave room for rows of what rounding
// took off, so that their weights have twice the digits.
//
// Values. Pairs would have to be of two tokens, but elements of two tokens do not lie side by side.
// Instead a pair is two elements of one token: with pairs (weight, 0) a product of tiles gives the
// sums of even elements, and with (0, weight) those of odd ones. The rows of weights are both: as
// they are, and read from two bytes further on. No value is moved either, at the cost of twice the
// products, which leave the cores' other units free. Only values that are not finite need more:
// times 0, they spoil their neighbours' sums, so that such sums are made anew without tiles.

#ifndef HEADRACE_TILES_AMX_BF16_H
#define HEADRACE_TILES_AMX_BF16_H

#include "lines_ahead.h"
#include "pairs_avx512_bf16.h"
#include "tile_registers.h"

namespace headrace {
namespace {

// Lines that are prefetched at a time: with a tile of keys, in all while a block is weighed, and
// with a tile of values. For heads of 128 elements, that makes about a block.
constexpr int kKeyLines = 10;
constexpr int kWeighLines = 64;
constexpr int kValueLines = 20;

constexpr int kTilesOfBlock = kBlock / kTileRows;

// The order of sums: even elements, then odd ones.
using TileSums = FloatValues<Avx512, Bfloat16>;

// Other widths are better attended to without tiles.
inline bool tiles_pay(const Shape& shape) { return shape.width % (kTileRowBytes / 2) == 0; }

// How many queries share a tile: as few as there are, up to a power of 2.
inline int queries_of_tile(int64_t grouped) {
  int queries = 1;
  while (queries < grouped && queries < kTileRows) queries *= 2;
  return queries;
}

// How many rows of weights a query has.
constexpr int weight_rows(int queries) { return queries <= 2 ? 2 : 1; }

template <int kQueries>
struct Tiles {
  static constexpr int kSums = 2 * kTileRows;  // elements of a value that are mixed at once
  static constexpr int kParts = weight_rows(kQueries);
  static constexpr int kRows = kParts * kQueries;  // of weights
  // Scores of a group; a float more is read with the weights of its last token.
  static constexpr int64_t kScores = kQueries * kBlock + kTileRows;

  static int64_t groups(int64_t queries) { return (queries + kQueries - 1) / kQueries; }
  static float* scores_of(const Scratch& scratch, int64_t group) {
    return scratch.scores + group * kScores;
  }
  // In place of the scores, unless there are more weights than scores.
  static float* weights_of(const Scratch& scratch, int64_t group) {
    return scores_of(scratch, group) + (kParts > 1 ? kQueries * kBlock : 0);
  }

  static void attend(const Shape& shape, const Scratch& scratch, TokenBlock& block,
                     const TokenBlock* next) {
    auto* query = static_cast<Bfloat16*>(scratch.query);
    if (block.first) {
      begin_sums<Avx512, TileSums>(shape, scratch);
      prepare(shape, static_cast<const Bfloat16*>(block.query), query);
    }
    if (block.count == 0) return;
    if (block.run_count > 1 || block.count % kTileRows != 0) find_rows(shape, block);
    if (next) touch_pages(*next, shape.row_bytes);
    LinesAhead ahead(block, next, shape.row_bytes);
    for (int64_t group = 0; group < groups(shape.grouped); ++group) {
      score(shape, query + group * kQueries * shape.width, block, scores_of(scratch, group), ahead);
    }
    for (int64_t group = 0; group < groups(shape.grouped); ++group) {
      weigh(shape, scratch, group, block.count, ahead);
    }
    mix(shape, scratch, block, ahead);
  }

 private:
  // Lays out queries as [pairs of elements, queries], with zeros for those that a group lacks.
  static void prepare(const Shape& shape, const Bfloat16* from, Bfloat16* to) {
    const int64_t width = shape.width, all = groups(shape.grouped) * kQueries * width;
    memset(to, 0, static_cast<size_t>(all) * sizeof(Bfloat16));
    for (int64_t q = 0; q < shape.grouped; ++q) {
      Bfloat16* place = to + q / kQueries * kQueries * width + q % kQueries * 2;
      for (int64_t i = 0; i < width; i += 2) {
        memcpy(place + i * kQueries, from + q * width + i, 2 * sizeof(Bfloat16));
      }
    }
  }

  // ---- scores ----

  static HEADRACE_INLINE TileRows keys(const Shape& shape, const TokenBlock& block, int token) {
    return {block, block.runs[0].key, block.key, token, shape.row_bytes};
  }

  static HEADRACE_INLINE void score(const Shape& shape, const Bfloat16* query,
                                    const TokenBlock& block, float* scores, LinesAhead& ahead) {
    finish_stores(query);
    for (int token = 0; token < block.count; token += 2 * kTileRows) {
      const bool two = token + kTileRows < block.count;
      const TileRows first = keys(shape, block, token);
      const TileRows second = two ? keys(shape, block, token + kTileRows) : first;
      _tile_zero(0);
      _tile_zero(1);
      for (int64_t at = 0; at < shape.row_bytes; at += kTileRowBytes) {
        _tile_loadd(2, reinterpret_cast<const char*>(query) + at * kQueries, 4 * kQueries);
        first.load(at);
        _tile_dpbf16ps(0, 3, 2);
        ahead.prefetch<kKeyLines>();
        if (two) {
          second.load(at);
          _tile_dpbf16ps(1, 3, 2);
        }
        ahead.prefetch<kKeyLines>();
      }
      _tile_stored(0, scores + token * kQueries, 4 * kQueries);
      if (two) _tile_stored(1, scores + (token + kTileRows) * kQueries, 4 * kQueries);
    }
  }

  // ---- weights ----

  // Turns a group's scores into weights; takes their maxima and sums into the running ones.
  static HEADRACE_INLINE void weigh(const Shape& shape, const Scratch& scratch, int64_t group,
                                    int count, LinesAhead& ahead) {
    float* scores = scores_of(scratch, group);
    float* weights = weights_of(scratch, group);
    const int tiles = (count + kTileRows - 1) / kTileRows;
    const bool plain = is_plain(shape);
    __m512 maximum = largest(shape, scores, count, tiles * kQueries);
    if (plain) maximum = Avx512::mul(maximum, Avx512::set(shape.scale));
    const int64_t q = group * kQueries;
    const __m512 old = spread(scratch.maximum + q);
    maximum = Avx512::max(maximum, old);
    const __m512 finite = Avx512::finite(maximum);
    const __m512 factor = exp_of<Avx512>(Avx512::sub(old, finite));
    const __m512 less = Avx512::mul(finite, Avx512::set(-kLog2E));
    const __m512 by = Avx512::set(plain ? shape.scale * kLog2E : kLog2E);
    __m512 sum = Avx512::zero();
    for (int tile = 0; tile < tiles; ++tile) {
      const float* from = scores + tile * kTileRows * kQueries;
      __m512 parts[kRows], rows[kRows];
      HEADRACE_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        const auto weight = exp2_of(Avx512::fma(Avx512::load_vec(from + 16 * i), by, less));
        parts[i] = rounded(weight);
        sum = Avx512::add(sum, parts[i]);
        if constexpr (kParts == 2) {
          parts[kQueries + i] = rounded(Avx512::sub(weight, parts[i]));
          sum = Avx512::add(sum, parts[kQueries + i]);
        }
        ahead.prefetch<kWeighLines / kTilesOfBlock / kQueries>();
      }
      turn(parts, rows);
      if constexpr (kParts == 2) turn(parts + kQueries, rows + kQueries);
      float* to = weights + tile * kTileRows * kRows;
      HEADRACE_UNROLL
      for (int i = 0; i < kRows; ++i) Avx512::store_vec(to + 16 * i, rows[i]);
    }
    weights[tiles * kTileRows * kRows] = 0.0f;
    sum = fold<Add>(sum);
    keep(scratch.total + q, Avx512::fma(spread(scratch.total + q), factor, sum));
    keep(scratch.maximum + q, maximum);
    keep(scratch.factor + q, factor);
  }

  // Returns each query's largest score in all its lanes. Unless scores are plain, they replace
  // products; those beyond the last token are -inf.
  static HEADRACE_INLINE __m512 largest(const Shape& shape, float* scores, int count, int vectors) {
    if (!is_plain(shape)) {
      for (int i = 0; i < vectors; ++i) {
        const auto score = scaled<Avx512>(shape, Avx512::load_vec(scores + 16 * i));
        Avx512::store_vec(scores + 16 * i, score);
      }
    }
    for (int at = count * kQueries; at < vectors * 16; ++at) scores[at] = -INFINITY;
    __m512 even = Avx512::set(-INFINITY), odd = even;
    int i = 0;
    for (; i + 2 <= vectors; i += 2) {
      even = Avx512::max(Avx512::load_vec(scores + 16 * i), even);
      odd = Avx512::max(Avx512::load_vec(scores + 16 * i + 16), odd);
    }
    if (i < vectors) even = Avx512::max(Avx512::load_vec(scores + 16 * i), even);
    return fold<Max>(Avx512::max(even, odd));
  }

  // To the nearest bfloat16, as a float; NaN stays.
  static HEADRACE_INLINE __m512 rounded(__m512 x) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(-65536);
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), half);
    return _mm512_castsi512_ps(_mm512_and_si512(bits, upper));
  }

  // Reads a number for each query into all its lanes.
  static HEADRACE_INLINE __m512 spread(const float* p) {
    if constexpr (kQueries == 16) return _mm512_loadu_ps(p);
    if constexpr (kQueries == 8) return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
    if constexpr (kQueries == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
    if constexpr (kQueries == 2) return _mm512_broadcast_f32x2(_mm_setr_ps(p[0], p[1], 0, 0));
    return _mm512_set1_ps(p[0]);
  }

  static HEADRACE_INLINE void keep(float* p, __m512 x) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << kQueries) - 1), x);
  }

  struct Add {
    static HEADRACE_INLINE __m512 join(__m512 a, __m512 b) { return Avx512::add(a, b); }
  };
  struct Max {
    static HEADRACE_INLINE __m512 join(__m512 a, __m512 b) { return Avx512::max(a, b); }
  };

  // Joins each query's lanes, in all of them.
  template <class How>
  static HEADRACE_INLINE __m512 fold(__m512 x) {
    if (kQueries <= 8) x = How::join(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    if (kQueries <= 4) x = How::join(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    if (kQueries <= 2) x = How::join(x, _mm512_permute_ps(x, 0x4e));
    if (kQueries <= 1) x = How::join(x, _mm512_permute_ps(x, 0xb1));
    return x;
  }

  // Turns [tokens, queries] of 16 tokens into [queries, tokens].
  static HEADRACE_INLINE void turn(const __m512* in, __m512* rows) {
    if constexpr (kQueries == 1) rows[0] = in[0];
    if constexpr (kQueries == 2) {
      const __m512i first =
          _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      rows[0] = _mm512_permutex2var_ps(in[0], first, in[1]);
      rows[1] = _mm512_permutex2var_ps(in[0], plus(first, 1), in[1]);
    }
    if constexpr (kQueries == 4) {
      __m512 part[4];
      interleave<4>(in, part);
      const __m512i first =
          _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 16, 20, 24, 28, 17, 21, 25, 29);
      HEADRACE_UNROLL
      for (int i = 0; i < 2; ++i) {
        rows[2 * i] = _mm512_permutex2var_ps(part[i], first, part[2 + i]);
        rows[2 * i + 1] = _mm512_permutex2var_ps(part[i], plus(first, 2), part[2 + i]);
      }
    }
    if constexpr (kQueries == 8) {
      __m512 part[8];
      interleave_4(in, part);
      const __m512i first =
          _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27);
      HEADRACE_UNROLL
      for (int q = 0; q < 4; ++q) {
        rows[q] = _mm512_permutex2var_ps(part[q], first, part[4 + q]);
        rows[4 + q] = _mm512_permutex2var_ps(part[q], plus(first, 4), part[4 + q]);
      }
    }
    if constexpr (kQueries == 16) {
      __m512 part[16];
      interleave_4(in, part);
      HEADRACE_UNROLL
      for (int q = 0; q < 4; ++q) turn_quarters(part + q, rows + q);
    }
  }

  static HEADRACE_INLINE __m512i plus(__m512i places, int more) {
    return _mm512_add_epi32(places, _mm512_set1_epi32(more));
  }

  // Quarters of results hold two queries, each at the tokens of two vectors that follow each other.
  template <int kVectors>
  static HEADRACE_INLINE void interleave(const __m512* in, __m512* out) {
    HEADRACE_UNROLL
    for (int i = 0; i < kVectors; i += 2) {
      out[i] = _mm512_unpacklo_ps(in[i], in[i + 1]);
      out[i + 1] = _mm512_unpackhi_ps(in[i], in[i + 1]);
    }
  }

  // Quarters of results hold one query at the tokens of four vectors that follow each other.
  static HEADRACE_INLINE void interleave_4(const __m512* in, __m512* out) {
    __m512 part[kQueries];
    interleave<kQueries>(in, part);
    HEADRACE_UNROLL
    for (int i = 0; i + 4 <= kQueries; i += 4) {
      const __m512d a = _mm512_castps_pd(part[i]), b = _mm512_castps_pd(part[i + 1]);
      const __m512d c = _mm512_castps_pd(part[i + 2]), d = _mm512_castps_pd(part[i + 3]);
      out[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
      out[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
      out[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
      out[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
  }

  // Quarter i of vector 4 k becomes quarter k of row 4 i.
  static HEADRACE_INLINE void turn_quarters(const __m512* in, __m512* rows) {
    const __m512 a = _mm512_shuffle_f32x4(in[0], in[4], 0x44);
    const __m512 b = _mm512_shuffle_f32x4(in[0], in[4], 0xee);
    const __m512 c = _mm512_shuffle_f32x4(in[8], in[12], 0x44);
    const __m512 d = _mm512_shuffle_f32x4(in[8], in[12], 0xee);
    rows[0] = _mm512_shuffle_f32x4(a, c, 0x88);
    rows[4] = _mm512_shuffle_f32x4(a, c, 0xdd);
    rows[8] = _mm512_shuffle_f32x4(b, d, 0x88);
    rows[12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }

  // ---- values ----

  static HEADRACE_INLINE void mix(const Shape& shape, const Scratch& scratch, TokenBlock& block,
                                  LinesAhead& ahead) {
    TileRows rows[kTilesOfBlock];
    const int tiles = (block.count + kTileRows - 1) / kTileRows;
    for (int tile = 0; tile < tiles; ++tile) {
      rows[tile] = TileRows(block, block.runs[0].value, block.value, tile * kTileRows,
                            shape.row_bytes);
    }
    finish_stores(scratch.scores);
    for (int64_t group = 0; group < groups(shape.grouped); ++group) {
      const float* weights = weights_of(scratch, group);
      for (int64_t at = 0; at < shape.width; at += kSums) {
        alignas(64) float mixed[kRows * kSums];
        mix_tiles(rows, tiles, weights, at, mixed, ahead);
        if (!are_finite(mixed)) mix_apart(shape, block, weights, at, mixed);
        add_to_sums(shape, scratch, group * kQueries, at, mixed);
      }
    }
  }

  // Sums 32 elements of a block's values, [rows of weights, elements].
  static HEADRACE_INLINE void mix_tiles(const TileRows* rows, int tiles, const float* weights,
                                        int64_t at, float* mixed, LinesAhead& ahead) {
    constexpr int64_t kBytes = kSums * sizeof(float);
    _tile_zero(6);
    _tile_zero(7);
    for (int tile = 0; tile < tiles; ++tile) {
      const char* odd = reinterpret_cast<const char*>(weights + tile * kTileRows * kRows);
      rows[tile].load(at * static_cast<int64_t>(sizeof(Bfloat16)));
      _tile_loadd(4, odd + sizeof(Bfloat16), kTileRowBytes);
      _tile_dpbf16ps(6, 4, 3);
      ahead.prefetch<kValueLines / 2>();
      _tile_loadd(5, odd, kTileRowBytes);
      _tile_dpbf16ps(7, 5, 3);
      ahead.prefetch<kValueLines / 2>();
    }
    _tile_stored(6, mixed, kBytes);
    _tile_stored(7, mixed + kTileRows, kBytes);
  }

  static HEADRACE_INLINE bool are_finite(const float* mixed) {
    __m512 nothing[2] = {Avx512::zero(), Avx512::zero()};  // or NaN
    HEADRACE_UNROLL
    for (int row = 0; row < kRows; ++row) {
      for (int i = 0; i < 2; ++i) {
        nothing[i] = Avx512::fma(Avx512::load_vec(mixed + row * kSums + 16 * i), Avx512::zero(),
                                 nothing[i]);
      }
    }
    const __m512 all = Avx512::add(nothing[0], nothing[1]);
    return _mm512_cmp_ps_mask(all, all, _CMP_UNORD_Q) == 0;
  }

  // What mix_tiles does, element by element: slow, but what is not finite stays where it is.
  static __attribute__((noinline)) void mix_apart(const Shape& shape, TokenBlock& block,
                                                  const float* weights, int64_t at, float* mixed) {
    find_rows(shape, block);
    memset(mixed, 0, kRows * kSums * sizeof(float));
    for (int token = 0; token < block.count; ++token) {
      const auto* value = reinterpret_cast<const Bfloat16*>(block.value[token]) + at;
      const auto pair = Avx512::load(value);
      for (int row = 0; row < kRows; ++row) {
        const int tile = token / kTileRows, place = token % kTileRows;
        const auto weight = Avx512::set(weights[(tile * kRows + row) * kTileRows + place]);
        float* sum = mixed + row * kSums;
        Avx512::store_vec(sum, Avx512::fma(weight, pair.first, Avx512::load_vec(sum)));
        Avx512::store_vec(sum + 16, Avx512::fma(weight, pair.second, Avx512::load_vec(sum + 16)));
      }
    }
  }

  static HEADRACE_INLINE void add_to_sums(const Shape& shape, const Scratch& scratch, int64_t first,
                                          int64_t at, const float* mixed) {
    const int64_t left = shape.grouped - first, count = left < kQueries ? left : kQueries;
    for (int64_t q = 0; q < count; ++q) {
      float* sums = scratch.sums + (first + q) * shape.width + at;
      const auto factor = Avx512::set(scratch.factor[first + q]);
      HEADRACE_UNROLL
      for (int i = 0; i < kSums; i += 16) {
        auto added = Avx512::load_vec(mixed + q * kSums + i);
        if constexpr (kParts == 2) {
          added = Avx512::add(added, Avx512::load_vec(mixed + (kQueries + q) * kSums + i));
        }
        Avx512::store_vec(sums + i, Avx512::fma(Avx512::load_vec(sums + i), factor, added));
      }
    }
  }
};

void attend_tiles(const Shape& shape, const Scratch& scratch, TokenBlock& block,
                  const TokenBlock* next) {
  switch (queries_of_tile(shape.grouped)) {
    case 1: return Tiles<1>::attend(shape, scratch, block, next);
    case 2: return Tiles<2>::attend(shape, scratch, block, next);
    case 4: return Tiles<4>::attend(shape, scratch, block, next);
    case 8: return Tiles<8>::attend(shape, scratch, block, next);
    default: return Tiles<16>::attend(shape, scratch, block, next);
  }
}

}  // namespace
}  // namespace headrace

#endif
