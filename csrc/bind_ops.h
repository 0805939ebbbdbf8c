// The part of the extension that is about tensors of codes and what happens to them between layers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace soniq {

// The memory of a NumPy array, whose dtype and layout Python has checked; None is null.
template <class T>
T* pointer(const pybind11::handle& array) {
  if (array.is_none()) return nullptr;
  return static_cast<T*>(const_cast<void*>(pybind11::reinterpret_borrow<pybind11::array>(array).data()));
}

void bind_tensors(pybind11::module_& m);  // before anything that has them as attributes
void bind_ops(pybind11::module_& m);

}  // namespace soniq
