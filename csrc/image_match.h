// How well a predicted image agrees with a measured one: the mathematics, once, for host and device.
//
// Losses are twice a negative logarithm of a likelihood, up to a constant: Poisson deviance (Baker and Cousins, NIM 221
// (1984) 437), chi-square with given variance, squared difference (its variance is 1). With a threshold, a voxel
// measured below it tells no more than that: it contributes -2 log of the probability of staying under the threshold.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "deposits.h"
#include "faults.h"

namespace sparsereco {

enum class Loss : int32_t { kPoisson, kPoissonUnder, kGaussian, kGaussianUnder };  // Under: with a threshold

// Rows [offsets[k], offsets[k + 1]) are the lit voxels of measured image k.
template <typename scalar_t>
struct Measured {
  const int32_t* coords;     // (count, 3)
  const scalar_t* signal;    // (count,)
  const scalar_t* variance;  // (count,) or null for 1
  const int64_t* offsets;    // (images + 1,)
  int64_t count, images;

  // Cell of row m, or -1 if it is outside the image.
  SPARSERECO_HD int32_t cell(int64_t m, const Crop& crop) const {
    const int32_t* at = coords + 3 * m;
    for (int axis = 0; axis < 3; ++axis)
      if (at[axis] < 0 || at[axis] >= crop.size[axis]) return -1;
    return crop.cell(at[0], at[1], at[2]);
  }
  SPARSERECO_HD scalar_t variance_of(int64_t m) const { return variance ? variance[m] : scalar_t(1); }
  // What is wrong with the numbers of row m.
  SPARSERECO_HD int64_t fault(int64_t m) const {
    if (!is_finite_and_not_negative(signal[m])) return fault_at(Fault::kSignal, m);
    if (!(is_finite(variance_of(m)) && variance_of(m) > 0)) return fault_at(Fault::kVariance, m);
    return kNoFault;
  }
};

struct Likelihood {
  Loss loss;
  double crosstalk;       // share of a voxel's light that leaks to each face neighbour
  double threshold;       // kPoissonUnder: counts stay under it if there are at most ceil(threshold) - 1
  double empty_variance;  // of voxels without measured signal
  double empty_weight;    // 1 / empty_variance
};

// What is computed for each image.
template <typename scalar_t>
struct Match {
  scalar_t* loss;    // (images,)
  int64_t* dropped;  // (images,) deposits that light no voxel of the image
  // Derivatives of the loss of the deposit's image; all null if nobody wants them.
  scalar_t* grad_position = nullptr;    // (count, 3)
  scalar_t* grad_charge = nullptr;      // (count,)
  scalar_t* grad_background = nullptr;  // (images,)
};

template <typename scalar_t>
struct Term {
  scalar_t value, slope;  // of the loss, and its derivative with respect to the prediction
};

// -2 log P(N < counts) for a Poisson number N of mean `mean` > 0. The first terms of the exponential series are summed
// from the first one up where the mean is small, in units of the last one where it is large: neither overflows.
SPARSERECO_HD Term<double> poisson_under(double mean, int counts) {
  if (mean < counts) {
    double last = 1, sum = 1;
    for (int k = 1; k < counts; ++k) {
      last *= mean / k;
      sum += last;
    }
    return {2 * (mean - log(sum)), 2 * last / sum};
  }
  double ratio = 1, log_last = 0;
  for (int k = 1; k < counts; ++k) {
    ratio = 1 + ratio * k / mean;
    log_last += log(mean / k);
  }
  return {2 * (mean - log_last - log(ratio)), 2 / ratio};
}

// -2 log P(x < threshold) for a Gaussian x of mean `mean`.
SPARSERECO_HD Term<double> gaussian_under(double mean, double threshold, double variance) {
  const double weight = 1 / sqrt(variance), z = (threshold - mean) * weight;
  const double log_density = -0.5 * z * z - 0.91893853320467274;  // log(sqrt(2 pi))
  if (z > -6) {
    const double below = 0.5 * erfc(-z * 0.70710678118654752);
    return {-2 * log(below), 2 * exp(log_density) / below * weight};
  }
  double hazard = -z;  // density / below, Laplace's continued fraction: below itself would vanish
  for (int k = 24; k > 0; --k) hazard = -z + k / hazard;
  return {-2 * (log_density - log(hazard)), 2 * hazard * weight};
}

// log of a positive number that is neither subnormal nor infinite. The library's would have to be called for each
// voxel.
template <typename scalar_t>
SPARSERECO_HD scalar_t logarithm(scalar_t x) {
#ifdef __CUDACC__
  return log(x);
#else
  // x = 2^power m with m within a factor sqrt(2) of 1, and log m = 2 artanh((m - 1) / (m + 1)), of which `kTerms` terms
  // are more than the type can tell.
  constexpr bool single = sizeof(scalar_t) == 4;
  using Bits = std::conditional_t<single, uint32_t, uint64_t>;
  constexpr int kDigits = single ? 23 : 52, kBias = single ? 127 : 1023, kTerms = single ? 5 : 11;
  constexpr Bits kOne = static_cast<Bits>(kBias) << kDigits;
  constexpr Bits kRootOfHalf = single ? Bits(0x3f3504f3) : Bits(0x3fe6a09e667f3bcd);
  Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits += kOne - kRootOfHalf;
  const scalar_t power = static_cast<scalar_t>(static_cast<int32_t>(bits >> kDigits) - kBias);
  bits = (bits & ((Bits(1) << kDigits) - 1)) + kRootOfHalf;
  scalar_t m;
  std::memcpy(&m, &bits, sizeof m);
  const scalar_t ratio = (m - 1) / (m + 1), square = ratio * ratio;
  scalar_t sum = 0;
  for (int k = kTerms - 1; k >= 0; --k) sum = sum * square + scalar_t(1) / static_cast<scalar_t>(2 * k + 1);
  return power * scalar_t(0.69314718055994531) + 2 * ratio * sum;
#endif
}

// Contribution of a voxel without measured signal.
template <Loss loss, typename scalar_t>
SPARSERECO_HD Term<scalar_t> empty_term(scalar_t mean, const Likelihood& likelihood) {
  if constexpr (loss == Loss::kPoisson) {
    return {2 * mean, 2};
  } else if constexpr (loss == Loss::kGaussian) {
    const scalar_t weight = static_cast<scalar_t>(likelihood.empty_weight);
    return {mean * mean * weight, 2 * mean * weight};
  } else {
    const Term<double> term = loss == Loss::kPoissonUnder
                                  ? poisson_under(mean, static_cast<int>(ceil(likelihood.threshold)))
                                  : gaussian_under(mean, likelihood.threshold, likelihood.empty_variance);
    return {static_cast<scalar_t>(term.value), static_cast<scalar_t>(term.slope)};
  }
}

// Contribution of a voxel with a measured signal.
template <Loss loss, typename scalar_t>
SPARSERECO_HD Term<scalar_t> measured_term(scalar_t mean, scalar_t signal, scalar_t variance,
                                           const Likelihood& likelihood) {
  constexpr bool poisson = loss == Loss::kPoisson || loss == Loss::kPoissonUnder;
  if constexpr (loss == Loss::kPoissonUnder || loss == Loss::kGaussianUnder) {
    if (signal < likelihood.threshold) {
      Likelihood here = likelihood;
      here.empty_variance = variance;
      return empty_term<loss>(mean, here);
    }
  }
  const scalar_t excess = mean - signal;
  if constexpr (poisson) {
    const scalar_t gain = signal > 0 ? signal * logarithm(signal / mean) : scalar_t(0);
    return {2 * (excess + gain), 2 * excess / mean};
  } else {
    const scalar_t pull = excess / variance;
    return {excess * pull, 2 * pull};
  }
}

// Whether image i can be worked on: if its rows are not sound, they must not be touched.
template <typename scalar_t>
SPARSERECO_HD int64_t image_fault(const Deposits<scalar_t>& deposits, const int64_t* index,
                                  const Measured<scalar_t>& measured, int64_t i) {
  if (!segment_is_sound(deposits.offsets, i, deposits.images, deposits.count)) return fault_at(Fault::kOffsets, i);
  const int64_t k = index[i];
  if (k < 0 || k >= measured.images) return fault_at(Fault::kIndex, i);
  if (!segment_is_sound(measured.offsets, k, measured.images, measured.count))
    return fault_at(Fault::kMeasuredOffsets, k);
  return kNoFault;
}

template <Loss loss, typename scalar_t>
SPARSERECO_HD int64_t background_fault(scalar_t background, int64_t i) {
  const bool poisson = loss == Loss::kPoisson || loss == Loss::kPoissonUnder;
  return is_finite_and_not_negative(background) && !(poisson && background == 0) ? kNoFault
                                                                                 : fault_at(Fault::kBackground, i);
}

}  // namespace sparsereco
