// Deposits to an image and back, for one instruction set. Included by splat_<set>.cpp after lanes.h, which says how;
// it defines
//   SPARSERECO_SET  name of the set.
//
// Where deposits lie and what they feel is computed for many at once. Along a track, successive deposits light the same
// voxels: light is added up in registers run by run, and what derivatives need is worked out once per run.

namespace sparsereco {
namespace {

constexpr int kPart = 32;  // deposits whose derivatives are computed at once; of more, calls for rows would wait

// Returns whether all charges are sound and all positions inside the image, so that none need be looked at again.
//
// Not part of what calls it: inlined there, GCC 12 leaves its loop scalar. Copies of crop and soft: nothing else may
// change them meanwhile.
template <typename scalar_t>
__attribute__((noinline)) bool locate(const Deposits<scalar_t>& deposits, int64_t start, int n, const Crop crop,
                                      const Softness<scalar_t> soft, Located<scalar_t>& to) {
  const scalar_t* __restrict__ charge = deposits.charge + start;
  separate(deposits.position + 3 * start, n, to.x, to.y, to.z);
  decltype(bits_of(charge[0])) most_x = 0, most_y = 0, most_z = 0, most = 0;
#pragma omp simd reduction(max : most_x, most_y, most_z, most)
  for (int j = 0; j < n; ++j) {
    const scalar_t x = to.x[j], y = to.y[j], z = to.z[j], q = charge[j];
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
    most_x = std::max(most_x, bits_of(x));
    most_y = std::max(most_y, bits_of(y));
    most_z = std::max(most_z, bits_of(z));
    most = std::max(most, bits_of(q));
  }
  to.start = start;
  const auto within = [&](int axis) { return bits_of(static_cast<scalar_t>(crop.size[axis])); };
  return most_x <= within(0) && most_y <= within(1) && most_z <= within(2) &&
         most <= bits_of(std::numeric_limits<scalar_t>::max());
}

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

// Deposits of [first, first + n) that light no voxel, and their lowest fault: for blocks that `locate` is not sure of,
// those of a track that leaves the image among them.
template <typename scalar_t>
__attribute__((noinline)) Census look(const Deposits<scalar_t>& deposits, int64_t first, int n, const Crop crop,
                                      const Softness<scalar_t> soft) {
  const scalar_t* __restrict__ position = deposits.position + 3 * first;
  const scalar_t* __restrict__ charge = deposits.charge + first;
  scalar_t lit = 0, flaw = 0, lowest = 0;
#pragma omp simd reduction(+ : lit, flaw) reduction(min : lowest)
  for (int j = 0; j < n; ++j) {
    const scalar_t x = position[3 * j], y = position[3 * j + 1], z = position[3 * j + 2], q = charge[j];
    lit += corners(x, y, z, crop, soft).lit;
    flaw += 0 * (x + y + z + q);  // 0, or NaN if a value is not finite, or the sum of great ones
    lowest = lowest < q ? lowest : q;
  }
  const bool sound = flaw == 0 && lowest == 0;
  return {n - static_cast<int64_t>(lit), sound ? kNoFault : find_fault(deposits, first, first + n)};
}

// Finds the runs of the n located deposits, and adds their light to an image.
template <typename scalar_t>
SPARSERECO_HD void add_up(Located<scalar_t>& at, int n, const Crop& crop, scalar_t* image) {
  using Vectors = Layer<scalar_t>;
  using Four = typename Vectors::Four;
  using Eight = typename Vectors::Eight;
  const Eight low_y = {1, 1, 0, 0, 1, 1, 0, 0}, sign_y = {-1, -1, 1, 1, -1, -1, 1, 1};
  const Eight low_z = {1, 0, 1, 0, 1, 0, 1, 0}, sign_z = {-1, 1, -1, 1, -1, 1, -1, 1};
  const int32_t up_x = crop.stride(0), up_y = crop.stride(1);
  at.cell[n] = -1;  // ends the last run
  int run = 0;
  for (int j = 0; j < n; ++run) {
    const int32_t cell = at.cell[j];
    at.cell_of_run[run] = cell;
    Eight low = {}, high = {};
    for (; at.cell[j] == cell && at.cell[j + 1] == cell; j += 2) {
      Eight y, z, to_low, to_high;
      Vectors::spread(at.y + j, y);
      Vectors::spread(at.z + j, z);
      Vectors::spread(at.low + j, to_low);
      Vectors::spread(at.high + j, to_high);
      const Eight yz = (low_y + sign_y * y) * (low_z + sign_z * z);
      low += to_low * yz;
      high += to_high * yz;
      at.run[j] = at.run[j + 1] = run;
    }
    Four layer, upper;
    Vectors::sum(low, layer);
    Vectors::sum(high, upper);
    if (at.cell[j] == cell) {
      const scalar_t y = at.y[j], z = at.z[j];
      const Four yz = {(1 - y) * (1 - z), (1 - y) * z, y * (1 - z), y * z};
      layer += at.low[j] * yz;
      upper += at.high[j] * yz;
      at.run[j++] = run;
    }
    Vectors::add(layer, up_y, image + cell);
    Vectors::add(upper, up_y, image + cell + up_x);
  }
  at.runs = run;
}

template <typename scalar_t>
Census splat(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, const Crop& crop,
             const Softness<scalar_t>& soft, Scratch<scalar_t>& scratch) {
  std::fill(scratch.light.begin(), scratch.light.end(), scalar_t(0));
  Census found{0, kNoFault};
  for (int64_t start = first; start < last; start += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, last - start));
    if (!locate(deposits, start, n, crop, soft, scratch.located)) {
      const Census here = look(deposits, start, n, crop, soft);
      found = {found.dropped + here.dropped, lower_fault(found.fault, here.fault)};
    }
    add_up(scratch.located, n, crop, scratch.light.data());
  }
  return found;
}

