// Deposits to an image and back, for one instruction set. Included by splat_<set>.cpp, which defines
//   SPARSERECO_SET     name of the set,
//   SPARSERECO_VECTOR  bytes of a vector register,
// and switches the compiler to the set, so that nothing of this may be shared between the files: all names stand in an
// unnamed namespace, and headers are included before.
//
// Where deposits lie and what they feel is computed for many at once. Along a track, successive deposits light the same
// voxels: light is added up in registers run by run, and what derivatives need is worked out once per run.

namespace sparsereco {
namespace {

constexpr int kPart = 64;  // deposits whose derivatives are computed at once

template <typename scalar_t>
struct Lanes {
  using Integer = std::conditional_t<sizeof(scalar_t) == 4, int32_t, int64_t>;
  static constexpr int kWidth = SPARSERECO_VECTOR / sizeof(scalar_t);
  typedef scalar_t Vector __attribute__((vector_size(SPARSERECO_VECTOR), may_alias));
  typedef scalar_t Unaligned __attribute__((vector_size(SPARSERECO_VECTOR), may_alias, aligned(sizeof(scalar_t))));
  typedef Integer Index __attribute__((vector_size(SPARSERECO_VECTOR), may_alias));
};

struct Tally {
  int64_t lit;  // deposits that light the image
  bool sound;   // false if a value may be at fault
};

// Not part of what calls it: inlined there, GCC 12 leaves its loop scalar. Copies of crop and soft: nothing else may
// change them meanwhile.
template <typename scalar_t>
__attribute__((noinline)) Tally locate(const Deposits<scalar_t>& deposits, int64_t start, int n, const Crop crop,
                                       const Softness<scalar_t> soft, Located<scalar_t>& to) {
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

// Numbers for the four voxels of a layer: along z first, then along y.
template <typename scalar_t>
struct Layer {
  typedef scalar_t four __attribute__((vector_size(4 * sizeof(scalar_t))));
};

// Finds the runs of the n located deposits, and adds their light to an image.
template <typename scalar_t>
SPARSERECO_HD void add_up(Located<scalar_t>& at, int n, const Crop& crop, scalar_t* image) {
  using Four = typename Layer<scalar_t>::four;
  const Four low_y = {1, 1, 0, 0}, sign_y = {-1, -1, 1, 1};
  const Four low_z = {1, 0, 1, 0}, sign_z = {-1, 1, -1, 1};
  const int32_t up_x = crop.stride(0), up_y = crop.stride(1);
  int run = 0;
  for (int j = 0; j < n; ++run) {
    const int32_t cell = at.cell[j];
    at.cell_of_run[run] = cell;
    Four low = {}, high = {}, odd_low = {}, odd_high = {};  // apart: a sum waits for the one before
    const auto add = [&](int k, Four& to_low, Four& to_high) {
      const Four yz = (low_y + sign_y * at.y[k]) * (low_z + sign_z * at.z[k]);
      to_low += at.low[k] * yz;
      to_high += at.high[k] * yz;
      at.run[k] = run;
    };
    for (; j + 1 < n && at.cell[j] == cell && at.cell[j + 1] == cell; j += 2) {
      add(j, low, high);
      add(j + 1, odd_low, odd_high);
    }
    if (j < n && at.cell[j] == cell) add(j++, low, high);
    low += odd_low;
    high += odd_high;
    scalar_t* to = image + cell;
    for (int z = 0; z < 2; ++z) {
      to[z] += low[z];
      to[up_y + z] += low[2 + z];
      to[up_x + z] += high[z];
      to[up_x + up_y + z] += high[2 + z];
    }
  }
  at.runs = run;
}

template <typename scalar_t>
Census splat(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, const Crop& crop,
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

// table[run[lane]]; no run of a deposit is kWidth or more.
template <typename scalar_t>
SPARSERECO_HD typename Lanes<scalar_t>::Vector look_up(const scalar_t* table, typename Lanes<scalar_t>::Index run) {
  typename Lanes<scalar_t>::Vector found = *reinterpret_cast<const typename Lanes<scalar_t>::Unaligned*>(table);
#if defined(__GNUC__) && !defined(__clang__)
  return __builtin_shuffle(found, run);
#else
  for (int lane = 0; lane < Lanes<scalar_t>::kWidth; ++lane)
    found[lane] = table[run[lane] & (Lanes<scalar_t>::kWidth - 1)];  // beyond the last deposit, any number
  return found;
#endif
}

// Derivatives with respect to the n <= kPart located deposits from row `from` of the block on. A vector of
// deposits belongs to successive runs, no more than it has lanes.
template <typename scalar_t>
SPARSERECO_HD void pull_part(const Located<scalar_t>& at, const Polynomials<scalar_t>& of, int from, int n,
                             const scalar_t* __restrict__ charge, scalar_t* __restrict__ grad_position,
                             scalar_t* __restrict__ grad_charge) {
  using Vector = typename Lanes<scalar_t>::Vector;
  using Index = typename Lanes<scalar_t>::Index;
  constexpr int kWidth = Lanes<scalar_t>::kWidth;
  alignas(64) scalar_t along_x[kPart], along_y[kPart], along_z[kPart], value[kPart];
  for (int j = 0; j < n; j += kWidth) {
    const auto vector = [&](const auto* row) { return *reinterpret_cast<const Vector*>(row + from + j); };
    const Vector x = vector(at.x), y = vector(at.y), z = vector(at.z);
    const auto first = at.run[from + j];
    const Index run = *reinterpret_cast<const Index*>(at.run + from + j) - first;
    const Vector of_z = look_up<scalar_t>(of.z + first, run), of_xz = look_up<scalar_t>(of.xz + first, run);
    const Vector of_yz = look_up<scalar_t>(of.yz + first, run), of_xyz = look_up<scalar_t>(of.xyz + first, run);
    const Vector one = look_up<scalar_t>(of.one + first, run) + of_z * z;
    const Vector of_x = look_up<scalar_t>(of.x + first, run) + of_xz * z;
    const Vector of_y = look_up<scalar_t>(of.y + first, run) + of_yz * z;
    const Vector of_xy = look_up<scalar_t>(of.xy + first, run) + of_xyz * z;
    const Vector by_x = of_x + of_xy * y;
    const auto put = [&](scalar_t* to, Vector numbers) { *reinterpret_cast<Vector*>(to + j) = numbers; };
    put(along_x, by_x);
    put(along_y, of_y + of_xy * x);
    put(along_z, of_z + of_yz * y + (of_xz + of_xyz * y) * x);
    put(value, one + of_y * y + by_x * x);
  }
  const scalar_t *slope_x = at.slope_x + from, *slope_y = at.slope_y + from, *slope_z = at.slope_z + from;
#pragma GCC ivdep
  for (int j = 0; j < n; ++j) {
    grad_charge[j] = value[j];
    grad_position[3 * j] = charge[j] * slope_x[j] * along_x[j];
    grad_position[3 * j + 1] = charge[j] * slope_y[j] * along_y[j];
    grad_position[3 * j + 2] = charge[j] * slope_z[j] * along_z[j];
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

// Calls for rows that the next image needs: by itself, a CPU follows a stream only to the end of a page.
template <int write, typename scalar_t>
SPARSERECO_HD void prefetch(const scalar_t* from, int numbers) {
  constexpr int kLine = 64 / sizeof(scalar_t), kSecondCache = 2;
  for (int j = 0; j < numbers; j += kLine) __builtin_prefetch(from + j, write, kSecondCache);
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
        prefetch<0>(deposits.position + 3 * ahead, 3 * kPart);
        prefetch<0>(deposits.charge + ahead, kPart);
        prefetch<1>(grad_position + 3 * ahead, 3 * kPart);
        prefetch<1>(grad_charge + ahead, kPart);
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
