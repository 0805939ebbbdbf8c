// Checks the kernels of this build against cases that the oracle wrote (write.py), bit for bit, without Python: for CPUs
// that are emulated, and for builds with sanitizers.
//
//   soniq_vectors FILE [--tiers all|best|NAME,NAME] [--threads N] [--every N] [--flush-denormals] [--emulate-avxvnni]
//
// --every N takes every Nth case, for slow runs; --emulate-avxvnni makes that tier usable on a processor without it
// (emulate_avxvnni.h).
//
// Prints the tiers, every difference up to a limit, one line of counts a tier, and the kernels of these tiers' tables that
// never ran. Exits with 0 only if there is neither a difference nor such a kernel.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "cpu.h"
#include "emulate_avxvnni.h"
#include "guard_pages.h"
#include "join_cases.h"
#include "layer.h"
#include "ops.h"
#include "quantize.h"
#include "report.h"
#include "depthwise_kernels.h"
#include "single_kernels.h"
#include "threads.h"

namespace {

using Floats = std::vector<float>;

// ---- the file (write.py draws it) ------------------------------------------------------------------------------------
enum Kind : uint8_t { kEnd, kLayer, kQuantize, kScales, kFinite, kCombine, kPool };

class Reader {
 public:
  explicit Reader(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    data_.assign(std::istreambuf_iterator<char>(file), {});
    if (std::string(take(8), 8) != "SONIQVEC") throw std::runtime_error(path + " is not a file of cases");
  }

  Kind kind() { return Kind(number<uint8_t>()); }
  std::string text() {
    const Bytes bytes = array<uint8_t>();
    return std::string(bytes.begin(), bytes.end());
  }
  int integer() { return number<int32_t>(); }
  float real() { return number<float>(); }

  template <class T>
  std::vector<T> array() {
    const bool in_runs = number<uint8_t>() != 0;
    const uint64_t size = number<uint64_t>();
    std::vector<T> values(size / sizeof(T));
    auto* to = reinterpret_cast<char*>(values.data());
    if (!in_runs && size > 0) std::memcpy(to, take(size), size);
    for (uint64_t at = 0; in_runs && at < size;) {
      const uint32_t count = number<uint32_t>();
      const uint8_t byte = number<uint8_t>();
      if (count > size - at) throw std::runtime_error("a run is longer than its array");
      std::memset(to + at, byte, count);
      at += count;
    }
    return values;
  }

 private:
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)), sizeof(T));
    return value;
  }
  const char* take(size_t size) {
    if (size > data_.size() - at_) throw std::runtime_error("the file of cases ends too early");
    at_ += size;
    return data_.data() + at_ - size;
  }

  std::string data_;
  size_t at_ = 0;
};

// ---- layers ------------------------------------------------------------------------------------------------------------
// Codes of a tensor, and what they mean; without codes there is no tensor.
struct Tensor {
  Bytes codes;
  std::shared_ptr<const TensorFormat> format;
  std::shared_ptr<const JoinedSink> joined;  // of two segments
  Floats scales;
  int rows_per_scale = 1;

  CodesIn in() const {
    if (codes.empty()) return {};
    return {codes.data(), format.get(), scales.data(), rows_per_scale};
  }
};

// What must come out of an operation: float32 if not empty, and codes of some tensors.
struct Expected {
  Floats y;
  std::vector<Tensor> codes;

  // Runs `operation` on guarded memory and compares all that it wrote; once more with joined codes, where they can be.
  template <class Operation>
  void check(size_t size, const std::string& what, Report& report, Operation&& operation) const {
    check_once(size, what, report, operation);
    Expected joined{y, codes};
    bool any = false;
    for (Tensor& t : joined.codes) {
      if (!t.joined) continue;
      any = true;
      t.codes = t.joined->expected(t.codes, t.format->position);
      t.format = t.joined->format;
    }
    if (any) joined.check_once(size, what + ", joined", report, operation);
  }

