// Which vector instructions this machine has.

#ifndef HEADRACE_PROCESSOR_H
#define HEADRACE_PROCESSOR_H

namespace headrace {

bool has_avx2();         // with FMA and F16C
bool has_avx512();       // F, BW, VL and DQ, and all of AVX2's
bool has_avx512_bf16();  // AVX-512 with BF16

}  // namespace headrace

#endif
