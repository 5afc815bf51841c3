// CPU kernels of soft voxelisation.

#include <algorithm>

#include "clones.h"
#include "images.h"
#include "splat.h"

namespace sparsereco {
namespace {

template <typename scalar_t>
SPARSERECO_HD int64_t splat_range(const Deposits<scalar_t>& deposits, const Crop& crop, const Softness<scalar_t>& soft,
                                  scalar_t* image, int64_t* dropped, int64_t begin, int64_t end) {
  Scratch<scalar_t> scratch(crop);
  const SplatKernels<scalar_t> kernels = splat_kernels<scalar_t>();
  int64_t fault = kNoFault;
  for (int64_t i = begin; i < end; ++i) {
    if (!segment_is_sound(deposits.offsets, i, deposits.images, deposits.count)) return fault_at(Fault::kOffsets, i);
    const Census census = kernels.splat(deposits, deposits.offsets[i], deposits.offsets[i + 1], crop, soft, scratch);
    scalar_t* out = image + i * crop.voxels();
    for (int x = 0; x < crop.size[0]; ++x)
      for (int y = 0; y < crop.size[1]; ++y) out = std::copy_n(&scratch.light[crop.cell(x, y, 0)], crop.size[2], out);
    dropped[i] = census.dropped;
    fault = lower_fault(fault, census.fault);
  }
  return fault;
}

template <typename scalar_t>
SPARSERECO_HD int64_t pull_range(const Deposits<scalar_t>& deposits, const Crop& crop, const Softness<scalar_t>& soft,
                                 const scalar_t* grad_image, scalar_t* grad_position, scalar_t* grad_charge,
                                 int64_t begin, int64_t end) {
  Scratch<scalar_t> scratch(crop);
  const SplatKernels<scalar_t> kernels = splat_kernels<scalar_t>();
  for (int64_t i = begin; i < end; ++i) {
    if (!segment_is_sound(deposits.offsets, i, deposits.images, deposits.count)) return fault_at(Fault::kOffsets, i);
    const scalar_t* in = grad_image + i * crop.voxels();
    for (int x = 0; x < crop.size[0]; ++x)
      for (int y = 0; y < crop.size[1]; ++y, in += crop.size[2])
        std::copy_n(in, crop.size[2], &scratch.slope[crop.cell(x, y, 0)]);
    kernels.pull(deposits, deposits.offsets[i], deposits.offsets[i + 1], crop, soft, scratch.slope.data(),
                 scratch.located, grad_position, grad_charge);
  }
  return kNoFault;
}

}  // namespace

#define INSTANTIATE(scalar_t)                                                                                         \
  template <>                                                                                                         \
  SPARSERECO_CLONES int64_t splat_images<scalar_t>(const Deposits<scalar_t>& deposits, const Crop& crop,              \
                                                   double softness, scalar_t* image, int64_t* dropped, int64_t begin, \
                                                   int64_t end) {                                                     \
    return splat_range(deposits, crop, Softness<scalar_t>(softness), image, dropped, begin, end);                     \
  }                                                                                                                   \
  template <>                                                                                                         \
  SPARSERECO_CLONES int64_t pull_images<scalar_t>(                                                                    \
      const Deposits<scalar_t>& deposits, const Crop& crop, double softness, const scalar_t* grad_image,              \
      scalar_t* grad_position, scalar_t* grad_charge, int64_t begin, int64_t end) {                                   \
    return pull_range(deposits, crop, Softness<scalar_t>(softness), grad_image, grad_position, grad_charge, begin,    \
                      end);                                                                                           \
  }
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace sparsereco