  template <class Operation>
  void check_once(size_t size, const std::string& what, Report& report, Operation&& operation) const {
    Results results;
    Guarded<float> floats(y.empty() ? 0 : size);
    if (!y.empty()) results.y = floats.data();
    std::vector<std::unique_ptr<Guarded<uint8_t>>> written;
    for (const Tensor& t : codes) {
      written.push_back(std::make_unique<Guarded<uint8_t>>(size));
      results.sink[results.sinks++] = {written.back()->data(), t.format.get()};
    }
    operation(results);
    if (!y.empty()) floats.compare(y, what, report);
    for (size_t i = 0; i < codes.size(); ++i) written[i]->compare(codes[i].codes, what + ", codes", report);
  }
};

struct Result {
  Floats activation_scale, w_scale, bias, residual, post_scale, post_bias;
  Tensor residual_codes;
  Expected expected;
  int rows_per_scale, activation;
  float lo, hi;
};

struct LayerCase {
  int number;
  LayerShape shape;
  std::vector<Bytes> streams;
  Geometry geometry;
  AlignedBytes codes;
  Ints batches;  // the case is run on so many of its first images
  Ints acc;
  std::vector<Result> results;
};

Grid read_grid(Reader& in) {
  Grid g;
  for (int* field : {&g.bits, &g.alpha, &g.beta, &g.exponent}) *field = in.integer();
  return g;
}

void read_segments(Reader& in, LayerCase& c) {
  int first = 0;
  for (int s = in.integer(); s > 0; --s) {
    Segment segment;
    segment.weight = read_grid(in);
    segment.activation = read_grid(in);
    segment.group_start = in.array<int32_t>();
    segment.channels = segment.group_start.back();
    segment.first_channel = first;
    first += segment.channels;
    c.shape.segments.push_back(segment);
    c.streams.push_back(in.array<uint8_t>());
  }
}

void read_format(Reader& in, Tensor& t) {
  const Bytes bytes = in.array<uint8_t>();
  const std::vector<uint8_t> segment_of(bytes.begin(), bytes.end());
  std::vector<ChannelGrid> grids(in.integer());
  for (ChannelGrid& g : grids)
    for (float* field : {&g.alpha, &g.beta, &g.step, &g.r_numerator, &g.z, &g.cmax}) *field = in.real();
  const float scale = in.real();
  t.format = std::make_shared<const TensorFormat>(segment_of, grids, scale);
  if (grids.size() == 2) t.joined = std::make_shared<const JoinedSink>(segment_of, grids, scale);
}

Tensor read_tensor(Reader& in) {
  Tensor t;
  t.codes = in.array<uint8_t>();
  if (t.codes.empty()) return t;
  read_format(in, t);
  t.scales = in.array<float>();
  t.rows_per_scale = in.integer();
  return t;
}

Expected read_expected(Reader& in) {
  Expected e;
  e.y = in.array<float>();
  for (int sinks = in.integer(); sinks > 0; --sinks) {
    Tensor t;
    read_format(in, t);
    t.codes = in.array<uint8_t>();
    e.codes.push_back(t);
  }
  return e;
}

Result read_result(Reader& in) {
  Result r;
  r.activation_scale = in.array<float>();
  r.rows_per_scale = in.integer();
  r.w_scale = in.array<float>();
  r.bias = in.array<float>();
  r.residual = in.array<float>();
  r.residual_codes = read_tensor(in);
  r.activation = in.integer();
  r.lo = in.real();
  r.hi = in.real();
  r.post_scale = in.array<float>();
  r.post_bias = in.array<float>();
  r.expected = read_expected(in);
  return r;
}

Geometry read_geometry(Reader& in) {
  Geometry g;
  for (int* field : {&g.batch, &g.in_h, &g.in_w, &g.out_h, &g.out_w, &g.stride_h, &g.stride_w, &g.pad_top, &g.pad_left,
                     &g.dilation_h, &g.dilation_w})
    *field = in.integer();
  return g;
}

