// CPU kernel of image matching. What one image needs stays in the first cache: its deposits are read twice, once to
// light up the voxels, once to collect the derivatives, and nothing between is written to memory.

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

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
  const int64_t x = crop.stride(0), y = crop.stride(1), cells = crop.cells();
  std::fill_n(to, x, scalar_t(0));
  std::fill_n(to + cells - x, x, scalar_t(0));
  for (int64_t c = x; c < cells - x; ++c) {
    const scalar_t around = from[c - x] + from[c + x] + from[c - y] + from[c + y] + from[c - 1] + from[c + 1];
    to[c] = inside[c] * ((1 - 6 * share) * from[c] + share * around);
  }
}

// Where the rows of a measured image lie, and what the prediction is worth there.
template <typename scalar_t>
struct Rows {
  int32_t count = 0;
  std::vector<int32_t> cell;
  std::vector<scalar_t> mean, slope;

  void resize(int32_t rows) {
    count = rows;
    if (static_cast<size_t>(rows) <= cell.size()) return;
    cell.resize(rows);
    mean.resize(rows);
    slope.resize(rows);
  }
};

// Sums over voxels of an image.
struct Sums {
  double value, slope;
};

// The same over all of them, and the lowest fault of the measured image.
struct Comparison : Sums {
  int64_t fault;
};

// Whether the slope of all voxels without signal is the same, whatever the light: 2.
template <Loss loss>
constexpr bool kSameSlope = loss == Loss::kPoisson;

// The lowest fault of rows [first, last); `empty` is 1 within the image, and so it is left.
template <typename scalar_t>
SPARSERECO_HD int64_t fault_of(const Measured<scalar_t>& measured, int64_t first, int64_t last, const Crop& crop,
                               scalar_t* empty) {
  int64_t fault = kNoFault;
  for (int64_t m = first; m < last; ++m) {
    fault = lower_fault(fault, measured.fault(m));
    const int32_t c = measured.cell(m, crop);
    if (c < 0 || empty[c] == 0) fault = lower_fault(fault, fault_at(c < 0 ? Fault::kCoords : Fault::kTwice, m));
    if (c >= 0) empty[c] = 0;
  }
  for (int64_t m = first; m < last; ++m)
    if (const int32_t c = measured.cell(m, crop); c >= 0) empty[c] = 1;
  return fault;
}

// Finds the cells of rows [first, last); a row outside the image gets cell 0, which is on the border. Returns whether
// all rows are sure to be sound: of a signal of -0, which is, it is not.
template <typename scalar_t>
SPARSERECO_HD bool find_cells(const Measured<scalar_t>& measured, int64_t first, int64_t last, const Crop& crop,
                              int32_t* __restrict__ cell) {
  const int32_t* __restrict__ coords = measured.coords + 3 * first;
  const int32_t rows = static_cast<int32_t>(last - first);
  const uint32_t size_x = crop.size[0], size_y = crop.size[1], size_z = crop.size[2];
  const scalar_t* __restrict__ signal = measured.signal + first;
  const auto above_all = bits_of(std::numeric_limits<scalar_t>::infinity());
  int32_t sound = 1;
#pragma omp simd reduction(& : sound)
  for (int32_t m = 0; m < rows; ++m) {
    const int32_t x = coords[3 * m], y = coords[3 * m + 1], z = coords[3 * m + 2];
    const int32_t inside =
        (static_cast<uint32_t>(x) < size_x) & (static_cast<uint32_t>(y) < size_y) & (static_cast<uint32_t>(z) < size_z);
    cell[m] = inside ? crop.cell(x, y, z) : 0;
    const auto variance = bits_of(measured.variance_of(first + m));
    sound &= inside & (bits_of(signal[m]) < above_all) & (variance != 0) & (variance < above_all);
  }
  return sound != 0;
}

