// The attention kernel, written once for every kind of vector.
//
// A variant's source file switches on its instructions for all that follows, then includes this.
// Everything here has internal linkage: no function compiled for one processor may be taken for
// the same function compiled for another.
//
// Names of template parameters:
//   V  vectors of kLanes floats (Vec) and Pairs of them, 2 * kLanes elements in an order that
//      suits loading; tiles of kTile sums and of kMixPairs Pairs of sums fit into registers
//   S  how queries meet keys (FloatScores, and TiledScores of it)
//   M  how weights meet values (FloatValues)

#ifndef HEADRACE_KERNEL_H
#define HEADRACE_KERNEL_H

#include "kernel_parts.h"
#include "variants.h"

namespace headrace {
namespace {

inline int64_t whole_steps(int64_t width, int64_t step) { return (width + step - 1) / step * step; }

// Calls tile.run<n>(q) for queries q to q + n - 1: four at a time, then two, then one.
template <class Tile>
HEADRACE_INLINE void for_query_tiles(int64_t queries, const Tile& tile) {
  int64_t q = 0;
  for (; q + 4 <= queries; q += 4) tile.template run<4>(q);
  if (q + 2 <= queries) {
    tile.template run<2>(q);
    q += 2;
  }
  if (q < queries) tile.template run<1>(q);
}

// ---- scores ----

template <class V, class S, int kQueries, bool kRest>
HEADRACE_INLINE void score_step(const typename S::Query* query, int64_t stride,
                                const char* const* keys, int64_t at, int rest,
                                typename V::Vec* sums) {
  constexpr int kKeys = V::kTile / kQueries;
  typename S::Part part[kKeys];
  HEADRACE_UNROLL
  for (int k = 0; k < kKeys; ++k) {
    const auto* key = reinterpret_cast<const typename S::Element*>(keys[k]) + at;
    part[k] = kRest ? S::key(key, rest) : S::key(key);
  }
  HEADRACE_UNROLL
  for (int q = 0; q < kQueries; ++q) {
    const auto one = S::query(query + q * stride + at);
    HEADRACE_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      sums[q * kKeys + k] = S::add(sums[q * kKeys + k], one, part[k]);
    }
  }
}

// Whether a tile prefetches step by step. Many lines asked for at once hold up its loads; but one
// query's tile is soon over, and for the next one the lines cannot come early enough.
template <int kQueries>
constexpr bool kAdvancesByStep = kQueries > 1;

// Products of kQueries queries with kTile / kQueries keys.
template <class V, class S, int kQueries>
HEADRACE_INLINE void score_tile(const typename S::Query* query, int64_t stride, int64_t width,
                                const char* const* keys, float* scores, Ahead& ahead) {
  constexpr int kKeys = V::kTile / kQueries;
  typename V::Vec sums[V::kTile];
  HEADRACE_UNROLL
  for (int i = 0; i < V::kTile; ++i) sums[i] = V::zero();
  int64_t at = 0;
  for (; at + S::kStep <= width; at += S::kStep) {
    if (kAdvancesByStep<kQueries>) ahead.advance();
    score_step<V, S, kQueries, false>(query, stride, keys, at, 0, sums);
  }
  if (at < width) {
    if (kAdvancesByStep<kQueries>) ahead.advance();
    score_step<V, S, kQueries, true>(query, stride, keys, at, static_cast<int>(width - at), sums);
  }
  alignas(64) float reduced[V::kTile];
  V::reduce(sums, reduced);
  HEADRACE_UNROLL
  for (int q = 0; q < kQueries; ++q) {
    memcpy(scores + q * kBlock, reduced + q * kKeys, kKeys * sizeof(float));
  }
}

template <class V, class S>
struct ScoreTiles {
  const typename S::Query* query;
  int64_t stride;
  int64_t width;
  const TokenBlock& block;
  float* scores;
  Ahead& ahead;

