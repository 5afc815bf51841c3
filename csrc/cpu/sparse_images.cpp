// CPU kernels of sparse soft voxelisation. Nothing here depends on how large the image is. Along a track, successive
// deposits light the same voxels: what is sorted, or looked up, is one entry of eight voxels for each run of them.

#include "sparse_images.h"

#include <algorithm>

#include "../faults.h"

namespace sparsereco {
namespace {

template <typename scalar_t>
struct Run {
  int64_t voxel[8];
  scalar_t light[8];
};

template <typename scalar_t>
int64_t fault_of(const Deposits<scalar_t>& deposits, int64_t j) {
  const scalar_t* r = deposits.position + 3 * j;
  if (!(is_finite(r[0]) && is_finite(r[1]) && is_finite(r[2]))) return fault_at(Fault::kPosition, j);
  return is_finite_and_not_negative(deposits.charge[j]) ? kNoFault : fault_at(Fault::kCharge, j);
}

// The voxels of all runs, ascending, each once. Light is added in the order of the deposits.
template <typename scalar_t>
std::vector<Lit<scalar_t>> merged(const std::vector<Run<scalar_t>>& runs) {
  std::vector<Lit<scalar_t>> all;
  all.reserve(8 * runs.size());
  for (const Run<scalar_t>& run : runs)
    for (int k = 0; k < 8; ++k)
      if (run.voxel[k] >= 0) all.push_back({run.voxel[k], run.light[k]});
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.voxel < b.voxel; });
  std::vector<Lit<scalar_t>> once;
  for (const Lit<scalar_t>& lit : all) {
    if (once.empty() || once.back().voxel != lit.voxel)
      once.push_back(lit);
    else
      once.back().light += lit.light;
  }
  return once;
}

}  // namespace

template <typename scalar_t>
int64_t splat_sparse_images(const Deposits<scalar_t>& deposits, const Crop& grid, double softness,
                            std::vector<Lit<scalar_t>>* images, int64_t* dropped, int64_t begin, int64_t end) {
  const Softness<scalar_t> soft(softness);
  std::vector<Run<scalar_t>> runs;
  int64_t fault = kNoFault;
  for (int64_t i = begin; i < end; ++i) {
    if (!segment_is_sound(deposits.offsets, i, deposits.images, deposits.count)) return fault_at(Fault::kOffsets, i);
    runs.clear();
    dropped[i] = 0;
    for (int64_t j = deposits.offsets[i]; j < deposits.offsets[i + 1]; ++j) {
      fault = lower_fault(fault, fault_of(deposits, j));
      const Place<scalar_t> found = place(deposits.position + 3 * j, grid, soft);
      if (found.at.lit == 0) ++dropped[i];
      if (runs.empty() || !std::equal(found.voxel, found.voxel + 8, runs.back().voxel)) {
        runs.emplace_back();
        std::copy_n(found.voxel, 8, runs.back().voxel);
      }
      scalar_t light[8];
      flatten(shares(found.at, deposits.charge[j]), light);
      for (int k = 0; k < 8; ++k) runs.back().light[k] += light[k];
    }
    images[i] = merged(runs);
  }
  return fault;
}

template <typename scalar_t>
int64_t pull_sparse_images(const Deposits<scalar_t>& deposits, const Crop& grid, double softness, const int32_t* coords,
                           const int64_t* rows, const scalar_t* grad_light, scalar_t* grad_position,
                           scalar_t* grad_charge, int64_t begin, int64_t end) {
  const Softness<scalar_t> soft(softness);
  std::vector<int64_t> lit;
  for (int64_t i = begin; i < end; ++i) {
    if (!segment_is_sound(deposits.offsets, i, deposits.images, deposits.count)) return fault_at(Fault::kOffsets, i);
    lit.clear();
    for (int64_t m = rows[i]; m < rows[i + 1]; ++m) {
      const int32_t* at = coords + 3 * m;
      lit.push_back((static_cast<int64_t>(at[0]) * grid.size[1] + at[1]) * grid.size[2] + at[2]);
    }
    int64_t known[8];
    scalar_t g[8];
    for (int64_t j = deposits.offsets[i]; j < deposits.offsets[i + 1]; ++j) {
      const Place<scalar_t> found = place(deposits.position + 3 * j, grid, soft);
      if (j == deposits.offsets[i] || !std::equal(found.voxel, found.voxel + 8, known)) {
        for (int k = 0; k < 8; ++k) {
          known[k] = found.voxel[k];
          const auto at = std::lower_bound(lit.begin(), lit.end(), known[k]);
          g[k] = at != lit.end() && *at == known[k] ? grad_light[rows[i] + (at - lit.begin())] : scalar_t(0);
        }
      }
      const Pull<scalar_t> grad = pull(unflatten(g), found.at.x, found.at.y, found.at.z, deposits.charge[j]);
      grad_charge[j] = grad.charge;
      grad_position[3 * j] = grad.x;
      grad_position[3 * j + 1] = grad.y;
      grad_position[3 * j + 2] = grad.z;
    }
  }
  return kNoFault;
}

#define INSTANTIATE(scalar_t)                                                                                         \
  template int64_t splat_sparse_images(const Deposits<scalar_t>&, const Crop&, double, std::vector<Lit<scalar_t>>*,   \
                                       int64_t*, int64_t, int64_t);                                                   \
  template int64_t pull_sparse_images(const Deposits<scalar_t>&, const Crop&, double, const int32_t*, const int64_t*, \
                                      const scalar_t*, scalar_t*, scalar_t*, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace sparsereco