// Sums over the voxels without signal, `dark` of them, where `empty` is 1; fills their slopes, unless those are the
// same for all and stand there already.
template <Loss loss, typename scalar_t>
SPARSERECO_HD Sums sum_empty(const scalar_t* __restrict__ light, scalar_t background,
                             const scalar_t* __restrict__ empty, int32_t dark, const Crop& crop,
                             const Likelihood& likelihood, scalar_t* __restrict__ slope) {
  const int64_t border = crop.stride(0), end = crop.cells() - border;  // the slope of outer layers stays zero
  constexpr bool slow = loss == Loss::kPoissonUnder || loss == Loss::kGaussianUnder;
  // Nothing cancels in these sums: of a few terms in each lane of a vector, they need no more digits than the terms.
  using Sum = std::conditional_t<slow, double, scalar_t>;
  if constexpr (kSameSlope<loss>) {
    Sum sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = border; c < end; ++c) sum += empty[c] * light[c];
    return {2 * (static_cast<double>(sum) + static_cast<double>(background) * dark), 2.0 * dark};
  } else {
    const auto add = [&](int64_t c, Sum& value, Sum& slope_sum) {
      slope[c] = 0;
      if (slow && empty[c] == 0) return;
      const Term<scalar_t> term = empty_term<loss>(background + light[c], likelihood);
      slope[c] = empty[c] * term.slope;
      value += empty[c] * term.value;
      slope_sum += slope[c];
    };
    // Two halves at once: a sum waits for the one before.
    const int64_t half = (end - border) / 2;
    Sum low = 0, high = 0, low_slope = 0, high_slope = 0;
#pragma omp simd reduction(+ : low, high, low_slope, high_slope)
    for (int64_t c = border; c < border + half; ++c) {
      add(c, low, low_slope);
      add(c + half, high, high_slope);
    }
    for (int64_t c = border + 2 * half; c < end; ++c) add(c, low, low_slope);
    return {static_cast<double>(low) + high, static_cast<double>(low_slope) + high_slope};
  }
}

// Compares predicted light with rows [first, last); fills the slope of every voxel. `empty` is 1 within the image, and
// so it is left; meanwhile it is 0 where there is a measured signal.
template <Loss loss, typename scalar_t>
SPARSERECO_HD Comparison compare(const scalar_t* __restrict__ light, scalar_t background,
                                 const Measured<scalar_t>& measured, int64_t first, int64_t last, const Crop& crop,
                                 const Likelihood& likelihood, Rows<scalar_t>& rows, scalar_t* __restrict__ empty,
                                 scalar_t* __restrict__ slope) {
  if constexpr (kSameSlope<loss>)  // of the image before
    for (int32_t m = 0; m < rows.count; ++m) slope[rows.cell[m]] = 2 * empty[rows.cell[m]];
  const int32_t count = static_cast<int32_t>(last - first);
  rows.resize(count);
  const int32_t* __restrict__ cell = rows.cell.data();
  bool sound = find_cells(measured, first, last, crop, rows.cell.data());
  for (int32_t m = 0; m < count; ++m) {
    sound &= empty[cell[m]] != 0;
    empty[cell[m]] = 0;
  }
  const Sums dark = sum_empty<loss>(light, background, empty, crop.voxels() - count, crop, likelihood, slope);
  for (int32_t m = 0; m < count; ++m) empty[cell[m]] = cell[m] > 0;
  if (!sound)
    if (const int64_t fault = fault_of(measured, first, last, crop, empty); fault != kNoFault) return {{0, 0}, fault};

  scalar_t* __restrict__ mean = rows.mean.data();
  scalar_t* __restrict__ pull = rows.slope.data();
  const scalar_t* __restrict__ signal = measured.signal + first;
  for (int32_t m = 0; m < count; ++m) mean[m] = background + light[cell[m]];
  double value_sum = dark.value, slope_sum = dark.slope;
#pragma omp simd reduction(+ : value_sum, slope_sum)
  for (int32_t m = 0; m < count; ++m) {
    const Term<scalar_t> term = measured_term<loss>(mean[m], signal[m], measured.variance_of(first + m), likelihood);
    pull[m] = term.slope;
    value_sum += term.value;
    slope_sum += term.slope;
  }
  for (int32_t m = 0; m < count; ++m) slope[cell[m]] = pull[m];
  return {{value_sum, slope_sum}, kNoFault};
}

template <Loss loss, typename scalar_t>
SPARSERECO_HD int64_t match_range(const Deposits<scalar_t>& deposits, const scalar_t* background, const int64_t* index,
                                  const Measured<scalar_t>& measured, const Crop& crop, const Softness<scalar_t>& soft,
                                  const Likelihood& likelihood, const Match<scalar_t>& match, int64_t begin,
                                  int64_t end) {
  Scratch<scalar_t> scratch(crop);
  Rows<scalar_t> rows;
  if constexpr (kSameSlope<loss>)
    for (int32_t c = 0; c < crop.cells(); ++c) scratch.slope[c] = 2 * scratch.inside[c];
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
                                         crop, likelihood, rows, scratch.inside.data(), slope);
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
