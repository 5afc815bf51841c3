// Vectors of 16 bytes: what any 64-bit x86 or Arm processor has.

#include <algorithm>
#include <cstring>
#include <limits>

#include "splat.h"

#define SPARSERECO_SET splat_kernels_portable
#define SPARSERECO_VECTOR 16
#include "lanes.h"
#include "splat_loops.h"
