// Kernel maps of sparse convolutions: which input voxel meets which output voxel under which offset of the kernel.
//
// Voxels come sorted by event and coordinate, so that every map is a merge of ascending streams: there is no hash table,
// memory is read from front to end, and the cost depends on the number of voxels alone, not on the volume of the grid.
// The pairs of one offset form a list that ascends strictly in its input rows and in its output rows.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

namespace sparsereco {

// A voxel's key is its place among all sites of the batch, line after line. One empty site follows each line, plane and
// event: the key of a neighbour is then the voxel's own plus a constant, and never that of a voxel across a border.
struct Layout {
  int dims;           // 2 or 3; in two dimensions the axes are called y and z
  int64_t size[3];    // x, y, z
  int64_t stride[3];  // key distance of neighbours
  int64_t event;      // key distance of events
};

constexpr int64_t kMaxKey = int64_t{1} << 62;  // leaves room for a step to a neighbour, and for kNoKey
constexpr int64_t kNoKey = std::numeric_limits<int64_t>::max();

// False where the keys would exceed kMaxKey.
inline bool make_layout(const int64_t* grid, int dims, int64_t events, Layout& layout) {
  layout.dims = dims;
  for (int axis = 0; axis < 3; ++axis) layout.size[axis] = axis < 3 - dims ? 1 : grid[axis - (3 - dims)];
  int64_t sites = 1;
  for (int axis = 2; axis >= 0; --axis) {
    layout.stride[axis] = sites;
    if (sites > kMaxKey / (layout.size[axis] + 1)) return false;
    sites *= layout.size[axis] + 1;
  }
  layout.event = sites;
  return events <= kMaxKey / sites;
}

inline int64_t key_of(const int32_t* voxel, int64_t event, const Layout& layout) {
  int64_t key = event * layout.event;
  for (int axis = 0; axis < layout.dims; ++axis) key += voxel[axis] * layout.stride[3 - layout.dims + axis];
  return key;
}

// Writes the keys of all voxels; returns the first row that lies outside the grid or not after its predecessor, else -1.
inline int64_t voxel_keys(const int32_t* coords, const int64_t* offsets, int64_t events, const Layout& layout,
                          int64_t* keys) {
  const int64_t* size = layout.size + 3 - layout.dims;
  int64_t last = -1;
  for (int64_t event = 0; event < events; ++event)
    for (int64_t row = offsets[event]; row < offsets[event + 1]; ++row) {
      const int32_t* voxel = coords + row * layout.dims;
      bool inside = true;
      for (int axis = 0; axis < layout.dims; ++axis) inside &= voxel[axis] >= 0 && voxel[axis] < size[axis];
      keys[row] = key_of(voxel, event, layout);
      if (!inside || keys[row] <= last) return row;
      last = keys[row];
    }
  return -1;
}

// --- Submanifold kernels of 3 voxels per axis: output voxels are the input voxels. ---
//
// An offset and its opposite have the same pairs with input and output exchanged, so only the centre (list 0) and the
// offsets after it in the order of a dense kernel are listed: 5 of 9, or 14 of 27. Three offsets that differ only along
// the last axis share one walk through the keys.

constexpr int kMaxLists = 14;

inline int lines_ahead(const Layout& layout) { return layout.dims == 3 ? 4 : 1; }
inline int submanifold_lists(const Layout& layout) { return 2 + 3 * lines_ahead(layout); }

// Pairs of some output rows: `in` and `out` of list l stand in column(l, 0) and column(l, 1). The centre is left out.
struct PairBuffer {
  int32_t* column(int list, int side) const { return rows.get() + (2 * list + side) * capacity; }

