// AVX-512.

#include <cstdint>

#define SPARSERECO_SET conv_kernels_avx512
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512")
#define SPARSERECO_VECTOR 64
#define SPARSERECO_REGISTERS 32
#else
#define SPARSERECO_VECTOR 16
#define SPARSERECO_REGISTERS 16
#endif
#include "sparse_conv_tiles.h"
