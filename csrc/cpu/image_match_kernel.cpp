// CPU kernel of image matching. What one image needs stays in the first cache: its deposits are read twice, once to
// light up the voxels, once to collect the derivatives, and nothing between is written to memory.

#include <algorithm>
#include <type_traits>

#include "clones.h"
#include "images.h"
#include "splat.h"

namespace sparsereco {
namespace {

// Every voxel passes a share of its light to each face neighbour; what would leave the image is lost. Symmetric, so
// that it takes derivatives back as well. The border of `from` is zero, and so is that of `to`.
template <typename scalar_t>
SPARSERECO_HD void leak(const scalar_t* __restrict__ from, const scalar_t* __restrict__ inside, const Crop& crop,
                        scalar_t share, scalar_t* __restrict__ to) {
  const int32_t x = crop.stride(0), y = crop.stride(1), cells = crop.cells();
  std::fill_n(to, x, scalar_t(0));
  std::fill_n(to + cells - x, x, scalar_t(0));
  for (int32_t c = x; c < cells - x; ++c) {
    const scalar_t around = from[c - x] + from[c + x] + from[c - y] + from[c + y] + from[c - 1] + from[c + 1];
    to[c] = inside[c] * ((1 - 6 * share) * from[c] + share * around);
  }
}

// Sums over the voxels of an image, and the lowest fault of the measured one.
struct Comparison {
  double value, slope;
  int64_t fault;
};

// Compares predicted light with rows [first, last); fills the slope of every voxel. `empty` is 1 within the image, and
// so it is left; meanwhile it is 0 where there is a measured signal.
template <Loss loss, typename scalar_t>
SPARSERECO_HD Comparison compare(const scalar_t* __restrict__ light, scalar_t background,
                                 const Measured<scalar_t>& measured, int64_t first, int64_t last, const Crop& crop,
                                 const Likelihood& likelihood, scalar_t* __restrict__ empty,
                                 scalar_t* __restrict__ slope) {
  int64_t fault = kNoFault;
  for (int64_t m = first; m < last; ++m) {
    const int32_t c = measured.cell(m, crop);
    if (c < 0) {
      fault = lower_fault(fault, fault_at(Fault::kCoords, m));
      continue;
    }
    if (empty[c] == 0) fault = lower_fault(fault, fault_at(Fault::kTwice, m));
    fault = lower_fault(fault, measured.fault(m));
    empty[c] = 0;
  }
  constexpr bool slow = loss == Loss::kPoissonUnder || loss == Loss::kGaussianUnder;
  // Nothing cancels in these sums: of a few terms in each lane of a vector, they need no more digits than the terms.
  std::conditional_t<slow, double, scalar_t> empty_value = 0, empty_slope = 0;
#pragma omp simd reduction(+ : empty_value, empty_slope)
  for (int32_t c = 0; c < crop.cells(); ++c) {
    slope[c] = 0;
    if (slow && empty[c] == 0) continue;
    const Term<scalar_t> term = empty_term<loss>(background + light[c], likelihood);
    slope[c] = empty[c] * term.slope;
    empty_value += empty[c] * term.value;
    empty_slope += slope[c];
  }
  double value_sum = empty_value, slope_sum = empty_slope;
  for (int64_t m = first; m < last; ++m) {
    const int32_t c = measured.cell(m, crop);
    if (c < 0) continue;
    const Term<scalar_t> term =
        measured_term<loss>(background + light[c], measured.signal[m], measured.variance_of(m), likelihood);
    empty[c] = 1;
    slope[c] = term.slope;
    value_sum += term.value;
    slope_sum += term.slope;
  }
  return {value_sum, slope_sum, fault};
}

template <Loss loss, typename scalar_t>
SPARSERECO_HD int64_t match_range(const Deposits<scalar_t>& deposits, const scalar_t* background, const int64_t* index,
                                  const Measured<scalar_t>& measured, const Crop& crop, const Softness<scalar_t>& soft,
                                  const Likelihood& likelihood, const Match<scalar_t>& match, int64_t begin,
                                  int64_t end) {
  Scratch<scalar_t> scratch(crop);
  const SplatKernels<scalar_t> kernels = splat_kernels<scalar_t>();
  const scalar_t share = static_cast<scalar_t>(likelihood.crosstalk);
  int64_t fault = kNoFault;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t unsound = image_fault(deposits, index, measured, i);
    if (unsound != kNoFault) return lower_fault(fault, unsound);

    const int64_t k = index[i];
    const int64_t first = deposits.offsets[i], last = deposits.offsets[i + 1];
    const Census census = kernels.splat(deposits, first, last, crop, soft, scratch);
    scalar_t* light = scratch.light.data();
    scalar_t* slope = scratch.slope.data();
    if (share > 0) {
      for (int32_t c = 0; c < crop.cells(); ++c) light[c] *= scratch.inside[c];
      leak(scratch.light.data(), scratch.inside.data(), crop, share, scratch.leaked.data());
      light = scratch.leaked.data();
    }
    const Comparison sum = compare<loss>(light, background[i], measured, measured.offsets[k], measured.offsets[k + 1],
                                         crop, likelihood, scratch.inside.data(), slope);
    match.loss[i] = static_cast<scalar_t>(sum.value);
    match.dropped[i] = census.dropped;
    fault =
        lower_fault(lower_fault(fault, background_fault<loss>(background[i], i)), lower_fault(census.fault, sum.fault));
    if (match.grad_background == nullptr) continue;
    match.grad_background[i] = static_cast<scalar_t>(sum.slope);
    if (share > 0) {
      leak(scratch.slope.data(), scratch.inside.data(), crop, share, scratch.light.data());
      slope = scratch.light.data();
    }
    kernels.pull(deposits, first, last, crop, soft, slope, scratch.located, match.grad_position, match.grad_charge);
  }
  return fault;
}

template <typename scalar_t>
SPARSERECO_HD int64_t match_any(const Deposits<scalar_t>& deposits, const scalar_t* background, const int64_t* index,
                                const Measured<scalar_t>& measured, const Crop& crop, const Softness<scalar_t>& soft,
                                const Likelihood& likelihood, const Match<scalar_t>& match, int64_t begin,
                                int64_t end) {
#define MATCH(loss) \
  case loss:        \
    return match_range<loss>(deposits, background, index, measured, crop, soft, likelihood, match, begin, end)
  switch (likelihood.loss) {
    MATCH(Loss::kPoisson);
    MATCH(Loss::kPoissonUnder);
    MATCH(Loss::kGaussian);
    MATCH(Loss::kGaussianUnder);
  }
#undef MATCH
  return kNoFault;
}

}  // namespace

#define INSTANTIATE(scalar_t)                                                                                       \
  template <>                                                                                                       \
  SPARSERECO_CLONES int64_t match_images<scalar_t>(const Deposits<scalar_t>& deposits, const scalar_t* background,  \
                                                   const int64_t* index, const Measured<scalar_t>& measured,        \
                                                   const Crop& crop, double softness, const Likelihood& likelihood, \
                                                   const Match<scalar_t>& match, int64_t begin, int64_t end) {      \
    return match_any(deposits, background, index, measured, crop, Softness<scalar_t>(softness), likelihood, match,  \
                     begin, end);                                                                                   \
  }
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace sparsereco