  int64_t capacity = 0;
  std::unique_ptr<int32_t[]> rows;  // never initialised: most of its pages are never touched
  int64_t count[kMaxLists] = {};
};

// The pairs whose output row is in [begin, end). `keys` are n, and kNoKey after them. There are no branches on what is
// found, which no processor could foresee: a pair is always written, and counts if it is one.
inline PairBuffer submanifold_pairs(const int64_t* keys, int64_t n, const Layout& layout, int64_t begin, int64_t end) {
  PairBuffer pairs;
  pairs.capacity = end - begin;
  pairs.rows.reset(new int32_t[2 * kMaxLists * pairs.capacity]);
  const int64_t x = layout.stride[0], y = layout.stride[1];
  const int64_t step[4] = {y, x - y, x, x + y};  // to the lines after a voxel's own
  const int lines = lines_ahead(layout);
  int64_t cursor[4];
  for (int line = 0; line < lines; ++line)
    cursor[line] = std::lower_bound(keys, keys + n, keys[begin] + step[line] - 1) - keys;

  const auto emit = [&](int list, int64_t in, int64_t out, bool is_pair) {
    pairs.column(list, 0)[pairs.count[list]] = static_cast<int32_t>(in);
    pairs.column(list, 1)[pairs.count[list]] = static_cast<int32_t>(out);
    pairs.count[list] += is_pair;
    return is_pair;
  };
  for (int64_t row = begin; row < end; ++row) {
    emit(1, row + 1, row, keys[row + 1] == keys[row] + 1);
    for (int line = 0; line < lines; ++line) {
      const int64_t first = keys[row] + step[line] - 1;
      int64_t at = cursor[line];
      while (keys[at] < first) ++at;
      cursor[line] = at;
      for (int z = 0; z < 3; ++z) at += emit(2 + 3 * line + z, at, row, keys[at] == first + z);
    }
  }
  return pairs;
}

// --- Kernels of 2 voxels per axis at stride 2: an output voxel is the parent of up to 2^D input voxels. ---

// The children of each offset and their parents, as one list per offset; and the parents themselves.
struct Coarse {
  std::vector<int32_t> in[8], out[8];
  std::vector<int32_t> coords;   // of the parents, sorted
  std::vector<int64_t> offsets;  // event e owns parents offsets[e] to offsets[e + 1]
};

// `coarse` is the layout of the parents' grid. Voxels whose parent lies outside it (in the last row of an odd grid) have
// none. The children of one offset ascend in their parents' keys, too: the parents are the merge of these streams.
inline Coarse coarsen(const int32_t* coords, const int64_t* offsets, int64_t events, const Layout& coarse) {
  const int dims = coarse.dims, children = 1 << dims;
  const int64_t* size = coarse.size + 3 - dims;
  Coarse result;
  std::vector<int64_t> keys[8];
  for (int child = 0; child < children; ++child) {
    keys[child].reserve(offsets[events] / children + 1);
    result.in[child].reserve(offsets[events] / children);
  }
  for (int64_t event = 0; event < events; ++event)
    for (int64_t row = offsets[event]; row < offsets[event + 1]; ++row) {
      int32_t parent[3];
      int child = 0;
      bool inside = true;
      for (int axis = 0; axis < dims; ++axis) {
        parent[axis] = coords[row * dims + axis] >> 1;
        child = 2 * child + (coords[row * dims + axis] & 1);
        inside &= parent[axis] < size[axis];
      }
      if (!inside) continue;
      keys[child].push_back(key_of(parent, event, coarse));
      result.in[child].push_back(static_cast<int32_t>(row));
    }

  const int64_t* head[8];
  for (int child = 0; child < children; ++child) {
    result.out[child].resize(result.in[child].size());
    keys[child].push_back(kNoKey);
    head[child] = keys[child].data();
  }
  result.offsets.assign(events + 1, 0);
  for (int32_t parent = 0;; ++parent) {
    int64_t key = kNoKey;
    for (int child = 0; child < children; ++child) key = std::min(key, *head[child]);
    if (key == kNoKey) break;
    for (int child = 0; child < children; ++child) {
      if (*head[child] != key) continue;
      result.out[child][head[child]++ - keys[child].data()] = parent;
    }
    ++result.offsets[key / coarse.event + 1];
    key %= coarse.event;
    for (int axis = 3 - dims; axis < 3; key %= coarse.stride[axis++])
      result.coords.push_back(static_cast<int32_t>(key / coarse.stride[axis]));
  }
  for (int64_t event = 0; event < events; ++event) result.offsets[event + 1] += result.offsets[event];
  return result;
}

}  // namespace sparsereco
