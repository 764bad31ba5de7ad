// Which vector instructions this machine has.

#ifndef HEADRACE_PROCESSOR_H
#define HEADRACE_PROCESSOR_H

namespace headrace {

bool has_avx2();         // with FMA and F16C
bool has_avx512();       // F, BW, VL and DQ, and all of AVX2's
bool has_avx512_bf16();  // AVX-512 with BF16

bool has_amx_bf16();     // AMX with BF16, and all of the above; asks the system for its registers

}  // namespace headrace

#endif