// The derivative of a loss with respect to the light at a place within the eight voxels of a run is a polynomial,
// linear in each of the shares x, y and z: its coefficients, of all runs of a block.
template <typename scalar_t>
struct Polynomials {
  static constexpr int kRuns = kBlock + Lanes<scalar_t>::kWidth;  // some are read in vain beyond the last one
  scalar_t one[kRuns], x[kRuns], y[kRuns], z[kRuns], xy[kRuns], xz[kRuns], yz[kRuns], xyz[kRuns];
};

template <typename scalar_t>
SPARSERECO_HD void fit(const Located<scalar_t>& at, const Crop& crop, const scalar_t* __restrict__ slope,
                       Polynomials<scalar_t>& to) {
  const int32_t up_x = crop.stride(0), up_y = crop.stride(1);
  for (int r = 0; r < at.runs; ++r) {
    const scalar_t* low = slope + at.cell_of_run[r];
    const scalar_t* high = low + up_x;
    const scalar_t low_low = low[1] - low[0], low_high = low[up_y + 1] - low[up_y];  // along z
    const scalar_t high_low = high[1] - high[0], high_high = high[up_y + 1] - high[up_y];
    const scalar_t low_y = low[up_y] - low[0], high_y = high[up_y] - high[0];
    to.one[r] = low[0];
    to.x[r] = high[0] - low[0];
    to.y[r] = low_y;
    to.z[r] = low_low;
    to.xy[r] = high_y - low_y;
    to.xz[r] = high_low - low_low;
    to.yz[r] = low_high - low_low;
    to.xyz[r] = (high_high - high_low) - (low_high - low_low);
  }
}

