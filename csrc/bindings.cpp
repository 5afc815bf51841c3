// The schemas of torch.ops.sparsereco.*; each device registers its kernels beside them (cpu/, cuda/), the fake kernels stand
// in sparsereco/ops.py.

#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(sparsereco, library) {
  library.def("path_lengths(Tensor start, Tensor end, int[3] shape) -> (Tensor segment, Tensor coords, Tensor length)");
}

// `import sparsereco._C` loads this shared object, whose static initialisers register the operators. The module is empty.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
