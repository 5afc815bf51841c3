// Exact path lengths of straight segments through a grid of unit voxels: the mathematics, once, for host and device.
//
// The plane crossings of a segment are walked in order, one axis step at a time (Siddon 1985; Amanatides and Woo 1987).
// Each crossing parameter is computed anew from its integer plane, so that nothing drifts along a long segment, and
// with the same expression as the clipping (Liang and Barsky 1984), so that the walk cannot leave the grid early.

#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace sparsereco {

struct Grid {
  int64_t size[3];  // number of voxels per axis; the grid spans [0, size), its upper faces excluded
};

// Calls visit(voxel, length) for every voxel inside the grid that holds a part of positive length of the segment, from
// start to end. A segment inside a face between two voxels belongs to the upper one. Float input is exact in double.
template <typename scalar_t, typename Visit>
SPARSERECO_HD void walk(const scalar_t* start, const scalar_t* end, const Grid& grid, Visit& visit) {
  double origin[3], delta[3];
  double enter = 0.0, leave = 1.0, squared = 0.0;  // the clipped range of the segment's parameter; its squared length
  for (int axis = 0; axis < 3; ++axis) {
    origin[axis] = start[axis];
    delta[axis] = static_cast<double>(end[axis]) - origin[axis];
    squared += delta[axis] * delta[axis];
    const double size = static_cast<double>(grid.size[axis]);
    if (delta[axis] == 0.0) {
      if (!(origin[axis] >= 0.0 && origin[axis] < size)) return;
    } else {
      const double to_lower = (0.0 - origin[axis]) / delta[axis];
      const double to_upper = (size - origin[axis]) / delta[axis];
      enter = fmax(enter, fmin(to_lower, to_upper));
      leave = fmin(leave, fmax(to_lower, to_upper));
    }
  }
  if (!(enter < leave) || squared == 0.0) return;

  const double length = sqrt(squared);
  int64_t voxel[3];
  double crossing[3];  // parameter at which the segment leaves the current voxel along each axis
  for (int axis = 0; axis < 3; ++axis) {
    const double position = origin[axis] + enter * delta[axis];
    // Downwards, a position on a plane belongs to the voxel below it: that is where the segment goes.
    const double index = delta[axis] < 0.0 ? ceil(position) - 1.0 : floor(position);
    const double last = static_cast<double>(grid.size[axis] - 1);
    voxel[axis] = static_cast<int64_t>(fmin(fmax(index, 0.0), last));
    crossing[axis] = INFINITY;
    if (delta[axis] != 0.0) {
      const double plane = static_cast<double>(voxel[axis] + (delta[axis] > 0.0 ? 1 : 0));
      crossing[axis] = (plane - origin[axis]) / delta[axis];
    }
  }

  double here = enter;
  while (here < leave) {
    int axis = crossing[1] < crossing[0] ? 1 : 0;
    if (crossing[2] < crossing[axis]) axis = 2;
    const double next = fmin(crossing[axis], leave);
    if (next > here) {  // not where the segment passes through an edge or a corner
      visit(voxel, (next - here) * length);
      here = next;
    }
    voxel[axis] += delta[axis] > 0.0 ? 1 : -1;
    const double plane = static_cast<double>(voxel[axis] + (delta[axis] > 0.0 ? 1 : 0));
    crossing[axis] = (plane - origin[axis]) / delta[axis];
  }
}

struct Counter {
  int64_t count = 0;
  SPARSERECO_HD void operator()(const int64_t*, double) { ++count; }
};

template <typename scalar_t>
struct Writer {
  int32_t* coords;  // three numbers per voxel
  scalar_t* length;
  SPARSERECO_HD void operator()(const int64_t* voxel, double path) {
    for (int axis = 0; axis < 3; ++axis) *coords++ = static_cast<int32_t>(voxel[axis]);
    *length++ = static_cast<scalar_t>(path);
  }
};

// Pass one: how many voxels does segment i cross?
template <typename scalar_t>
SPARSERECO_HD int64_t count_crossed(const scalar_t* start, const scalar_t* end, const Grid& grid, int64_t i) {
  Counter counter;
  walk(start + 3 * i, end + 3 * i, grid, counter);
  return counter.count;
}

// Pass two: writes the voxels of segment i from row `first` on.
template <typename scalar_t>
SPARSERECO_HD void write_crossed(const scalar_t* start, const scalar_t* end, const Grid& grid, int64_t i, int64_t first,
                                 int64_t stop, int64_t* segment, int32_t* coords, scalar_t* length) {
  Writer<scalar_t> writer{coords + 3 * first, length + first};
  walk(start + 3 * i, end + 3 * i, grid, writer);
  for (int64_t row = first; row < stop; ++row) segment[row] = i;
}

}  // namespace sparsereco