// Derivatives with respect to the n located deposits from row `from` of the block on. A vector of deposits belongs to
// successive runs, no more than it has lanes.
template <typename scalar_t>
SPARSERECO_HD void pull_part(const Located<scalar_t>& at, const Polynomials<scalar_t>& of, int from, int n,
                             const scalar_t* __restrict__ charge, scalar_t* __restrict__ grad_position,
                             scalar_t* __restrict__ grad_charge) {
  using L = Lanes<scalar_t>;
  using Vector = typename L::Vector;
  using Unaligned = typename L::Unaligned;
  scalar_t last[3 * L::kWidth];  // derivatives of a vector that is not full
  for (int j = 0; j < n; j += L::kWidth) {
    const auto vector = [&](const auto* row) { return *reinterpret_cast<const Vector*>(row + from + j); };
    const Vector x = vector(at.x), y = vector(at.y), z = vector(at.z);
    const auto first = at.run[from + j];
    const typename L::Index run = *reinterpret_cast<const typename L::Index*>(at.run + from + j) - first;
    const auto coefficient = [&](const scalar_t* of_runs) { return L::look_up(of_runs + first, run); };
    const Vector of_z = coefficient(of.z), of_xz = coefficient(of.xz);
    const Vector of_yz = coefficient(of.yz), of_xyz = coefficient(of.xyz);
    const Vector one = coefficient(of.one) + of_z * z, of_x = coefficient(of.x) + of_xz * z;
    const Vector of_y = coefficient(of.y) + of_yz * z, of_xy = coefficient(of.xy) + of_xyz * z;
    const Vector by_x = of_x + of_xy * y, by_y = of_y + of_xy * x;
    const Vector by_z = of_z + of_yz * y + (of_xz + of_xyz * y) * x;
    const Vector value = one + of_y * y + by_x * x;

    call_for<1, kFirstCache>(grad_position, 3 * (j + kAhead), 3 * L::kWidth);
    call_for<1, kFirstCache>(grad_charge, j + kAhead, L::kWidth);
    const int here = std::min(L::kWidth, n - j);
    const bool whole = here == L::kWidth;
    Vector q = {};
    if (whole)
      q = *reinterpret_cast<const Unaligned*>(charge + j);
    else
      std::memcpy(&q, charge + j, here * sizeof(scalar_t));
    interleave<scalar_t>(q * vector(at.slope_x) * by_x, q * vector(at.slope_y) * by_y, q * vector(at.slope_z) * by_z,
                         whole ? grad_position + 3 * j : last);
    if (whole) {
      *reinterpret_cast<Unaligned*>(grad_charge + j) = value;
    } else {
      std::memcpy(grad_charge + j, &value, here * sizeof(scalar_t));
      std::memcpy(grad_position + 3 * j, last, 3 * here * sizeof(scalar_t));
    }
  }
}

// As add_up, without light.
template <typename scalar_t>
SPARSERECO_HD void find_runs(Located<scalar_t>& at, int n) {
  at.runs = 0;
  for (int j = 0; j < n; ++j) {
    if (j == 0 || at.cell[j] != at.cell[j - 1]) at.cell_of_run[at.runs++] = at.cell[j];
    at.run[j] = at.runs - 1;
  }
}

// Derivatives with respect to deposits [first, last) from those with respect to the image.
template <typename scalar_t>
void pull(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, const Crop& crop,
          const Softness<scalar_t>& soft, const scalar_t* slope, Located<scalar_t>& at, scalar_t* grad_position,
          scalar_t* grad_charge) {
  alignas(64) Polynomials<scalar_t> of;
  for (int64_t start = first; start < last; start += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, last - start));
    if (at.start != start) {
      locate(deposits, start, n, crop, soft, at);
      find_runs(at, n);
    }
    fit(at, crop, slope, of);
    for (int from = 0; from < n; from += kPart) {
      const int64_t row = start + from;
      const int64_t ahead = row + last - first;  // the next image is taken to be of the same size
      if (ahead + kPart <= deposits.count) {
        call_for<0, kSecondCache>(deposits.position, 3 * ahead, 3 * kPart);
        call_for<0, kSecondCache>(deposits.charge, ahead, kPart);
        call_for<1, kSecondCache>(grad_position, 3 * ahead, 3 * kPart);
        call_for<1, kSecondCache>(grad_charge, ahead, kPart);
      }
      pull_part(at, of, from, std::min(kPart, n - from), deposits.charge + row, grad_position + 3 * row,
                grad_charge + row);
    }
  }
}

}  // namespace

template <>
SplatKernels<float> SPARSERECO_SET() {
  return {splat<float>, pull<float>};
}
template <>
SplatKernels<double> SPARSERECO_SET() {
  return {splat<double>, pull<double>};
}

}  // namespace sparsereco
