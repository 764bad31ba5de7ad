// Element types of 16 bits, which the kernels convert to float as they load them.

#ifndef HEADRACE_ELEMENTS_H
#define HEADRACE_ELEMENTS_H

#include <stdint.h>

namespace headrace {

struct Float16 {
  uint16_t bits;
};

struct Bfloat16 {
  uint16_t bits;
};

}  // namespace headrace

#endif
