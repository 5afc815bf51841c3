// Marks what runs on the host and on the device alike.

#pragma once

#ifdef __CUDACC__
#define SPARSERECO_HD __host__ __device__ __forceinline__
#else
// Forced, so that it is compiled anew for every instruction set that a CPU kernel is cloned for (cpu/clones.h).
#define SPARSERECO_HD inline __attribute__((always_inline))
#endif
