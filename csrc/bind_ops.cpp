#include "bind_ops.h"

#include <pybind11/stl.h>

#include <array>

#include "ops.h"

namespace py = pybind11;

namespace soniq {
namespace {

// (alpha, beta, step, r_numerator, z, cmax)
using GridTuple = std::tuple<float, float, float, float, float, float>;

std::vector<ChannelGrid> grids_of(const std::vector<GridTuple>& tuples) {
  std::vector<ChannelGrid> grids;
  for (const auto& [alpha, beta, step, r, z, cmax] : tuples) grids.push_back({alpha, beta, step, r, z, cmax});
  return grids;
}

TensorFormat make_format(const std::vector<uint8_t>& segment_of, const std::vector<GridTuple>& tuples, float scale) {
  return TensorFormat(segment_of, grids_of(tuples), scale);
}

// (alpha, beta, steps, shifts, additions), the last three of each grid
using JoinedTuple = std::tuple<float, float, std::array<float, 2>, std::array<int32_t, 2>, std::array<int32_t, 2>>;

TensorFormat make_joined_format(const std::vector<uint8_t>& segment_of, const std::vector<GridTuple>& tuples,
                                float scale, const JoinedTuple& tuple) {
  const auto& [alpha, beta, step, shift, add] = tuple;
  return TensorFormat(segment_of, grids_of(tuples), scale,
                      {alpha, beta, {step[0], step[1]}, {shift[0], shift[1]}, {add[0], add[1]}});
}

CodesIn make_codes_in(const py::array& codes, const TensorFormat& format, const py::array& scales,
                      int64_t rows_per_scale) {
  return {pointer<const uint8_t>(codes), &format, pointer<const float>(scales), rows_per_scale};
}

Results make_results(const py::object& y, const std::vector<std::pair<py::array, const TensorFormat*>>& sinks) {
  Results results;
  results.y = pointer<float>(y);
  for (const auto& [codes, format] : sinks) results.sink[results.sinks++] = {pointer<uint8_t>(codes), format};
  return results;
}

const Tier& tier_of(const std::string& name) {
  const Tier* tier = find_tier(name);
  if (!tier || !tier->usable) throw std::invalid_argument("tier " + name + " is not usable on this machine");
  return *tier;
}

void run_combine(const std::string& tier, const CombineTask& task) {
  py::gil_scoped_release release;
  combine(tier_of(tier), task);
}

void run_max_pool(const std::string& tier, const PoolTask& task, const py::array& codes, const py::array& out) {
  const auto* from = pointer<const uint8_t>(codes);
  auto* to = pointer<uint8_t>(out);
  py::gil_scoped_release release;
  max_pool(tier_of(tier), task, from, to);
}

void run_avg_pool(const std::string& tier, const PoolTask& task, const CodesIn& x, const Results& results) {
  py::gil_scoped_release release;
  avg_pool(tier_of(tier), task, x, results);
}

}  // namespace

void bind_tensors(py::module_& m) {
  py::class_<TensorFormat>(m, "TensorFormat")
      .def(py::init(&make_format), py::arg("segment_of"), py::arg("grids"), py::arg("scale"))
      .def(py::init(&make_joined_format), py::arg("segment_of"), py::arg("grids"), py::arg("scale"), py::arg("joined"));
  py::class_<CodesIn>(m, "CodesIn")
      .def(py::init(&make_codes_in), py::arg("codes"), py::arg("format"), py::arg("scales"), py::arg("rows_per_scale"),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>());
  py::class_<Results>(m, "Results")
      .def(py::init(&make_results), py::arg("y"), py::arg("sinks"), py::keep_alive<1, 2>(), py::keep_alive<1, 3>());
}

void bind_ops(py::module_& m) {
  py::class_<CombineTask>(m, "CombineTask")
      .def(py::init<>())
      .def_readwrite("rows", &CombineTask::rows)
      .def_readwrite("channels", &CombineTask::channels)
      .def_readwrite("first", &CombineTask::first)
      .def_readwrite("result_channels", &CombineTask::result_channels)
      .def_readwrite("lo", &CombineTask::lo)
      .def_readwrite("hi", &CombineTask::hi)
      .def_readwrite("a", &CombineTask::a)
      .def_readwrite("b", &CombineTask::b)
      .def_readwrite("results", &CombineTask::results)
      .def_property("x", nullptr, [](CombineTask& t, const py::object& x) { t.x = pointer<const float>(x); })
      .def_property(
          "activation", [](const CombineTask& t) { return int(t.activation); },
          [](CombineTask& t, int kind) { t.activation = Activation(kind); });
  py::class_<PoolTask>(m, "PoolTask")
      .def(py::init<>())
      .def_readwrite("geometry", &PoolTask::geometry)
      .def_readwrite("kernel_h", &PoolTask::kernel_h)
      .def_readwrite("kernel_w", &PoolTask::kernel_w)
      .def_readwrite("channels", &PoolTask::channels);
  m.def("combine", &run_combine);
  m.def("max_pool", &run_max_pool);
  m.def("avg_pool", &run_avg_pool);
}

}  // namespace soniq
