// How point-like deposits light up voxels: the mathematics, once, for host and device.
//
// A deposit spreads over a unit box whose edges are cubic smoothsteps of half-width `softness`. Only the plane between
// voxels that is nearest to the deposit matters: the voxel above it takes the share t^2 (3 - 2 t), the one below the
// rest, so that the shares are an exact partition of unity over at most two voxels per axis, with continuous gradients.

#pragma once

#include <cstdint>

#include "host_device.h"

namespace sparsereco {

// Images are worked on with a border of one voxel, so that a deposit at the edge needs no special case. This many
// voxels, border included, keep two double images in the shared memory of any GPU and in the first cache of any CPU.
constexpr int64_t kMaxCells = 14 * 14 * 14;

struct Crop {
  int32_t size[3];  // voxels without the border

  SPARSERECO_HD int32_t stride(int axis) const {
    return axis == 2 ? 1 : axis == 1 ? size[2] + 2 : (size[1] + 2) * (size[2] + 2);
  }
  SPARSERECO_HD int32_t cells() const { return (size[0] + 2) * stride(0); }
  SPARSERECO_HD int32_t voxels() const { return size[0] * size[1] * size[2]; }
  SPARSERECO_HD int32_t cell(int32_t x, int32_t y, int32_t z) const {
    return (x + 1) * stride(0) + (y + 1) * stride(1) + z + 1;
  }
};

// Rows [offsets[i], offsets[i + 1]) are the deposits of image i.
template <typename scalar_t>
struct Deposits {
  const scalar_t* position;  // (count, 3), voxel (i, j, k) spans [i, i + 1) x [j, j + 1) x [k, k + 1)
  const scalar_t* charge;    // (count,)
  const int64_t* offsets;    // (images + 1,)
  int64_t count, images;
};

// Share of the upper one of two voxels, and its derivative.
template <typename scalar_t>
struct Upper {
  scalar_t above, slope;
};

// The plane between voxels that is nearest to a deposit, along one axis: voxels plane - 1 and plane share the light.
template <typename scalar_t>
struct Edge : Upper<scalar_t> {
  scalar_t plane;  // 0 to size, a whole number
  scalar_t lit;    // 1 where one of them that gets light is inside the image, else 0
};

// A softness too small for the type's range means hard edges all the same.
template <typename scalar_t>
struct Softness {
  scalar_t half_width, sharpness, steepness;
  scalar_t zero = 0, one = 1;  // variables: with constants, GCC 12 splits edge() into masked cases
  explicit Softness(double softness)
      : half_width(static_cast<scalar_t>(softness)),
        sharpness(static_cast<scalar_t>(softness > 1e-30 ? 0.5 / softness : 5e29)),
        steepness(6 * sharpness) {}
};

// Any position gives a plane of the image, NaN and infinity too. No jumps: loops over deposits are vectorised.
template <typename scalar_t>
SPARSERECO_HD Edge<scalar_t> edge(scalar_t position, int32_t voxels, const Softness<scalar_t>& soft) {
  const scalar_t size = static_cast<scalar_t>(voxels);
  scalar_t near = position > soft.zero ? position : soft.zero;
  near = near < size ? near : size;
  const scalar_t plane = static_cast<scalar_t>(static_cast<int32_t>(near + scalar_t(0.5)));
  scalar_t t = (position - plane) * soft.sharpness + scalar_t(0.5);
  t = t > soft.zero ? t : soft.zero;
  t = t < soft.one ? t : soft.one;
  const bool lit = (position > -soft.half_width) & (position < size + soft.half_width);
  const scalar_t square = t * t;
  return {{square * (3 - 2 * t), (t - square) * soft.steepness}, plane, lit ? scalar_t(1) : scalar_t(0)};
}

template <typename scalar_t>
struct Corners {
  int32_t cell;  // the lowest of the eight voxels
  scalar_t lit;  // 1 where any of the light falls into the image, else 0
  Edge<scalar_t> x, y, z;
};

template <typename scalar_t>
SPARSERECO_HD Corners<scalar_t> corners(scalar_t x, scalar_t y, scalar_t z, const Crop& crop,
                                        const Softness<scalar_t>& soft) {
  const Edge<scalar_t> a = edge(x, crop.size[0], soft), b = edge(y, crop.size[1], soft),
                       c = edge(z, crop.size[2], soft);
  const scalar_t up_x = static_cast<scalar_t>(crop.stride(0)), up_y = static_cast<scalar_t>(crop.stride(1));
  return {static_cast<int32_t>(a.plane * up_x + (b.plane * up_y + c.plane)), a.lit * b.lit * c.lit, a, b, c};
}

// Light on two voxels that are neighbours along z, or derivatives of a loss with respect to it.
template <typename scalar_t>
struct Pair {
  scalar_t low, high;

  SPARSERECO_HD scalar_t between(scalar_t above) const { return low + above * (high - low); }
};

// All eight: first along x, second along y.
template <typename scalar_t>
struct Eight {
  Pair<scalar_t> low_low, low_high, high_low, high_high;
};

template <typename scalar_t>
SPARSERECO_HD Pair<scalar_t> split(scalar_t charge, scalar_t above) {
  const scalar_t high = charge * above;
  return {charge - high, high};
}

template <typename scalar_t>
SPARSERECO_HD Eight<scalar_t> shares(const Corners<scalar_t>& at, scalar_t charge) {
  const Pair<scalar_t> x = split(charge, at.x.above);
  const Pair<scalar_t> low = split(x.low, at.y.above), high = split(x.high, at.y.above);
  return {split(low.low, at.z.above), split(low.high, at.z.above), split(high.low, at.z.above),
          split(high.high, at.z.above)};
}

// Derivatives of a loss with respect to one deposit.
template <typename scalar_t>
struct Pull {
  scalar_t charge, x, y, z;
};

// g: derivatives with respect to the eight voxels. Interpolates along z, then y, then x. Where all the light falls
// outside the image, on a border that is zero, so is what comes out.
template <typename scalar_t>
SPARSERECO_HD Pull<scalar_t> pull(const Eight<scalar_t>& g, const Upper<scalar_t>& x, const Upper<scalar_t>& y,
                                  const Upper<scalar_t>& z, scalar_t charge) {
  const Pair<scalar_t> low{g.low_low.between(z.above), g.low_high.between(z.above)};
  const Pair<scalar_t> high{g.high_low.between(z.above), g.high_high.between(z.above)};
  const Pair<scalar_t> low_z{g.low_low.high - g.low_low.low, g.low_high.high - g.low_high.low};
  const Pair<scalar_t> high_z{g.high_low.high - g.high_low.low, g.high_high.high - g.high_high.low};
  const Pair<scalar_t> all{low.between(y.above), high.between(y.above)};
  const Pair<scalar_t> all_y{low.high - low.low, high.high - high.low};
  const Pair<scalar_t> all_z{low_z.between(y.above), high_z.between(y.above)};
  return {all.between(x.above), charge * x.slope * (all.high - all.low), charge * y.slope * all_y.between(x.above),
          charge * z.slope * all_z.between(x.above)};
}

}  // namespace sparsereco
