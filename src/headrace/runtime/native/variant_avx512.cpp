// The kernel for processors with AVX-512.

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "processor.h"
#include "variants.h"

#define HEADRACE_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "target_begin.h"

#include "kernel.h"
#include "vectors_avx512.h"

namespace headrace {

extern const Variant kAvx512 = {
    "avx512",
    has_avx512,
    {float_kernel<Avx512, float>(), float_kernel<Avx512, Float16>(),
     float_kernel<Avx512, Bfloat16>()},
    sum_avx512,
};

}  // namespace headrace

#include "target_end.h"

#endif