  template <int kQueries>
  void run(int64_t q) const {
    constexpr int kKeys = V::kTile / kQueries;
    for (int token = 0; token < block.count; token += kKeys) {
      if (!kAdvancesByStep<kQueries>) ahead.advance();
      score_tile<V, S, kQueries>(query + q * stride, stride, width, block.key + token,
                                 scores + q * kBlock + token, ahead);
    }
  }
};

// How queries meet keys, one by one: each score is a sum over the lanes of a vector.
template <class V, class S>
struct TiledScores {
  using Element = typename S::Element;
  using Query = typename S::Query;

  static void prepare(int64_t queries, int64_t width, const Element* from, Query* to) {
    for (int64_t q = 0; q < queries; ++q) {
      S::prepare(from + q * width, width, to + q * whole_steps(width, S::kStep));
    }
  }

  static void score(int64_t queries, int64_t width, const Query* query, const TokenBlock& block,
                    float* scores, Ahead& ahead) {
    const int64_t stride = whole_steps(width, S::kStep);
    for_query_tiles(queries, ScoreTiles<V, S>{query, stride, width, block, scores, ahead});
  }

  // How often a block's scores call advance.
  static int64_t advances(int64_t queries, int64_t width, int count) {
    auto tiles = [count](int n) { return (count + V::kTile / n - 1) / (V::kTile / n); };
    const int64_t several = queries / 4 * tiles(4) + (queries & 2 ? tiles(2) : 0);
    return several * whole_steps(width, S::kStep) / S::kStep + (queries & 1 ? tiles(1) : 0);
  }
};

// Whether a score grows with its product, so that the largest product gives the largest score.
inline bool is_plain(const Shape& shape) { return shape.softcap == 0.0f && shape.scale > 0.0f; }

// Returns scores, from products, where they are not plain.
template <class V>
HEADRACE_INLINE typename V::Vec scaled(const Shape& shape, typename V::Vec products) {
  if (shape.softcap == 0.0f) return V::mul(products, V::set(shape.scale));
  const auto capped = tanh_of<V>(V::mul(products, V::set(shape.scale / shape.softcap)));
  return V::mul(capped, V::set(shape.softcap));
}

// Returns the largest score of a row of products. Unless scores are plain, they replace products.
template <class V>
HEADRACE_INLINE float largest_score(const Shape& shape, float* row, int count, int vectors) {
  // Places beyond the last token first repeat it, so that they change no maximum.
  const int end = vectors * V::kLanes;
  for (int token = count; token < end; ++token) row[token] = row[count - 1];
  auto largest = V::set(-INFINITY);
  if (is_plain(shape)) {
    for (int i = 0; i < vectors; ++i) largest = V::max(V::load_vec(row + i * V::kLanes), largest);
  } else {
    for (int i = 0; i < vectors; ++i) {
      const auto score = scaled<V>(shape, V::load_vec(row + i * V::kLanes));
      V::store_vec(row + i * V::kLanes, score);
      largest = V::max(score, largest);
    }
  }
  for (int token = count; token < end; ++token) row[token] = -INFINITY;
  return is_plain(shape) ? V::largest(largest) * shape.scale : V::largest(largest);
}

// Takes the block's maxima (in scratch.factor) into the running ones; scratch.factor becomes what
// sums so far are multiplied by.
template <class V>
HEADRACE_INLINE void raise_maxima(const Shape& shape, const Scratch& scratch) {
  for (int64_t q = 0; q < shape.grouped; q += V::kLanes) {
    const auto old = V::load_vec(scratch.maximum + q);
    const auto raised = V::max(V::load_vec(scratch.factor + q), old);
    const auto factor = exp_of<V>(V::sub(old, V::finite(raised)));
    V::store_vec(scratch.maximum + q, raised);
    V::store_vec(scratch.factor + q, factor);
    V::store_vec(scratch.total + q, V::mul(V::load_vec(scratch.total + q), factor));
  }
}

// Turns the block's products into weights and adds them to the totals.
template <class V, class M>
void weigh_block(const Shape& shape, const Scratch& scratch, int count) {
  constexpr int kTogether = M::kWeights / V::kLanes;
  const int vectors = (count + M::kWeights - 1) / M::kWeights * kTogether;
  for (int64_t q = 0; q < shape.grouped; ++q) {
    scratch.factor[q] = largest_score<V>(shape, scratch.scores + q * kBlock, count, vectors);
  }
  raise_maxima<V>(shape, scratch);
  const float scale = is_plain(shape) ? shape.scale : 1.0f;
  for (int64_t q = 0; q < shape.grouped; ++q) {
    const float maximum = scratch.maximum[q] == -INFINITY ? 0.0f : scratch.maximum[q];
    scratch.total[q] += M::weigh(scratch.scores + q * kBlock, vectors, scale, maximum);
  }
}

// ---- values ----

// Adds a block's values to kParts steps of kQueries sums.
template <class V, class M, int kQueries, int kParts, bool kRest>
HEADRACE_INLINE void mix_tile(const TokenBlock& block, const float* weights, const float* factor,
                              int64_t at, int rest, float* sums, int64_t stride, Ahead& ahead) {
  typename V::Pair sum[kQueries][kParts];
  HEADRACE_UNROLL
  for (int q = 0; q < kQueries; ++q) {
    HEADRACE_UNROLL
    for (int p = 0; p < kParts; ++p) sum[q][p] = {V::zero(), V::zero()};
  }
  for (int token = 0; token < block.count; token += M::kTokens) {
    if (token % kTokensPerAdvance == 0) ahead.advance();
    typename M::Part part[kParts];
    HEADRACE_UNROLL
    for (int p = 0; p < kParts; ++p) {
      const int64_t place = at + p * M::kStep;
      part[p] =
          kRest ? M::value(block.value + token, place, rest) : M::value(block.value + token, place);
    }
    HEADRACE_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      const auto weight = M::weight(weights, q, token);
      HEADRACE_UNROLL
      for (int p = 0; p < kParts; ++p) M::add(sum[q][p], weight, part[p]);
    }
  }
  // A block is summed by itself first: added one by one to the sums of thousands of tokens, its
  // products would lose digits.
  HEADRACE_UNROLL
  for (int q = 0; q < kQueries; ++q) {
    const auto by = V::set(factor[q]);
    HEADRACE_UNROLL
    for (int p = 0; p < kParts; ++p) {
      float* place = sums + q * stride + p * M::kStep;
      V::store_vec(place, V::fma(V::load_vec(place), by, sum[q][p].first));
      place += V::kLanes;
      V::store_vec(place, V::fma(V::load_vec(place), by, sum[q][p].second));
    }
  }
}

