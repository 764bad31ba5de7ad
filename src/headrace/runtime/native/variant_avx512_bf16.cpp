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

#include "lanes_avx512_bf16.h"
#include "pairs_avx512_bf16.h"

namespace headrace {
namespace {

// From so many queries on, values are mixed in pairs of bfloat16, with the weights rounded to
// bfloat16 as torch's own attention rounds them. Fewer queries leave time for float.
constexpr int64_t kRoundedWeights = 3;

using TileScores = TiledScores<Avx512, PairScores>;
using FewValues = FloatValues<Avx512, Bfloat16>;

void attend_bfloat16(const Shape& shape, const Scratch& scratch, TokenBlock& block,
                     const TokenBlock* next) {
  if (Lanes::pay(shape.grouped, shape.width)) {
    attend_lanes(shape, scratch, block, next);
  } else if (shape.grouped >= kRoundedWeights) {
    attend_block<Avx512, TileScores, PairValues>(shape, scratch, block, next);
  } else {
    attend_block<Avx512, TileScores, FewValues>(shape, scratch, block, next);
  }
}

void finish_bfloat16(const Shape& shape, const Scratch& scratch, float* output, float* maximum,
                     float* total) {
  if (shape.grouped >= kRoundedWeights) {
    finish_item<Avx512, PairValues>(shape, scratch, output, maximum, total);
  } else {
    finish_item<Avx512, FewValues>(shape, scratch, output, maximum, total);
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
