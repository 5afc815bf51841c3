// The schemas of torch.ops.sparsereco.*; each device registers its kernels beside them (cpu/, cuda/), the fake kernels
// stand in sparsereco/ops.py and sparsereco/convolution.py.

#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(sparsereco, library) {
  library.def("path_lengths(Tensor start, Tensor end, int[3] shape) -> (Tensor segment, Tensor coords, Tensor length)");
  library.def("submanifold_map(Tensor coords, Tensor offsets, int[] grid) -> (Tensor rows, Tensor splits)");
  library.def(
      "strided_map(Tensor coords, Tensor offsets, int[] grid) -> "
      "(Tensor rows, Tensor splits, Tensor parents, Tensor parent_offsets)");
  library.def(
      "sparse_conv(Tensor input, Tensor weight, Tensor rows, Tensor splits, SymInt n_out, bool transposed) -> Tensor");
  library.def(
      "sparse_conv_weight(Tensor input, Tensor grad, Tensor rows, Tensor splits, SymInt volume, bool transposed) -> "
      "Tensor");
  // The derivatives of each image's loss come with it if asked for, else they are empty; the backward pass scales them.
  library.def(
      "image_match(Tensor position, Tensor charge, Tensor offsets, Tensor background, Tensor index, Tensor coords, "
      "Tensor signal, Tensor? variance, Tensor measured_offsets, int[3] shape, str loss, float softness, "
      "float crosstalk, float? threshold, float empty_variance, bool derivatives) -> "
      "(Tensor loss, Tensor dropped, Tensor grad_position, Tensor grad_charge, Tensor grad_background)");
  library.def(
      "image_match_backward(Tensor grad_loss, Tensor offsets, Tensor grad_position, Tensor grad_charge, "
      "Tensor grad_background) -> (Tensor, Tensor, Tensor)");
  library.def(
      "soft_voxelize(Tensor position, Tensor charge, Tensor offsets, int[3] shape, float softness) -> "
      "(Tensor image, Tensor dropped)");
  library.def(
      "soft_voxelize_backward(Tensor grad_image, Tensor position, Tensor charge, Tensor offsets, float softness) -> "
      "(Tensor, Tensor)");
  library.def(
      "soft_voxelize_sparse(Tensor position, Tensor charge, Tensor offsets, int[3] shape, float softness) -> "
      "(Tensor light, Tensor coords, Tensor image_offsets, Tensor dropped)");
  library.def(
      "soft_voxelize_sparse_backward(Tensor grad_light, Tensor coords, Tensor image_offsets, Tensor position, "
      "Tensor charge, Tensor offsets, int[3] shape, float softness) -> (Tensor, Tensor)");
}

// `import sparsereco._C` loads this shared object, whose static initialisers register the operators. It is empty.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
