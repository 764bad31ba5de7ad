// Whole numbers of pieces.

#ifndef HEADRACE_ROUNDING_H
#define HEADRACE_ROUNDING_H

#include <cstdint>

namespace headrace {

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t rounded_up(int64_t a, int64_t b) { return divided_up(a, b) * b; }

}  // namespace headrace

#endif