LayerCase read_layer(Reader& in) {
  static int number = 0;
  LayerCase c;
  c.number = number++;
  LayerShape& s = c.shape;
  for (int* field : {&s.outputs, &s.groups, &s.kernel_h, &s.kernel_w, &s.channels}) *field = in.integer();
  read_segments(in, c);
  c.geometry = read_geometry(in);
  const Bytes codes = in.array<uint8_t>();
  c.codes.assign(codes.begin(), codes.end());  // guarded
  c.batches = in.array<int32_t>();
  c.acc = in.array<int32_t>();
  for (int results = in.integer(); results > 0; --results) c.results.push_back(read_result(in));
  return c;
}

template <class T>
const T* or_null(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

Output describe(const Result& r) {
  Output o;
  o.activation_scale = r.activation_scale.data();
  o.rows_per_scale = r.rows_per_scale;
  o.w_scale = r.w_scale.data();
  o.bias = or_null(r.bias);
  o.residual = or_null(r.residual);
  o.residual_codes = r.residual_codes.in();
  o.activation = Activation(r.activation);
  o.lo = r.lo;
  o.hi = r.hi;
  o.post_scale = or_null(r.post_scale);
  o.post_bias = or_null(r.post_bias);
  return o;
}

void check_result(const LayerCase& c, const Layer& layer, const Geometry& geometry, int index, Report& report) {
  const Result& result = c.results[index];
  const size_t size = geometry.rows() * c.shape.outputs;
  const std::string what = "result " + std::to_string(index) + ", batch " + std::to_string(geometry.batch);
  Output output = describe(result);
  result.expected.check(size, what, report, [&](const Results& results) {
    output.results = results;
    layer.run(c.codes.data(), geometry, output);
  });
}

// What a pooling by windows of 2 x 3 leaves of the codes, written by the layer itself, where the whole batch is expected.
void check_pooled(const LayerCase& c, const Layer& layer, const Geometry& geometry, int index, Report& report) {
  const Expected& all = c.results[index].expected;
  if (all.codes.empty() || geometry.out_h < 2 || geometry.out_w < 2 || geometry.rows() == 0) return;
  Output output = describe(c.results[index]);
  output.pools = true;
  PoolTask& task = output.pooling;
  Geometry& g = task.geometry;
  task.kernel_h = 2, task.kernel_w = 3, task.channels = c.shape.outputs;
  g.batch = geometry.batch, g.in_h = geometry.out_h, g.in_w = geometry.out_w;
  g.stride_h = 1, g.stride_w = 2, g.pad_left = 1;
  g.out_h = g.in_h - 1, g.out_w = (g.in_w - 1) / 2 + 1;
  Expected pooled;
  for (const Tensor& t : all.codes) {
    pooled.codes.push_back(t);
    pooled.codes.back().codes.resize(g.rows() * task.channels);
    max_pool(*find_tier("reference"), task, t.codes.data(), pooled.codes.back().codes.data());
  }
  const std::string what = "result " + std::to_string(index) + ", batch " + std::to_string(g.batch) + ", pooled";
  pooled.check(g.rows() * task.channels, what, report, [&](const Results& results) {
    output.results = results;
    layer.run(c.codes.data(), geometry, output);
  });
}

void check_layer_of(const LayerCase& c, const Layer& layer, Report& report) {
  for (const int batch : c.batches) {
    Geometry geometry = c.geometry;
    geometry.batch = batch;
    Guarded<int32_t> acc(geometry.rows() * c.shape.outputs);
    Output output;
    output.acc = acc.data();
    layer.run(c.codes.data(), geometry, output);
    acc.compare(c.acc, "acc, batch " + std::to_string(batch), report);
    for (int i = 0; i < int(c.results.size()); ++i) {
      check_result(c, layer, geometry, i, report);
      check_pooled(c, layer, geometry, i, report);
    }
  }
}

// The families of the segments: first the fastest ones, then, for each other family of the tier's own table that serves any of
// them, that one where it can.
std::vector<std::vector<Family>> plans(const LayerShape& shape, const Tier& tier) {
  std::vector<std::vector<Candidate>> of_segment;
  std::vector<Family> fastest;
  std::set<Family> own;
  for (const Segment& s : shape.segments) {
    of_segment.push_back(candidates(tier, s.weight.bits, s.activation.bits));
    const std::vector<Candidate>& all = of_segment.back();
    if (all.empty()) return {{}};  // the reference
    fastest.push_back(all.front().family);
    for (const Candidate& c : all)
      if (c.tier == &tier) own.insert(c.family);
  }
  std::vector<std::vector<Family>> found{fastest};
  for (const Family family : own) {
    std::vector<Family> plan = fastest;
    for (size_t s = 0; s < plan.size(); ++s)
      for (const Candidate& c : of_segment[s])
        if (c.family == family) plan[s] = family;
    if (plan != fastest) found.push_back(plan);
  }
  return found;
}

std::map<std::string, int> layers_that_share;

// The same where a convolution's layer prepares each pixel once for all taps.
void check_shared_pixels(const LayerCase& c, const uint8_t* const* streams, const Tier& tier,
                         const std::vector<Family>& plan, Report& report) {
  if (c.shape.taps() == 1 || c.shape.groups > 1 || c.geometry.dilation_w > 1) return;
  const Layer layer(c.shape, streams, tier, plan, true);
  if (!layer.shares_pixels()) return;
  report.add("pixels shared");
  ++layers_that_share[tier.name];
  check_layer_of(c, layer, report);
}

// The same with both segments as one, where that can be.
void check_joined(const LayerCase& c, const Tier& tier, Report& report) {
  const std::optional<JoinedLayer> joined = join_layer(c.shape, c.streams);
  if (!joined || candidates(tier, 8, 8).empty()) return;
  const uint8_t* const stream = joined->stream.data();
  for (const bool share : {false, true}) {
    report.add("joined");
    check_layer_of(c, Layer(joined->shape, &stream, tier, {Family::dot}, share, joined->maps), report);
    report.forget();
    if (c.shape.taps() == 1 || c.geometry.dilation_w > 1) return;
  }
}

// With the fastest families, and with one of the other plans: they take turns.
void check_layer(const LayerCase& c, const Tier& tier, Report& report) {
  std::vector<const uint8_t*> streams;
  for (const Bytes& stream : c.streams) streams.push_back(stream.data());
  const std::vector<std::vector<Family>> all = plans(c.shape, tier);
  const int others = int(all.size()) - 1;
  for (int i = 0; i <= std::min(1, others); ++i) {
    const std::vector<Family>& plan = all[i == 0 ? 0 : 1 + c.number % others];
    for (const Family family : plan) report.add(family_name(family));
    check_layer_of(c, Layer(c.shape, streams.data(), tier, plan), report);
    check_shared_pixels(c, streams.data(), tier, plan, report);
    report.forget();
  }
  check_joined(c, tier, report);
}

// ---- quantize ----------------------------------------------------------------------------------------------------------
struct QuantizeCase {
  Quantizer quantizer{0, {}, {}};
  QuantizeTask task;
  Floats x, scales;
  Bytes codes;
};

QuantizeCase read_quantize(Reader& in) {
  QuantizeCase c;
  c.task.rows = in.integer();
  const int channels = in.integer();
  c.x = in.array<float>();
  const Ints original = in.array<int32_t>();
  std::vector<SegmentQuantizer> quantizers;
  for (int segments = in.integer(); segments > 0; --segments) {
    SegmentQuantizer s;
    for (int* field : {&s.first_channel, &s.channels}) *field = in.integer();
    for (float* field : {&s.r_numerator, &s.z, &s.cmax}) *field = in.real();
    quantizers.push_back(s);
  }
  c.quantizer = Quantizer(channels, original, quantizers);
  c.scales = in.array<float>();
  c.task.rows_per_scale = in.integer();
  c.codes = in.array<uint8_t>();
  return c;
}

void check_quantize(const QuantizeCase& c, const Tier& tier, Report& report) {
  QuantizeTask task = c.task;
  task.x = c.x.data();
  task.quantizer = &c.quantizer;
  task.scales = c.scales.data();
  Guarded<uint8_t> codes(c.codes.size());
  quantize(tier, task, codes.data());
  codes.compare(c.codes, "codes", report);
}

// ---- between layers ------------------------------------------------------------------------------------------------------
struct CombineCase {
  struct Part {
    int channels;
    Tensor a, b;
    Floats x;
  };
  int rows, channels = 0;
  std::vector<Part> parts;  // side by side in the result
  int activation;
  float lo, hi;
  Expected expected;
};

CombineCase read_combine(Reader& in) {
  CombineCase c;
  c.rows = in.integer();
  c.parts.resize(in.integer());
  for (CombineCase::Part& part : c.parts) {
    c.channels += part.channels = in.integer();
    part.a = read_tensor(in);
    part.b = read_tensor(in);
    part.x = in.array<float>();
  }
  c.activation = in.integer();
  c.lo = in.real();
  c.hi = in.real();
  c.expected = read_expected(in);
  return c;
}

void check_combine(const CombineCase& c, const Tier& tier, Report& report) {
  c.expected.check(size_t(c.rows) * c.channels, "values", report, [&](const Results& results) {
    int first = 0;
    for (const CombineCase::Part& part : c.parts) {
      combine(tier, {c.rows, part.channels, part.a.in(), part.b.in(), or_null(part.x), Activation(c.activation), c.lo,
                     c.hi, results, first, c.channels});
      first += part.channels;
    }
  });
}

struct PoolCase {
  PoolTask task;
  Tensor x;
  Bytes largest;
  Geometry unpadded;
  Expected means;
};

PoolCase read_pool(Reader& in) {
  PoolCase c;
  c.task.geometry = read_geometry(in);
  for (int* field : {&c.task.kernel_h, &c.task.kernel_w, &c.task.channels}) *field = in.integer();
  c.x = read_tensor(in);
  c.largest = in.array<uint8_t>();
  c.unpadded = read_geometry(in);
  c.means = read_expected(in);
  return c;
}

void check_pool(const PoolCase& c, const Tier& tier, Report& report) {
  Guarded<uint8_t> largest(c.largest.size());
  max_pool(tier, c.task, c.x.codes.data(), largest.data());
  largest.compare(c.largest, "largest", report);
  PoolTask task = c.task;
  task.geometry = c.unpadded;
  c.means.check(size_t(task.geometry.rows()) * task.channels, "means", report,
                [&](const Results& results) { avg_pool(tier, task, c.x.in(), results); });
}

// ---- all kinds, all tiers ------------------------------------------------------------------------------------------------
using Check = std::function<void(const Tier&, Report&)>;

Check read_scales(Reader& in) {
  const int groups = in.integer(), size = in.integer();
  const Floats x = in.array<float>();
  const float factor = in.real();
  const Floats expected = in.array<float>();
  return [=](const Tier& tier, Report& report) {
    Guarded<float> scales(groups);
    dynamic_scales(tier, x.data(), groups, size, factor, scales.data());
    scales.compare(expected, "scales", report);
  };
}

Check read_finite(Reader& in) {
  const Floats x = in.array<float>();
  const bool expected = in.integer() != 0;
  return [=](const Tier& tier, Report& report) {
    if (all_finite(tier, x.data(), int64_t(x.size())) != expected) report.fail("the answer is wrong");
  };
}

Check read_check(Reader& in, Kind kind) {
  using namespace std::placeholders;
  switch (kind) {
    case kLayer: return std::bind(check_layer, read_layer(in), _1, _2);
    case kQuantize: return std::bind(check_quantize, read_quantize(in), _1, _2);
    case kCombine: return std::bind(check_combine, read_combine(in), _1, _2);
    case kPool: return std::bind(check_pool, read_pool(in), _1, _2);
    case kScales: return read_scales(in);
    case kFinite: return read_finite(in);
    default: throw std::runtime_error("a case of a kind that is not known");
  }
}

std::vector<Count> check_all(Reader& in, const std::vector<const Tier*>& tiers, int every) {
  std::vector<Count> counts;
  Report report;
  for (const Tier* tier : tiers) {
    counts.push_back(check_families(*tier, every, report));
    counts.back() += check_depthwise_kernels(*tier, report);
  }
  int number = 0;
  for (Kind kind = in.kind(); kind != kEnd; kind = in.kind()) {
    const std::string name = in.text();
    const Check check = read_check(in, kind);
    if (number++ % every != 0) continue;
    for (size_t i = 0; i < tiers.size(); ++i) {
      report.begin(name, *tiers[i]);
      check(*tiers[i], report);
      counts[i] += report.end();
    }
  }
  return counts;
}

int report_idle_kernels(const std::vector<const Tier*>& tiers) {
  std::set<std::string> names;
  for (const Tier* tier : tiers) names.insert(tier->name);
  int idle = 0;
  for (const auto& [kernel, runs] : kernel_counts()) {
    if (runs > 0 || !names.count(kernel.substr(0, kernel.find('.')))) continue;
    std::printf("never ran: %s\n", kernel.c_str());
    ++idle;
  }
  return idle;
}

// ---- the command line --------------------------------------------------------------------------------------------------
std::vector<const Tier*> choose_tiers(const std::string& names) {
  std::vector<const Tier*> chosen;
  if (names == "best") return {&best_tier()};
  if (names == "all") {
    for (const Tier* t : tiers())
      if (t->usable) chosen.push_back(t);
    return chosen;
  }
  std::istringstream list(names);
  for (std::string name; std::getline(list, name, ',');) {
    const Tier* tier = find_tier(name);
    if (!tier || !tier->usable) throw std::runtime_error("tier " + name + " is not usable here");
    chosen.push_back(tier);
  }
  return chosen;
}

// The library must give the same bits in a thread that flushes denormals.
void flush_denormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
  uint64_t word;
  __asm__ volatile("mrs %0, fpcr" : "=r"(word));
  __asm__ volatile("msr fpcr, %0" : : "r"(word | (1ull << 24)));
#else
  throw std::runtime_error("--flush-denormals is not known on this platform");
#endif
}

