// AVX2 with fused multiply-add.

#include <cstdint>

#define SPARSERECO_SET conv_kernels_avx2
#define SPARSERECO_REGISTERS 16
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define SPARSERECO_VECTOR 32
#else
#define SPARSERECO_VECTOR 16
#endif
#include "sparse_conv_tiles.h"
