// Kernel maps of sparse convolutions: which input voxel meets which output voxel under which offset of the kernel.
//
// Voxels come sorted by event and coordinate, so that every map is a merge of ascending streams: there is no hash
// table, memory is read from front to end, and the cost depends on the number of voxels alone, not on the volume of the
// grid. The pairs of one offset form a list that ascends strictly in its input rows and in its output rows.

#pragma once

#include <algorithm>
#include <array>
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
constexpr int kSentinels = 4;  // so many kNoKey follow the keys: a walk looks that far ahead

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

// Writes the keys of all voxels; returns the first row that is outside the grid or not after its predecessor, else -1.
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

inline int submanifold_lists(const Layout& layout) { return layout.dims == 3 ? 14 : 5; }

// Pairs of some output rows: `in` and `out` of list l stand in column(l, 0) and column(l, 1). The centre is left out.
struct PairBuffer {
  PairBuffer() = default;
  PairBuffer(int lists, int64_t rows) : capacity(rows), rows(new int32_t[2 * lists * rows]) {}
  int32_t* column(int list, int side) const { return rows.get() + (2 * list + side) * capacity; }

  int64_t capacity = 0;
  std::unique_ptr<int32_t[]> rows;  // never initialised: most of its pages are never touched
  std::array<int64_t, 14> count{};
};

// The pairs whose output row is in [begin, end). `keys` are n, and kSentinels after them.
template <int kLines>
PairBuffer submanifold_pairs(const int64_t* keys, int64_t n, const int64_t* step, int64_t begin, int64_t end) {
  constexpr int kLists = 2 + 3 * kLines;
  PairBuffer pairs(kLists, end - begin);
  int32_t *in[kLists], *out[kLists];
  int64_t count[kLists] = {}, cursor[kLines];
  for (int list = 0; list < kLists; ++list) {
    in[list] = pairs.column(list, 0);
    out[list] = pairs.column(list, 1);
  }
  for (int line = 0; line < kLines; ++line)
    cursor[line] = std::lower_bound(keys, keys + n, keys[begin] + step[line] - 1) - keys;

  // What will be found, no processor can foresee: so there is no branch on it. A pair is always written, and stays if
  // it is counted.
  const auto emit = [&](int list, int64_t from, int64_t to, bool is_pair) {
    in[list][count[list]] = static_cast<int32_t>(from);
    out[list][count[list]] = static_cast<int32_t>(to);
    count[list] += is_pair;
    return is_pair;
  };
  for (int64_t row = begin; row < end; ++row) {
    emit(1, row + 1, row, keys[row + 1] == keys[row] + 1);
    for (int line = 0; line < kLines; ++line) {
      const int64_t first = keys[row] + step[line] - 1;
      int64_t at = cursor[line];
      int passed;
      do {  // a few keys at a time, of which one look tells how many to pass
        passed = 0;
        for (int i = 0; i < kSentinels; ++i) passed += keys[at + i] < first;
        at += passed;
      } while (passed == kSentinels);
      cursor[line] = at;
      for (int z = 0; z < 3; ++z) at += emit(2 + 3 * line + z, at, row, keys[at] == first + z);
    }
  }
  std::copy_n(count, kLists, pairs.count.begin());
  return pairs;
}

inline PairBuffer submanifold_pairs(const int64_t* keys, int64_t n, const Layout& layout, int64_t begin, int64_t end) {
  const int64_t x = layout.stride[0], y = layout.stride[1];
  const int64_t step[4] = {y, x - y, x, x + y};  // to the lines after a voxel's own
  return layout.dims == 3 ? submanifold_pairs<4>(keys, n, step, begin, end)
                          : submanifold_pairs<1>(keys, n, step, begin, end);
}

// --- Kernels of 2 voxels per axis at stride 2: an output voxel is the parent of up to 2^D input voxels. ---

// The children of each offset and their parents, as one list per offset; and the parents themselves.
struct Coarse {
  std::vector<int32_t> in[8], out[8];
  std::vector<int32_t> coords;   // of the parents, sorted
  std::vector<int64_t> offsets;  // event e owns parents offsets[e] to offsets[e + 1]
};

// `coarse` is the layout of the parents' grid. Voxels whose parent lies outside it (in the last row of an odd grid)
// have none. The children of one offset ascend in their parents' keys, too: the parents are the merge of these streams.
inline Coarse coarsen(const int32_t* coords, const int64_t* offsets, int64_t events, const Layout& coarse) {
  const int dims = coarse.dims, children = 1 << dims;
  const int64_t* size = coarse.size + 3 - dims;
  Coarse result;
  std::vector<int64_t> keys[8];
  for (int child = 0; child < children; ++child) {
    keys[child].reserve(offsets[events] / children + 1);
    result.in[child].reserve(offsets[events] / children + 1);
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

  // As above, without branches on what is found: each stream writes its parent and keeps it if it is its own. For that,
  // a last element follows each stream.
  int64_t at[8] = {};
  for (int child = 0; child < children; ++child) {
    keys[child].push_back(kNoKey);
    result.in[child].push_back(0);
    result.out[child].resize(result.in[child].size());
  }
  result.offsets.assign(events + 1, 0);
  int64_t event = 0;
  for (int32_t parent = 0;; ++parent) {
    int64_t key = kNoKey;
    for (int child = 0; child < children; ++child) key = std::min(key, keys[child][at[child]]);
    for (; event < events && key >= (event + 1) * coarse.event; ++event) result.offsets[event + 1] = parent;
    if (key == kNoKey) break;
    int64_t row = 0;
    for (int child = 0; child < children; ++child) {
      const bool own = keys[child][at[child]] == key;
      row = std::max<int64_t>(row, own * result.in[child][at[child]]);
      result.out[child][at[child]] = parent;
      at[child] += own;
    }
    for (int axis = 0; axis < dims; ++axis) result.coords.push_back(coords[row * dims + axis] >> 1);
  }
  for (int child = 0; child < children; ++child) {
    result.in[child].pop_back();
    result.out[child].pop_back();
  }
  return result;
}

}  // namespace sparsereco