template <class V, class M>
struct MixTiles {
  const Shape& shape;
  const Scratch& scratch;
  const TokenBlock& block;
  int64_t stride;
  Ahead& ahead;

  // Steps that a tile of so many queries takes at once.
  static constexpr int parts(int queries) {
    return V::kMixPairs / queries < 4 ? V::kMixPairs / queries : 4;
  }

  template <int kQueries>
  void run(int64_t q) const {
    constexpr int kParts = parts(kQueries);
    int64_t at = 0;
    for (; at + kParts * M::kStep <= shape.width; at += kParts * M::kStep) {
      mix<kQueries, kParts, false>(q, at);
    }
    for (; at + M::kStep <= shape.width; at += M::kStep) mix<kQueries, 1, false>(q, at);
    if (at < shape.width) mix<kQueries, 1, true>(q, at);
  }

  template <int kQueries, int kParts, bool kRest>
  HEADRACE_INLINE void mix(int64_t q, int64_t at) const {
    mix_tile<V, M, kQueries, kParts, kRest>(
        block, M::weights_of(scratch.scores, q), scratch.factor + q, at,
        static_cast<int>(shape.width - at), scratch.sums + q * stride + at, stride, ahead);
  }

  // How often advance is called for that many queries.
  static int64_t advances(int64_t queries, int64_t width, int count) {
    auto passes = [width](int n) {
      const int64_t steps = (width + M::kStep - 1) / M::kStep, whole = width / M::kStep;
      return whole / parts(n) + whole % parts(n) + (steps - whole);
    };
    const int64_t tiles =
        queries / 4 * passes(4) + (queries & 2 ? passes(2) : 0) + (queries & 1 ? passes(1) : 0);
    return tiles * ((count + kTokensPerAdvance - 1) / kTokensPerAdvance);
  }
};

