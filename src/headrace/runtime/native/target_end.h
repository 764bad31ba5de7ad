// Ends what target_begin.h began. GCC instantiates templates at the end of a file, so that there
// the instructions stay on until then.

#if defined(__clang__)
#pragma clang attribute pop
#endif
