// A function marked SPARSERECO_CLONES is compiled for several instruction sets; the loader picks the CPU's best.

#pragma once

#include <cstdint>  // brings __GLIBC__

// Needs ifunc: GCC for x86-64 with glibc. Elsewhere there is one version, for what the compiler was told to build for.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define SPARSERECO_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SPARSERECO_CLONES
#endif
