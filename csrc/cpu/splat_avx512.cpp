// AVX-512.

#include <algorithm>
#include <cstring>
#include <limits>

#include "splat.h"

#define SPARSERECO_SET splat_kernels_avx512
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512")
#define SPARSERECO_VECTOR 64
#else
#define SPARSERECO_VECTOR 16
#endif
#include "lanes.h"
#include "splat_loops.h"
