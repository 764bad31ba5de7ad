// The kernels that the library holds, one set for each kind of processor.

#ifndef HEADRACE_VARIANTS_H
#define HEADRACE_VARIANTS_H

#include <stddef.h>
#include <stdint.h>

#include "blocks.h"

// GCC knows BF16 from version 10 on.
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#define HEADRACE_HAS_BF16 1
#endif

// GCC knows AMX from version 11 on, clang from 12 on.
#if defined(HEADRACE_HAS_BF16) && defined(__linux__) && \
    (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HEADRACE_HAS_AMX 1
#endif

namespace headrace {

// One dtype's kernel.
struct Kernel {
  // Attends to a block, whose tokens' rows it finds if it needs them. While it computes, it
  // prefetches the block after it.
  void (*attend)(const Shape& shape, const Scratch& scratch, TokenBlock& block,
                 const TokenBlock* next);
  // Writes the result of the item whose last block was attended.
  void (*finish)(const Shape& shape, const Scratch& scratch, float* output, float* maximum,
                 float* total);
  // Called by each thread before a call's blocks and after them, where there is something to do.
  void (*begin)(const Shape& shape) = nullptr;
  void (*end)(const Shape& shape) = nullptr;
};

struct Variant {
  const char* name;
  bool (*runs)();     // whether this machine can run it
  Kernel kernels[3];  // by headrace_dtype
  uint64_t (*sum)(const char* data, size_t bytes);
};

extern const Variant kAmxBf16;
extern const Variant kAvx512Bf16;
extern const Variant kAvx512;
extern const Variant kAvx2;
extern const Variant kPortable;

// Returns the variants of this architecture, best first; ends with null.
const Variant* const* all_variants();

// Returns the variant of that name if it runs here, else null.
const Variant* find_variant(const char* name);

}  // namespace headrace

#endif
