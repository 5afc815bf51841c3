// Where deposits lie and what they feel is computed for many at once, in plain loops that the compiler turns into
// vector instructions. Between these, light is added up and derivatives are looked up run by run: along a track,
// successive deposits light the same voxels.

#include "splat.h"

#include <algorithm>

#include "clones.h"

namespace sparsereco {
namespace {

constexpr int kPart = 64;  // deposits whose derivatives are looked up at once

struct Tally {
  int64_t lit;  // deposits that light the image
  bool sound;   // false if a value may be at fault
};

template <typename scalar_t>
SPARSERECO_HD Tally locate_any(const Deposits<scalar_t>& deposits, int64_t start, int n, const Crop& crop,
                               const Softness<scalar_t>& soft, Located<scalar_t>& to) {
  const scalar_t* __restrict__ position = deposits.position + 3 * start;
  const scalar_t* __restrict__ charge = deposits.charge + start;
  scalar_t lit = 0, flaw = 0, lowest = 0;
#pragma omp simd reduction(+ : lit, flaw) reduction(min : lowest)
  for (int j = 0; j < n; ++j) {
    const scalar_t x = position[3 * j], y = position[3 * j + 1], z = position[3 * j + 2], q = charge[j];
    const Corners<scalar_t> at = corners(x, y, z, crop, soft);
    const Pair<scalar_t> light = split(q, at.x.above);
    to.cell[j] = at.cell;
    to.low[j] = light.low;
    to.high[j] = light.high;
    to.x[j] = at.x.above;
    to.y[j] = at.y.above;
    to.z[j] = at.z.above;
    to.slope_x[j] = at.x.slope;
    to.slope_y[j] = at.y.slope;
    to.slope_z[j] = at.z.slope;
    lit += at.lit;
    flaw += 0 * (x + y + z + q);  // 0, or NaN if a value is not finite, or the sum of great ones
    lowest = lowest < q ? lowest : q;
  }
  to.start = start;
  return {static_cast<int64_t>(lit), flaw == 0 && lowest == 0};
}

// Not part of what calls it: inlined there, GCC 12 leaves its loop scalar.
template <typename scalar_t>
Tally locate(const Deposits<scalar_t>& deposits, int64_t start, int n, const Crop& crop,
             const Softness<scalar_t>& soft, Located<scalar_t>& to);

template <typename scalar_t>
int64_t find_fault(const Deposits<scalar_t>& deposits, int64_t first, int64_t last) {
  int64_t fault = kNoFault;
  for (int64_t j = first; j < last; ++j) {
    for (int axis = 0; axis < 3; ++axis)
      if (!is_finite(deposits.position[3 * j + axis])) fault = lower_fault(fault, fault_at(Fault::kPosition, j));
    if (!is_finite_and_not_negative(deposits.charge[j])) fault = lower_fault(fault, fault_at(Fault::kCharge, j));
  }
  return fault;
}

// First of the deposits from j on, out of n, that lights other voxels than j does.
SPARSERECO_HD int run_end(const int32_t* cell, int j, int n) {
  int end = j + 1;
  while (end < n && cell[end] == cell[j]) ++end;
  return end;
}

// Numbers for the four voxels of a layer: along z first, then along y.
template <typename scalar_t>
struct Layer {
  typedef scalar_t four __attribute__((vector_size(4 * sizeof(scalar_t))));
};

// Adds the light of the n deposits to an image.
template <typename scalar_t>
SPARSERECO_HD void add_up(const Located<scalar_t>& at, int n, const Crop& crop, scalar_t* image) {
  using Four = typename Layer<scalar_t>::four;
  const Four low_y = {1, 1, 0, 0}, sign_y = {-1, -1, 1, 1};
  const Four low_z = {1, 0, 1, 0}, sign_z = {-1, 1, -1, 1};
  const int32_t up_x = crop.stride(0), up_y = crop.stride(1);
  for (int j = 0; j < n;) {
    scalar_t* to = image + at.cell[j];
    Four low = {}, high = {};
    for (const int32_t cell = at.cell[j]; j < n && at.cell[j] == cell; ++j) {
      const Four yz = (low_y + sign_y * at.y[j]) * (low_z + sign_z * at.z[j]);
      low += at.low[j] * yz;
      high += at.high[j] * yz;
    }
    for (int z = 0; z < 2; ++z) {
      to[z] += low[z];
      to[up_y + z] += low[2 + z];
      to[up_x + z] += high[z];
      to[up_x + up_y + z] += high[2 + z];
    }
  }
}

template <typename scalar_t>
SPARSERECO_HD Census splat_any(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, const Crop& crop,
                               const Softness<scalar_t>& soft, Scratch<scalar_t>& scratch) {
  std::fill(scratch.light.begin(), scratch.light.end(), scalar_t(0));
  int64_t dropped = last - first;
  bool sound = true;
  for (int64_t start = first; start < last; start += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, last - start));
    const Tally tally = locate(deposits, start, n, crop, soft, scratch.located);
    dropped -= tally.lit;
    sound &= tally.sound;
    add_up(scratch.located, n, crop, scratch.light.data());
  }
  return {dropped, sound ? kNoFault : find_fault(deposits, first, last)};
}

