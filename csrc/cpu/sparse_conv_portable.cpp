// Vectors of 16 bytes: what any 64-bit x86 or Arm processor has.

#define SPARSERECO_SET conv_kernels_portable
#define SPARSERECO_VECTOR 16
#define SPARSERECO_REGISTERS 16
#include "sparse_conv_tiles.h"
