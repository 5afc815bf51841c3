// AVX2 with fused multiply-add.

#include <algorithm>
#include <cstring>
#include <limits>

#include "splat.h"

#define SPARSERECO_SET splat_kernels_avx2
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define SPARSERECO_VECTOR 32
#else
#define SPARSERECO_VECTOR 16
#endif
#include "lanes.h"
#include "splat_loops.h"