// Derivatives with respect to the n <= kPart located deposits from row `from` of the block on.
template <typename scalar_t>
SPARSERECO_HD void pull_part(const Located<scalar_t>& at, int from, int n, const Crop& crop,
                             const scalar_t* __restrict__ charge, const scalar_t* __restrict__ slope,
                             scalar_t* __restrict__ grad_position, scalar_t* __restrict__ grad_charge) {
  constexpr int kWidth = 32 / sizeof(scalar_t);  // written at once, also beyond the run and the last deposit
  const int32_t up_x = crop.stride(0), up_y = crop.stride(1);
  const int32_t* cell = at.cell + from;
  scalar_t g[8][kPart + kWidth];
  for (int j = 0; j < n;) {
    const scalar_t* low = slope + cell[j];
    const scalar_t* high = low + up_x;
    const scalar_t corner[8] = {low[0],  low[1],  low[up_y],  low[up_y + 1],
                                high[0], high[1], high[up_y], high[up_y + 1]};
    const int end = run_end(cell, j, n);
    for (; j < end; j += kWidth)
      for (int k = 0; k < 8; ++k) std::fill_n(g[k] + j, kWidth, corner[k]);
    j = end;
  }
  const scalar_t *x = at.x + from, *y = at.y + from, *z = at.z + from;
  const scalar_t *slope_x = at.slope_x + from, *slope_y = at.slope_y + from, *slope_z = at.slope_z + from;
#pragma GCC ivdep
  for (int j = 0; j < n; ++j) {
    const Eight<scalar_t> eight{{g[0][j], g[1][j]}, {g[2][j], g[3][j]}, {g[4][j], g[5][j]}, {g[6][j], g[7][j]}};
    const Pull<scalar_t> grad =
        pull<scalar_t>(eight, {x[j], slope_x[j]}, {y[j], slope_y[j]}, {z[j], slope_z[j]}, charge[j]);
    grad_charge[j] = grad.charge;
    grad_position[3 * j] = grad.x;
    grad_position[3 * j + 1] = grad.y;
    grad_position[3 * j + 2] = grad.z;
  }
}

template <typename scalar_t>
SPARSERECO_HD void pull_any(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, const Crop& crop,
                            const Softness<scalar_t>& soft, const scalar_t* slope, Located<scalar_t>& at,
                            scalar_t* grad_position, scalar_t* grad_charge) {
  for (int64_t start = first; start < last; start += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, last - start));
    if (at.start != start) locate(deposits, start, n, crop, soft, at);
    for (int from = 0; from < n; from += kPart) {
      const int64_t row = start + from;
      pull_part(at, from, std::min(kPart, n - from), crop, deposits.charge + row, slope, grad_position + 3 * row,
                grad_charge + row);
    }
  }
}

#define LOCATE(scalar_t)                                                                                             \
  template <>                                                                                                        \
  SPARSERECO_CLONES Tally locate(const Deposits<scalar_t>& deposits, int64_t start, int n, const Crop& crop,         \
                                 const Softness<scalar_t>& soft, Located<scalar_t>& to) {                            \
    return locate_any(deposits, start, n, crop, soft, to);                                                           \
  }
LOCATE(float)
LOCATE(double)
#undef LOCATE

}  // namespace

#define INSTANTIATE(scalar_t)                                                                                        \
  template <>                                                                                                        \
  SPARSERECO_CLONES Census splat(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, const Crop& crop,  \
                                 const Softness<scalar_t>& soft, Scratch<scalar_t>& scratch) {                       \
    return splat_any(deposits, first, last, crop, soft, scratch);                                                    \
  }                                                                                                                  \
  template <>                                                                                                        \
  SPARSERECO_CLONES void pull_all(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, const Crop& crop, \
                                  const Softness<scalar_t>& soft, const scalar_t* slope, Located<scalar_t>& at,      \
                                  scalar_t* grad_position, scalar_t* grad_charge) {                                  \
    pull_any(deposits, first, last, crop, soft, slope, at, grad_position, grad_charge);                              \
  }
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace sparsereco
