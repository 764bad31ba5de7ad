// prototype
#ifndef HEADRACE_TILES_AMX_BF16_H
#define HEADRACE_TILES_AMX_BF16_H

#include "pairs_avx512_bf16.h"

namespace headrace {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 1024;
constexpr int kLine = 64;
#ifndef PF_MODE
#define PF_MODE 0
#endif
#ifndef PF_SCORE
#define PF_SCORE 8
#endif
#ifndef PF_PAIR
#define PF_PAIR 4
#endif
#ifndef PF_WEIGH
#define PF_WEIGH 4
#endif
#ifndef PF_MIX
#define PF_MIX 16
#endif
#ifndef PF_REST
#define PF_REST 64
#endif


HEADRACE_INLINE void settle() { asm volatile("" ::: "memory"); }

struct TileConfig {
  alignas(64) uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

inline int tile_queries(int64_t grouped) {
  return grouped > 8 ? 16 : grouped > 4 ? 8 : grouped > 2 ? 4 : static_cast<int>(grouped);
}

// tiles 0 1 2: 16 x queries; 3: 16 x 64 bytes; 4 5 6 7: queries x 64 bytes
void configure_tiles(int queries) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = static_cast<uint16_t>(tile < 3 ? 4 * queries : 64);
    config.rows[tile] = static_cast<uint8_t>(tile < 4 ? 16 : queries);
  }
  settle();
  _tile_loadconfig(&config);
}

class AheadAll {
 public:
  AheadAll(const TokenBlock* block, int64_t row_bytes) : block_(block), row_bytes_(row_bytes) { open_run(); }
  HEADRACE_INLINE void advance(int64_t lines) {
    const char* line = line_;
    const int64_t bytes = lines * kLineBytes;
    const char* stop = end_ - line < bytes ? end_ : line + bytes;
    for (; line < stop; line += kLineBytes) {
#if PF_MODE == 0
      __builtin_prefetch(line, 0, 2);
#elif PF_MODE == 1
      __builtin_prefetch(line, 0, 3);
#else
      if (reinterpret_cast<uintptr_t>(line) / 64 % PF_MODE == 0) __builtin_prefetch(line, 0, 3); else __builtin_prefetch(line, 0, 2);
#endif
    }
    line_ = line;
    if (line >= end_) open_run();
  }
 private:
  void open_run() {
    if (block_ && run_ == block_->run_count && !values_) { values_ = true; run_ = 0; }
    if (block_ && run_ < block_->run_count) {
      line_ = values_ ? block_->runs[run_].value : block_->runs[run_].key;
      end_ = line_ + block_->runs[run_].count * row_bytes_;
      ++run_;
    } else {
      static const char nowhere = 0;
      line_ = end_ = &nowhere;
      block_ = nullptr;
    }
  }
  const TokenBlock* block_;
  int64_t row_bytes_;
  int run_ = 0;
  bool values_ = false;
  const char* line_ = nullptr;
  const char* end_ = nullptr;
};

template <int kQueries>
struct Tiled {
  static constexpr int kTokens = 16 / kQueries;  // of a vector
  static constexpr int kVectors = 2 * kQueries;  // of 32 tokens

  static constexpr int64_t scores_of(int64_t group) { return group * 16 * kBlock; }

  static constexpr int first_token(int j) {
    return kQueries == 1   ? j
           : kQueries == 2 ? 16 * (j / 2 % 2) + 2 * (j / 4) + j % 2
           : kQueries == 4 ? 8 * (j % 4) + j / 4
           : kQueries == 8 ? 16 * (j / 8) + 4 * (j % 4) + j / 4 % 2
                           : 2 * j;
  }

