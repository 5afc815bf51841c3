// The CPU kernels on sparse images, free of torch; as those of images.h.

#pragma once

#include <vector>

#include "../image_match.h"
#include "../sparse_images.h"

namespace sparsereco {

template <typename scalar_t>
struct Lit {
  int64_t voxel;  // its number in the image
  scalar_t light;
};

// images[i]: the lit voxels of image i, ascending; dropped: (images,).
template <typename scalar_t>
int64_t splat_sparse_images(const Deposits<scalar_t>& deposits, const Crop& grid, double softness,
                            std::vector<Lit<scalar_t>>* images, int64_t* dropped, int64_t begin, int64_t end);

// Rows [rows[i], rows[i + 1]) of coords are the lit voxels of image i, ascending; grad_light: a derivative for each.
template <typename scalar_t>
int64_t pull_sparse_images(const Deposits<scalar_t>& deposits, const Crop& grid, double softness, const int32_t* coords,
                           const int64_t* rows, const scalar_t* grad_light, scalar_t* grad_position,
                           scalar_t* grad_charge, int64_t begin, int64_t end);

}  // namespace sparsereco
