// Binds the kernel maps to torch. Rows are split in chunks of fixed size whose pairs are joined in order, so that the
// maps do not depend on the number of threads.

#include "../kernel_map.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

namespace sparsereco {
namespace {

constexpr int64_t kChunk = 16384;  // output rows

struct Batch {
  at::Tensor coords, offsets;
  int64_t events;
  Layout layout;
};

Batch check_batch(const char* op, const at::Tensor& coords, const at::Tensor& offsets, at::IntArrayRef grid) {
  const int64_t dims = static_cast<int64_t>(grid.size());
  TORCH_CHECK_VALUE(dims == 2 || dims == 3, op, ": grid must be 2 or 3 numbers of voxels, got ", grid);
  for (const int64_t size : grid)
    TORCH_CHECK_VALUE(size >= 0 && size <= std::numeric_limits<int32_t>::max(), op,
                      ": grid must be int32 numbers of voxels, got ", grid);
  TORCH_CHECK_VALUE(coords.dim() == 2 && coords.size(1) == dims, op, ": coords must have shape (N, ", dims,
                    ") for the grid ", grid, ", got ", coords.sizes());
  TORCH_CHECK_TYPE(coords.scalar_type() == at::kInt, op, ": coords must be int32, got ", coords.scalar_type());
  TORCH_CHECK_TYPE(offsets.scalar_type() == at::kLong, op, ": offsets must be int64, got ", offsets.scalar_type());
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) > 0, op, ": offsets must have shape (B + 1,), got ",
                    offsets.sizes());
  TORCH_CHECK_VALUE(coords.size(0) <= std::numeric_limits<int32_t>::max(), op,
                    ": at most 2^31 voxels make a batch, got ", coords.size(0));
  Batch batch{coords.contiguous(), offsets.contiguous(), offsets.size(0) - 1, {}};
  const int64_t* offset = batch.offsets.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(
      offset[0] == 0 && offset[batch.events] == coords.size(0) && std::is_sorted(offset, offset + batch.events + 1), op,
      ": offsets must rise from 0 to the ", coords.size(0), " rows of coords, got ", offsets);
  TORCH_CHECK_VALUE(make_layout(grid.data(), static_cast<int>(dims), batch.events, batch.layout), op, ": ",
                    batch.events, " events on the grid ", grid, " have more than 2^62 sites");
  return batch;
}

// Keys of the voxels, and sentinels after them.
std::vector<int64_t> checked_keys(const char* op, const Batch& batch, at::IntArrayRef grid) {
  std::vector<int64_t> keys(batch.coords.size(0) + kSentinels, kNoKey);
  const int64_t row = voxel_keys(batch.coords.const_data_ptr<int32_t>(), batch.offsets.const_data_ptr<int64_t>(),
                                 batch.events, batch.layout, keys.data());
  if (row >= 0) {
    const int32_t* voxel = batch.coords.const_data_ptr<int32_t>() + row * batch.layout.dims;
    TORCH_CHECK_VALUE(false, op, ": coords must lie in the grid ", grid,
                      " and be sorted and unique in each event; row ", row, " is ",
                      at::IntArrayRef(std::vector<int64_t>(voxel, voxel + batch.layout.dims)));
  }
  return keys;
}

std::tuple<at::Tensor, at::Tensor> submanifold_map(const at::Tensor& coords, const at::Tensor& offsets,
                                                   at::IntArrayRef grid) {
  const Batch batch = check_batch("submanifold_map", coords, offsets, grid);
  const std::vector<int64_t> keys = checked_keys("submanifold_map", batch, grid);
  const int64_t n = coords.size(0), chunks = (n + kChunk - 1) / kChunk;
  std::vector<PairBuffer> found(chunks);
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c)
      found[c] = submanifold_pairs(keys.data(), n, batch.layout, c * kChunk, std::min(n, (c + 1) * kChunk));
  });

  const int lists = submanifold_lists(batch.layout);
  std::vector<int64_t> start(lists * chunks + 1);  // where the pairs of list l and chunk c begin
  start[0] = n;
  for (int l = 1; l < lists; ++l)
    for (int64_t c = 0; c < chunks; ++c)
      start[(l - 1) * chunks + c + 1] = start[(l - 1) * chunks + c] + found[c].count[l];
  const int64_t size = start[(lists - 1) * chunks];
  const at::Tensor rows = at::empty({2, size}, coords.options());
  const at::Tensor splits = at::empty({lists + 1}, offsets.options());
  int32_t* data = rows.mutable_data_ptr<int32_t>();
  int64_t* split = splits.mutable_data_ptr<int64_t>();
  split[0] = 0;
  for (int l = 1; l <= lists; ++l) split[l] = start[(l - 1) * chunks];
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c)
      for (int side = 0; side < 2; ++side) {
        for (int64_t row = c * kChunk; row < std::min(n, (c + 1) * kChunk); ++row)
          data[side * size + row] = static_cast<int32_t>(row);
        for (int l = 1; l < lists; ++l)
          std::copy_n(found[c].column(l, side), found[c].count[l], data + side * size + start[(l - 1) * chunks + c]);
      }
  });
  return {rows, splits};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> strided_map(const at::Tensor& coords,
                                                                       const at::Tensor& offsets,
                                                                       at::IntArrayRef grid) {
  const Batch batch = check_batch("strided_map", coords, offsets, grid);
  checked_keys("strided_map", batch, grid);
  std::vector<int64_t> half(grid.begin(), grid.end());
  for (int64_t& size : half) size /= 2;
  Layout layout;
  make_layout(half.data(), batch.layout.dims, batch.events, layout);
  const Coarse coarse =
      coarsen(batch.coords.const_data_ptr<int32_t>(), batch.offsets.const_data_ptr<int64_t>(), batch.events, layout);

  const int lists = 1 << batch.layout.dims;
  const at::Tensor splits = at::empty({lists + 1}, offsets.options());
  int64_t* split = splits.mutable_data_ptr<int64_t>();
  split[0] = 0;
  for (int l = 0; l < lists; ++l) split[l + 1] = split[l] + static_cast<int64_t>(coarse.in[l].size());
  const at::Tensor rows = at::empty({2, split[lists]}, coords.options());
  int32_t* data = rows.mutable_data_ptr<int32_t>();
  for (int l = 0; l < lists; ++l) {
    std::copy(coarse.in[l].begin(), coarse.in[l].end(), data + split[l]);
    std::copy(coarse.out[l].begin(), coarse.out[l].end(), data + split[lists] + split[l]);
  }
  const at::Tensor parents = at::empty({coarse.offsets[batch.events], batch.layout.dims}, coords.options());
  std::copy(coarse.coords.begin(), coarse.coords.end(), parents.mutable_data_ptr<int32_t>());
  const at::Tensor parent_offsets = at::empty({batch.events + 1}, offsets.options());
  std::copy(coarse.offsets.begin(), coarse.offsets.end(), parent_offsets.mutable_data_ptr<int64_t>());
  return {rows, splits, parents, parent_offsets};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsereco, CPU, library) {
  library.impl("submanifold_map", &submanifold_map);
  library.impl("strided_map", &strided_map);
}

}  // namespace sparsereco