  static HEADRACE_INLINE __m512 spread(const float* p) {
    if (kQueries == 16) return _mm512_loadu_ps(p);
    if (kQueries == 8) return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
    if (kQueries == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
    if (kQueries == 2) {
      double two;
      memcpy(&two, p, sizeof(two));
      return _mm512_castpd_ps(_mm512_set1_pd(two));
    }
    return _mm512_set1_ps(*p);
  }
  static HEADRACE_INLINE void keep(float* p, __m512 x) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << kQueries) - 1), x);
  }

  template <class Fold>
  static HEADRACE_INLINE __m512 fold(__m512 x, Fold with) {
    if (kQueries <= 8) x = with(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    if (kQueries <= 4) x = with(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    if (kQueries <= 2) x = with(x, _mm512_permute_ps(x, 0x4e));
    if (kQueries <= 1) x = with(x, _mm512_permute_ps(x, 0xb1));
    return x;
  }

  static void prepare(int64_t queries, int64_t width, const Bfloat16* from, Bfloat16* to) {
    const int64_t groups = (queries + kQueries - 1) / kQueries;
    memset(to, 0, static_cast<size_t>(groups * kQueries * width) * sizeof(Bfloat16));
    for (int64_t q = 0; q < queries; ++q) {
      Bfloat16* place = to + q / kQueries * kQueries * width + q % kQueries * 2;
      for (int64_t i = 0; i < width; i += 2) {
        memcpy(place + i * kQueries, from + q * width + i, 2 * sizeof(Bfloat16));
      }
    }
  }

  static HEADRACE_INLINE bool is_even(const char* const* rows, int64_t row_bytes) {
    const __m512i steps = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i by = _mm512_set1_epi64(row_bytes);
    const __m512i expected = _mm512_add_epi64(
        _mm512_set1_epi64(reinterpret_cast<int64_t>(rows[0])), _mm512_mullo_epi64(steps, by));
    const __m512i later = _mm512_add_epi64(expected, _mm512_slli_epi64(by, 3));
    const __mmask8 a = _mm512_cmpneq_epi64_mask(expected, _mm512_loadu_si512(rows));
    const __mmask8 b = _mm512_cmpneq_epi64_mask(later, _mm512_loadu_si512(rows + 8));
    return (a | b) == 0;
  }

  struct Keys {
    const char* base;
    int64_t stride;
  };

  template <int kTile>
  static HEADRACE_INLINE void meet(const char* const* rows, bool even, int64_t row_bytes,
                                   int64_t at, char* copy) {
    if (even) {
      _tile_loadd(3, rows[0] + at, row_bytes);
    } else {
      for (int r = 0; r < 16; ++r) {
        _mm512_store_si512(copy + r * 64, _mm512_loadu_si512(rows[r] + at));
      }
      settle();
      _tile_loadd(3, copy, 64);
    }
    if (kTile == 0) _tile_dpbf16ps(0, 3, 2);
    if (kTile == 1) _tile_dpbf16ps(1, 3, 2);
  }

  static HEADRACE_INLINE void score(const Shape& shape, const Bfloat16* query,
                                    const TokenBlock& block, float* scores, AheadAll& ahead) {
    alignas(64) char copy[2][kTileBytes];
    const int64_t bytes = shape.row_bytes;
    for (int token = 0; token < block.count; token += 32) {
      const char* const* rows = block.key + token;
      const bool two = token + 16 < block.count;
      const bool even = is_even(rows, bytes), even2 = two && is_even(rows + 16, bytes);
      _tile_zero(0);
      _tile_zero(1);
      for (int64_t at = 0; at < bytes; at += 64) {
        _tile_loadd(2, reinterpret_cast<const char*>(query) + at * 8 * kQueries / 16 * 2,
                    4 * kQueries);
        meet<0>(rows, even, bytes, at, copy[0]);
        ahead.advance(PF_SCORE);
        if (two) meet<1>(rows + 16, even2, bytes, at, copy[1]);
        ahead.advance(PF_SCORE);
      }
      _tile_stored(0, scores + token * kQueries, 4 * kQueries);
      if (two) _tile_stored(1, scores + (token + 16) * kQueries, 4 * kQueries);
    }
  }

  static HEADRACE_INLINE __m512 weights_of(__m512 scores, __m512 by, __m512 less) {
    return exp2_of(_mm512_fmadd_ps(scores, by, less));
  }

  static HEADRACE_INLINE void turn_4(const __m512* in, __m512* out) {
    const __m512 a = _mm512_unpacklo_ps(in[0], in[1]), b = _mm512_unpackhi_ps(in[0], in[1]);
    const __m512 c = _mm512_unpacklo_ps(in[2], in[3]), d = _mm512_unpackhi_ps(in[2], in[3]);
    out[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
    out[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
    out[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
    out[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
  }

  // Turns kQueries vectors of pairs into rows of queries.
  static HEADRACE_INLINE void turn(const __m512* pairs, __m512* rows) {
    if (kQueries == 1) rows[0] = pairs[0];
    if constexpr (kQueries == 2) {
      rows[0] = _mm512_shuffle_ps(pairs[0], pairs[1], 0x88);
      rows[1] = _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd);
    }
    if constexpr (kQueries == 4) turn_4(pairs, rows);
    if constexpr (kQueries == 8) {
      __m512 part[8];
      turn_4(pairs, part);
      turn_4(pairs + 4, part + 4);
      HEADRACE_UNROLL
      for (int q = 0; q < 4; ++q) {
        rows[q] = _mm512_shuffle_f32x4(part[q], part[4 + q], 0x88);
        rows[4 + q] = _mm512_shuffle_f32x4(part[q], part[4 + q], 0xdd);
      }
    }
    if constexpr (kQueries == 16) {
      __m512 part[16];
      HEADRACE_UNROLL
      for (int h = 0; h < 4; ++h) turn_4(pairs + 4 * h, part + 4 * h);
      HEADRACE_UNROLL
      for (int q = 0; q < 4; ++q) {
        const __m512 a = _mm512_shuffle_f32x4(part[q], part[4 + q], 0x44);
        const __m512 b = _mm512_shuffle_f32x4(part[q], part[4 + q], 0xee);
        const __m512 c = _mm512_shuffle_f32x4(part[8 + q], part[12 + q], 0x44);
        const __m512 d = _mm512_shuffle_f32x4(part[8 + q], part[12 + q], 0xee);
        rows[q] = _mm512_shuffle_f32x4(a, c, 0x88);
        rows[4 + q] = _mm512_shuffle_f32x4(a, c, 0xdd);
        rows[8 + q] = _mm512_shuffle_f32x4(b, d, 0x88);
        rows[12 + q] = _mm512_shuffle_f32x4(b, d, 0xdd);
      }
    }
  }

  static HEADRACE_INLINE void weigh(const Shape& shape, const Scratch& scratch, int64_t group,
                                    int count, AheadAll& ahead) {
    float* scores = scratch.scores + scores_of(group);
    const int halves = (count + 31) / 32;
    const bool plain = is_plain(shape);
    for (int at = count * kQueries; at < halves * 32 * kQueries; ++at) scores[at] = -INFINITY;
    const int vectors = halves * kVectors;
    if (!plain) {
      for (int i = 0; i < vectors; ++i) {
        Avx512::store_vec(scores + 16 * i, scaled<Avx512>(shape, Avx512::load_vec(scores + 16 * i)));
      }
      for (int at = count * kQueries; at < halves * 32 * kQueries; ++at) scores[at] = -INFINITY;
    }
    __m512 most[2] = {Avx512::set(-INFINITY), Avx512::set(-INFINITY)};
    for (int i = 0; i < vectors; i += 2) {
      most[0] = Avx512::max(Avx512::load_vec(scores + 16 * i), most[0]);
      most[1] = Avx512::max(Avx512::load_vec(scores + 16 * i + 16), most[1]);
    }
    __m512 maximum = fold(Avx512::max(most[0], most[1]), Avx512::max);
    if (plain) maximum = Avx512::mul(maximum, Avx512::set(shape.scale));
    const int64_t q = group * kQueries;
    const __m512 old = spread(scratch.maximum + q);
    maximum = Avx512::max(maximum, old);
    const __m512 finite = Avx512::finite(maximum);
    const __m512 factor = exp_of<Avx512>(Avx512::sub(old, finite));
    const __m512 less = Avx512::mul(finite, Avx512::set(-kLog2E));
    const __m512 by = Avx512::set(plain ? shape.scale * kLog2E : kLog2E);
    const __m512i together = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                              24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17,
                                              1, 16, 0);
    __m512 sum = Avx512::zero();
    for (int half = 0; half < halves; ++half) {
      const float* from = scores + half * 16 * kVectors;
      __m512 pairs[kQueries], rows[kQueries];
      HEADRACE_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        const __m512 first = weights_of(Avx512::load_vec(from + 32 * i), by, less);
        const __m512 second = weights_of(Avx512::load_vec(from + 32 * i + 16), by, less);
        const auto rounded = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        const __m512i pair = _mm512_permutexvar_epi16(together, rounded);
        sum = _mm512_dpbf16_ps(sum, (__m512bh)pair, bfloat16_ones());
        pairs[i] = _mm512_castsi512_ps(pair);
        ahead.advance(PF_WEIGH);
      }
      turn(pairs, rows);
      float* to = scores + half * 16 * kQueries;
      HEADRACE_UNROLL
      for (int i = 0; i < kQueries; ++i) Avx512::store_vec(to + 16 * i, rows[i]);
    }
    sum = fold(sum, Avx512::add);
    const __m512 total = Avx512::fma(spread(scratch.total + q), factor, sum);
    keep(scratch.maximum + q, maximum);
    keep(scratch.factor + q, factor);
    keep(scratch.total + q, total);
  }

  static constexpr int kColumns = 64;           // of values that are mixed at once
  static constexpr int kPlaces = kColumns / 16;  // tiles of them

  // Writes pairs of tokens
  static HEADRACE_INLINE void pair_values(const TokenBlock& block, int halves, int64_t at, int64_t columns,
                                          char* values, AheadAll& ahead) {
    for (int half = 0; half < halves; ++half) {
      const char* const* rows = block.value + 32 * half;
      char* to = values + half * kPlaces * kTileBytes;
      HEADRACE_UNROLL
      for (int j = 0; j < 16; ++j) {
        const char* one = rows[first_token(j)] + at;
        const char* two = rows[first_token(j) + kTokens] + at;
        HEADRACE_UNROLL
        for (int u = 0; u < kColumns / 32; ++u) {
          if (u && 32 * u >= columns) break;
          const __m512i a = _mm512_loadu_si512(one + 64 * u);
          const __m512i b = _mm512_loadu_si512(two + 64 * u);
          _mm512_store_si512(to + 2 * u * kTileBytes + 64 * j, _mm512_unpacklo_epi16(a, b));
          _mm512_store_si512(to + (2 * u + 1) * kTileBytes + 64 * j, _mm512_unpackhi_epi16(a, b));
        }
        ahead.advance(PF_PAIR);
      }
    }
  }

  static HEADRACE_INLINE void mix(const Shape& shape, const Scratch& scratch, int halves, int64_t at,
                                  int64_t columns, const char* values, AheadAll& ahead) {
    alignas(64) float mixed[kQueries * kColumns];
    const int64_t stride = shape.width, groups = (shape.grouped + kQueries - 1) / kQueries;
    settle();
    for (int64_t group = 0; group < groups; ++group) {
      const float* weights = scratch.scores + scores_of(group);
      _tile_loadd(4, weights, 64);
      if (halves > 1) _tile_loadd(5, weights + 16 * kQueries, 64);
      for (int place = 0; place < columns / 16; place += 2) {
        _tile_zero(6);
        _tile_loadd(3, values + place * kTileBytes, 64);
        _tile_dpbf16ps(6, 4, 3);
        if (halves > 1) {
          _tile_loadd(3, values + (kPlaces + place) * kTileBytes, 64);
          _tile_dpbf16ps(6, 5, 3);
        }
        _tile_zero(7);
        _tile_loadd(3, values + (place + 1) * kTileBytes, 64);
        _tile_dpbf16ps(7, 4, 3);
        if (halves > 1) {
          _tile_loadd(3, values + (kPlaces + place + 1) * kTileBytes, 64);
          _tile_dpbf16ps(7, 5, 3);
        }
        ahead.advance(PF_MIX);
        _tile_stored(6, mixed + 16 * place, 4 * kColumns);
        _tile_stored(7, mixed + 16 * place + 16, 4 * kColumns);
      }
      const int64_t q0 = group * kQueries;
      const int some = static_cast<int>(shape.grouped - q0 < kQueries ? shape.grouped - q0 : kQueries);
      for (int q = 0; q < some; ++q) {
        float* place = scratch.sums + (q0 + q) * stride + at / 2;
        const __m512 factor = Avx512::set(scratch.factor[q0 + q]);
        for (int64_t i = 0; i < columns; i += 16) {
          Avx512::store_vec(place + i, Avx512::fma(Avx512::load_vec(place + i), factor,
                                                   Avx512::load_vec(mixed + kColumns * q + i)));
        }
      }
    }
  }

  static void attend(const Shape& shape, const Scratch& scratch, const TokenBlock& block,
                     const TokenBlock* next) {
    const int64_t queries = shape.grouped, width = shape.width;
    const int64_t groups = (queries + kQueries - 1) / kQueries;
    auto* query = static_cast<Bfloat16*>(scratch.query);
    if (block.first) {
      begin_sums<Avx512, PairValues>(shape, scratch);
      prepare(queries, width, static_cast<const Bfloat16*>(block.query), query);
    }
    if (block.count == 0) return;
    if (next) touch_pages(*next, shape.row_bytes);
    const int halves = (block.count + 31) / 32;
    AheadAll ahead(next, shape.row_bytes);
    alignas(64) char values[2 * kPlaces * kTileBytes];
    for (int64_t group = 0; group < groups; ++group) {
      score(shape, query + group * kQueries * width, block, scratch.scores + scores_of(group), ahead);
    }
    pair_values(block, halves, 0, width < kColumns ? width : kColumns, values, ahead);
    for (int64_t group = 0; group < groups; ++group) weigh(shape, scratch, group, block.count, ahead);
    for (int64_t at = 0; at < shape.row_bytes; at += 2 * kColumns) {
      const int64_t left = width - at / 2, columns = left < kColumns ? left : kColumns;
      if (at > 0) pair_values(block, halves, at, columns, values, ahead);
      mix(shape, scratch, halves, at, columns, values, ahead);
    }
    ahead.advance(PF_REST);
  }
};

inline bool tiles_pay(int64_t width) { return width % 32 == 0; }

void attend_tiles(const Shape& shape, const Scratch& scratch, const TokenBlock& block,
                  const TokenBlock* next) {
  switch (tile_queries(shape.grouped)) {
    case 1: return Tiled<1>::attend(shape, scratch, block, next);
    case 2: return Tiled<2>::attend(shape, scratch, block, next);
    case 4: return Tiled<4>::attend(shape, scratch, block, next);
    case 8: return Tiled<8>::attend(shape, scratch, block, next);
    default: return Tiled<16>::attend(shape, scratch, block, next);
  }
}

}  // namespace
}  // namespace headrace

#endif
