// The kernel for any processor.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernel.h"
#include "variants.h"
#include "vectors_portable.h"

namespace headrace {

static bool always() { return true; }

extern const Variant kPortable = {
    "portable",
    always,
    {float_kernel<Portable, float>(), float_kernel<Portable, Float16>(),
     float_kernel<Portable, Bfloat16>()},
    sum_portable,
};

}  // namespace headrace
