// Python sees pointers and sizes; every check happens before, in python/soniq_kernels. The GIL is released in calls.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "bind_ops.h"
#include "cpu.h"
#include "layer.h"
#include "quantize.h"
#include "threads.h"

namespace py = pybind11;
using namespace soniq;

namespace {

const Tier& usable_tier(const std::string& name) {
  const Tier* tier = find_tier(name);
  if (!tier || !tier->usable) throw std::invalid_argument("tier " + name + " is not usable on this machine");
  return *tier;
}

// (bits, alpha, beta, exponent)
using GridTuple = std::tuple<int, int, int, int>;
Grid grid(const GridTuple& t) { return {std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t)}; }

// (weight grid, activation grid, group_start)
using SegmentTuple = std::tuple<GridTuple, GridTuple, std::vector<int>>;

// (first_channel, channels, shift, add)
using MapTuple = std::tuple<int, int, int, int>;

std::unique_ptr<Layer> make_layer(int outputs, int groups, int kernel_h, int kernel_w, int channels,
                                  const std::vector<SegmentTuple>& segments, const std::vector<py::array>& streams,
                                  const std::string& tier, const std::vector<std::string>& families, bool share_pixels,
                                  const std::vector<MapTuple>& joins) {
  LayerShape shape{outputs, groups, kernel_h, kernel_w, channels, {}};
  int first = 0;
  for (const auto& [w, a, group_start] : segments) {
    shape.segments.push_back({grid(w), grid(a), group_start.back(), first, group_start});
    first += group_start.back();
  }
  std::vector<const uint8_t*> codes;
  for (const py::array& s : streams) codes.push_back(pointer<const uint8_t>(s));
  std::vector<Family> chosen;
  for (const std::string& name : families) chosen.push_back(family_of(name));
  std::vector<CodeMap> maps;
  for (const auto& [first_channel, count, shift, add] : joins) maps.push_back({first_channel, count, shift, add});
  py::gil_scoped_release release;
  return std::make_unique<Layer>(std::move(shape), codes.data(), usable_tier(tier), chosen, share_pixels, maps);
}

// (first_channel, channels, r_numerator, z, cmax)
using QuantizerTuple = std::tuple<int, int, float, float, float>;

Quantizer make_quantizer(int channels, std::vector<int32_t> original, const std::vector<QuantizerTuple>& tuples) {
  std::vector<SegmentQuantizer> segments;
  for (const auto& [first, count, r, z, cmax] : tuples) segments.push_back({first, count, r, z, cmax});
  return Quantizer(channels, std::move(original), std::move(segments));
}

// Each scale serves as many rows of x as there are rows for it.
QuantizeTask task(const Quantizer& quantizer, const py::array& x, const py::array& scales) {
  const int64_t rows = quantizer.channels ? x.size() / quantizer.channels : 0;
  return {&quantizer, pointer<const float>(x), rows, pointer<const float>(scales),
          std::max<int64_t>(1, rows / std::max<int64_t>(1, scales.size()))};
}

void run(const Layer& layer, const py::array& codes, const Geometry& geometry, const Output& output) {
  const auto* c = pointer<const uint8_t>(codes);
  py::gil_scoped_release release;
  layer.run(c, geometry, output);
}

bool run_floats(const Layer& layer, const Quantizer& quantizer, const py::array& x, const py::array& scales,
                const Geometry& geometry, const Output& output) {
  const QuantizeTask floats = task(quantizer, x, scales);
  py::gil_scoped_release release;
  return layer.run(Input{nullptr, &floats}, geometry, output);
}

bool quantize_array(const std::string& tier, const Quantizer& quantizer, const py::array& x, const py::array& scales,
                    py::array& codes) {
  const QuantizeTask floats = task(quantizer, x, scales);
  auto* to = pointer<uint8_t>(codes);
  py::gil_scoped_release release;
  return quantize(usable_tier(tier), floats, to);
}

py::list kernels_of(const Layer& layer) {
  py::list list;
  if (!layer.has_kernels()) list.append(py::make_tuple(layer.kernel_tier().name, family_name(layer.family()), ""));
  for (int s = 0; layer.has_kernels() && s < layer.segments(); ++s) {
    const SegmentKernel& k = layer.kernel(0, s);
    list.append(py::make_tuple(k.tier().name, family_name(k.family()), k.form()));
  }
  return list;
}

// (family, tier whose kernel it is, products a cycle, cycles to prepare a code of a row)
py::list candidate_list(const std::string& tier, int w_bits, int a_bits) {
  py::list list;
  for (const Candidate& c : candidates(usable_tier(tier), w_bits, a_bits))
    list.append(py::make_tuple(family_name(c.family), c.tier->name, c.rate, c.prepare));
  return list;
}

py::list tier_list() {
  py::list list;
  for (const Tier* t : tiers()) list.append(py::make_tuple(t->name, t->needs, t->usable));
  return list;
}