// ---- whole blocks ----

template <class V, class M>
void begin_sums(const Shape& shape, const Scratch& scratch) {
  const int64_t sums = shape.grouped * whole_steps(shape.width, M::kStep);
  memset(scratch.sums, 0, static_cast<size_t>(sums) * sizeof(float));
  for (int64_t q = 0; q < whole_steps(shape.grouped, V::kLanes); ++q) {
    scratch.maximum[q] = -INFINITY;
    scratch.total[q] = 0.0f;
    scratch.factor[q] = -INFINITY;
  }
}

template <class V, class M>
void mix_block(const Shape& shape, const Scratch& scratch, const TokenBlock& block,
               const TokenBlock* next) {
  Ahead values(next, &Run::value, shape.row_bytes,
               MixTiles<V, M>::advances(shape.grouped, shape.width, block.count));
  const int64_t stride = whole_steps(shape.width, M::kStep);
  for_query_tiles(shape.grouped, MixTiles<V, M>{shape, scratch, block, stride, values});
}

// While a block's keys are used, the next block's keys come from memory, and likewise its values:
// when it is their turn they are in a cache, and memory is never idle.
template <class V, class S, class M>
void attend_block(const Shape& shape, const Scratch& scratch, TokenBlock& block,
                  const TokenBlock* next) {
  const int64_t queries = shape.grouped, width = shape.width;
  auto* query = static_cast<typename S::Query*>(scratch.query);
  if (block.first) {
    begin_sums<V, M>(shape, scratch);
    S::prepare(queries, width, static_cast<const typename S::Element*>(block.query), query);
  }
  if (block.count == 0) return;
  find_rows(shape, block);
  if (next) touch_pages(*next, shape.row_bytes);
  Ahead keys(next, &Run::key, shape.row_bytes, S::advances(queries, width, block.count));
  S::score(queries, width, query, block, scratch.scores, keys);
  weigh_block<V, M>(shape, scratch, block.count);
  mix_block<V, M>(shape, scratch, block, next);
}

template <class V, class M>
void finish_item(const Shape& shape, const Scratch& scratch, float* output, float* maximum,
                 float* total) {
  const int64_t stride = whole_steps(shape.width, M::kStep);
  for (int64_t q = 0; q < shape.grouped; ++q) {
    const float* sums = scratch.sums + q * stride;
    float* out = output + q * shape.width;
    int64_t at = 0;
    for (; at + M::kStep <= shape.width; at += M::kStep) M::natural(sums + at, out + at);
    if (at < shape.width) {
      float rest[M::kStep];
      M::natural(sums + at, rest);
      memcpy(out + at, rest, static_cast<size_t>(shape.width - at) * sizeof(float));
    }
    maximum[q] = scratch.maximum[q];
    total[q] = scratch.total[q];
  }
}

// The kernel that does everything in float.
template <class V, class T>
constexpr Kernel float_kernel() {
  return {attend_block<V, TiledScores<V, FloatScores<V, T>>, FloatValues<V, T>>,
          finish_item<V, FloatValues<V, T>>};
}

}  // namespace
}  // namespace headrace

#endif
