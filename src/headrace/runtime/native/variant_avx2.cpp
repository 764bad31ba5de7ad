// The kernel for processors with AVX2, FMA and F16C.

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "processor.h"
#include "variants.h"

#define HEADRACE_TARGET "avx2,fma,f16c"
#include "target_begin.h"

#include "kernel.h"
#include "vectors_avx2.h"

namespace headrace {

extern const Variant kAvx2 = {
    "avx2",
    has_avx2,
    {float_kernel<Avx2, float>(), float_kernel<Avx2, Float16>(), float_kernel<Avx2, Bfloat16>()},
    sum_avx2,
};

}  // namespace headrace

#include "target_end.h"

#endif