// A settable pointer attribute that Python writes as an array, and keeps alive for the call.
template <class C, class T>
void def_pointer(py::class_<C>& cls, const char* name, T* C::* member) {
  cls.def_property(name, nullptr, [member](C& c, const py::object& array) { c.*member = pointer<T>(array); });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of soniq_kernels: tiers, layers and the quantizer. Private; use the modules above it.";

  m.def("tiers", &tier_list, "(name, what it needs, usable) of every tier built, slowest first");
  m.def("active_tier", [] { return active_tier().name; });
  m.def("set_active_tier", [](const std::string& name) { set_active_tier(usable_tier(name)); });
  m.def("candidates", &candidate_list,
        "(family, tier, products a cycle, cycles to prepare a code) for a pair of widths, fastest first");
  m.def("cpu_name", &cpu_name);
  m.def("spin", &spin, "Counts down, a cycle a turn");
  m.def("kernel_counts", &kernel_counts, "kernel name -> runs in this process, for every usable tier");
  m.def("get_num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads);
  m.def("set_work_per_thread", &set_work_per_thread,
        "Of a call, in products; tests set 1, so that small cases are split");

  py::class_<Geometry> geometry(m, "Geometry");
  geometry.def(py::init<>());
  geometry.def_readwrite("batch", &Geometry::batch).def_readwrite("in_h", &Geometry::in_h);
  geometry.def_readwrite("in_w", &Geometry::in_w).def_readwrite("out_h", &Geometry::out_h);
  geometry.def_readwrite("out_w", &Geometry::out_w).def_readwrite("stride_h", &Geometry::stride_h);
  geometry.def_readwrite("stride_w", &Geometry::stride_w).def_readwrite("pad_top", &Geometry::pad_top);
  geometry.def_readwrite("pad_left", &Geometry::pad_left).def_readwrite("dilation_h", &Geometry::dilation_h);
  geometry.def_readwrite("dilation_w", &Geometry::dilation_w);

  bind_tensors(m);
  py::class_<Output> output(m, "Output");
  output.def(py::init<>()).def(py::init<const Output&>());
  def_pointer(output, "acc", &Output::acc);
  def_pointer(output, "activation_scale", &Output::activation_scale);
  def_pointer(output, "w_scale", &Output::w_scale);
  def_pointer(output, "bias", &Output::bias);
  def_pointer(output, "residual", &Output::residual);
  def_pointer(output, "post_scale", &Output::post_scale);
  def_pointer(output, "post_bias", &Output::post_bias);
  output.def_readwrite("unit", &Output::unit);
  output.def_readwrite("rows_per_scale", &Output::rows_per_scale);
  output.def_readwrite("residual_codes", &Output::residual_codes).def_readwrite("results", &Output::results);
  output.def_property(
      "pooling", [](const Output& o) { return o.pooling; },
      [](Output& o, const PoolTask& task) { o.pools = true, o.pooling = task; });
  output.def_readwrite("lo", &Output::lo).def_readwrite("hi", &Output::hi);
  output.def_property(
      "activation", [](const Output& o) { return int(o.activation); },
      [](Output& o, int kind) { o.activation = Activation(kind); });

  py::class_<Layer>(m, "Layer")
      .def(py::init(&make_layer), py::arg("outputs"), py::arg("groups"), py::arg("kernel_h"), py::arg("kernel_w"),
           py::arg("channels"), py::arg("segments"), py::arg("streams"), py::arg("tier"),
           py::arg("families") = std::vector<std::string>(), py::arg("share_pixels") = false,
           py::arg("joins") = std::vector<MapTuple>())
      .def("run", &run, py::arg("codes"), py::arg("geometry"), py::arg("output"))
      .def("run_floats", &run_floats, py::arg("quantizer"), py::arg("x"), py::arg("scales"), py::arg("geometry"),
           py::arg("output"))
      .def("takes_winograd", [](const Layer& l, const Geometry& g) { return takes_winograd(l, g, Output()); })
      .def_property_readonly("kernels", &kernels_of, "(tier, family, form) of each segment")
      .def_property_readonly("tier", [](const Layer& l) { return l.tier().name; })
      .def_property_readonly("panel_bytes", &Layer::panel_bytes)
      .def_property_readonly("tile", [](const Layer& l) {
        return l.has_kernels() ? std::make_pair(l.kernel(0, 0).tile_rows(), l.kernel(0, 0).columns())
                               : std::make_pair(1, 1);
      });

  py::class_<Quantizer>(m, "Quantizer")
      .def(py::init(&make_quantizer), py::arg("channels"), py::arg("original"), py::arg("segments"));
  m.def("quantize", &quantize_array);
  m.def("dynamic_scales",
        [](const std::string& tier, const py::array& x, int64_t groups, float factor, py::array& scales) {
          const auto* floats = pointer<const float>(x);
          auto* to = pointer<float>(scales);
          const int64_t size = groups ? x.size() / groups : 0;
          py::gil_scoped_release release;
          dynamic_scales(usable_tier(tier), floats, groups, size, factor, to);
        });
  m.def("all_finite", [](const std::string& tier, const py::array& x) {
    const auto* floats = pointer<const float>(x);
    const int64_t count = x.size();
    py::gil_scoped_release release;
    return all_finite(usable_tier(tier), floats, count);
  });
  bind_ops(m);
}
