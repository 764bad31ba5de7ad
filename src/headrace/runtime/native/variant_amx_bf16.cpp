// The kernel for processors with AMX, which multiply tiles of bfloat16.

#include "variants.h"

#if defined(HEADRACE_HAS_AMX)

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "processor.h"

#define HEADRACE_TARGET \
  "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16"
#include "target_begin.h"

#include "tiles_amx_bf16.h"

namespace headrace {
namespace {

using Float = TiledScores<Avx512, FloatScores<Avx512, Bfloat16>>;

void begin_bfloat16(const Shape& shape) {
  if (!tiles_pay(shape)) return;
  const int queries = queries_of_tile(shape.grouped);
  set_up_tiles(queries, weight_rows(queries) * queries);
}

void attend_bfloat16(const Shape& shape, const Scratch& scratch, TokenBlock& block,
                     const TokenBlock* next) {
  if (tiles_pay(shape)) {
    attend_tiles(shape, scratch, block, next);
  } else {
    attend_block<Avx512, Float, TileSums>(shape, scratch, block, next);
  }
}

void end_bfloat16(const Shape& shape) {
  if (tiles_pay(shape)) _tile_release();
}

}  // namespace

extern const Variant kAmxBf16 = {
    "amx_bf16",
    has_amx_bf16,
    {float_kernel<Avx512, float>(),
     float_kernel<Avx512, Float16>(),
     {attend_bfloat16, finish_item<Avx512, TileSums>, begin_bfloat16, end_bfloat16}},
    sum_avx512,
};

}  // namespace headrace

#include "target_end.h"

#endif
