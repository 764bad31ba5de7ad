#include "variants.h"

#include <string.h>

namespace headrace {

const Variant* const* all_variants() {
  static const Variant* const variants[] = {
#if defined(HEADRACE_HAS_AMX)
      &kAmxBf16,
#endif
#if defined(HEADRACE_HAS_BF16)
      &kAvx512Bf16,
#endif
#if defined(__x86_64__)
      &kAvx512, &kAvx2,
#endif
      &kPortable, nullptr};
  return variants;
}

const Variant* find_variant(const char* name) {
  for (auto variant = all_variants(); *variant; ++variant) {
    if (strcmp((*variant)->name, name) == 0) return (*variant)->runs() ? *variant : nullptr;
  }
  return nullptr;
}

}  // namespace headrace