// The processor's own tiers stay as they are; this one can be asked for by name as well.
void emulate_avxvnni() {
#if defined(__x86_64__) && defined(__linux__)
  avxvnni::emulate();
  for (Tier* tier : tiers())
    if (std::string(tier->name) == "avxvnni") tier->usable = true;
#else
  throw std::runtime_error("--emulate-avxvnni is not known on this platform");
#endif
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.empty())
    throw std::runtime_error(
        "usage: soniq_vectors FILE [--tiers all|best|NAME,NAME] [--threads N] [--every N] [--flush-denormals] "
        "[--emulate-avxvnni]");
  guard_pages::report_crashes();
  std::string names = "all";
  int every = 1;
  set_work_per_thread(1);  // split even the smallest case
  for (size_t i = 1; i < arguments.size(); ++i) {
    const bool has_value = i + 1 < arguments.size();
    if (arguments[i] == "--tiers" && has_value)
      names = arguments[++i];
    else if (arguments[i] == "--threads" && has_value)
      set_num_threads(std::stoi(arguments[++i]));
    else if (arguments[i] == "--every" && has_value)
      every = std::max(1, std::stoi(arguments[++i]));
    else if (arguments[i] == "--flush-denormals")
      flush_denormals();
    else if (arguments[i] == "--emulate-avxvnni")
      emulate_avxvnni();
    else
      throw std::runtime_error("unknown argument " + arguments[i]);
  }

  const std::vector<const Tier*> chosen = choose_tiers(names);
  std::printf("best tier: %s\n", best_tier().name);
  Reader in(arguments[0]);
  const std::vector<Count> counts = check_all(in, chosen, every);
  bool good = report_idle_kernels(chosen) == 0;
  for (size_t i = 0; i < chosen.size(); ++i) {
    std::printf("%s: %d cases, %d failed\n", chosen[i]->name, counts[i].cases, counts[i].failed);
    std::printf("%s: %d layers shared pixels\n", chosen[i]->name, layers_that_share[chosen[i]->name]);
    good = good && counts[i].failed == 0 && counts[i].cases > 0;
  }
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "soniq_vectors: %s\n", problem.what());
    return 2;
  }
}
