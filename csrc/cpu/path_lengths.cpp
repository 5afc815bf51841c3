// CPU kernel: count, prefix sum, fill. Every segment writes rows of its own, so that threads do not change the result.

#include "../path_lengths.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../checks.h"

namespace sparsereco {
namespace {

constexpr int64_t kGrain = 256;  // segments per task: some 100 us of work

std::tuple<at::Tensor, at::Tensor, at::Tensor> path_lengths_cpu(const at::Tensor& start, const at::Tensor& end,
                                                                at::IntArrayRef shape) {
  const Grid grid = check_path_lengths(start, end, shape);
  const at::Tensor from = start.contiguous(), to = end.contiguous();
  const int64_t n = from.size(0);
  std::vector<int64_t> offsets(n + 1, 0);
  at::Tensor segment, coords, length;

  AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "path_lengths_cpu", [&] {
    const scalar_t* a = from.const_data_ptr<scalar_t>();
    const scalar_t* b = to.const_data_ptr<scalar_t>();
    at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t stop) {
      for (int64_t i = begin; i < stop; ++i) offsets[i + 1] = count_crossed(a, b, grid, i);
    });
    for (int64_t i = 0; i < n; ++i) offsets[i + 1] += offsets[i];

    segment = at::empty({offsets[n]}, from.options().dtype(at::kLong));
    coords = at::empty({offsets[n], 3}, from.options().dtype(at::kInt));
    length = at::empty({offsets[n]}, from.options());
    int64_t* segment_data = segment.mutable_data_ptr<int64_t>();
    int32_t* coords_data = coords.mutable_data_ptr<int32_t>();
    scalar_t* length_data = length.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t stop) {
      for (int64_t i = begin; i < stop; ++i)
        write_crossed(a, b, grid, i, offsets[i], offsets[i + 1], segment_data, coords_data, length_data);
    });
  });
  return {segment, coords, length};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsereco, CPU, library) { library.impl("path_lengths", &path_lengths_cpu); }

}  // namespace sparsereco
