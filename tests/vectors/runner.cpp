// Checks the kernels of this build against cases that the oracle wrote (write.py), bit for bit, without Python: for CPUs
// that are emulated, and for builds with sanitizers.
//
//   soniq_vectors FILE [--tiers all|best|NAME,NAME] [--threads N] [--every N] [--flush-denormals] [--emulate-avxvnni]
//
// --every N, for slow runs, takes every Nth case and leaves the kernels of lower tiers to their own runs;
// --emulate-avxvnni makes that tier usable on a processor without it (emulate_avxvnni.h).
//
// Prints the tiers, every difference up to a limit, one line of counts a tier, and the kernels that these tiers should
// have run and never did. Exits with 0 only if there is neither a difference nor such a kernel.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
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
#include "layer.h"
#include "quantize.h"
#include "threads.h"

namespace {

using namespace soniq;
using Bytes = std::vector<uint8_t>;
using Ints = std::vector<int32_t>;
using Floats = std::vector<float>;

// ---- the file (write.py draws it) ------------------------------------------------------------------------------------
enum Kind : uint8_t { kEnd, kLayer, kQuantize, kScales, kFinite };

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

// ---- comparison --------------------------------------------------------------------------------------------------------
struct Count {
  int cases = 0, failed = 0;
  void operator+=(const Count& other) {
    cases += other.cases;
    failed += other.failed;
  }
};

class Report {
 public:
  void begin(const std::string& name, const Tier& tier) {
    name_ = name;
    tier_ = &tier;
    failed_ = false;
  }
  Count end() { return {1, failed_ ? 1 : 0}; }
  // Words that stand in front of what fails, until forgotten.
  void add(const std::string& word) { words_ += word + ", "; }
  void forget() { words_.clear(); }

  void fail(const std::string& what) {
    failed_ = true;
    if (++lines_ > kMaxLines) return;
    std::printf("%s differs: %s: %s\n", tier_->name, name_.c_str(), (words_ + what).c_str());
  }

 private:
  static constexpr int kMaxLines = 20;
  std::string name_, words_;
  const Tier* tier_ = nullptr;
  bool failed_ = false;
  int lines_ = 0;
};

// Floats are compared as bits, so that -0 and +0 differ; which NaN an operation gives is the processor's choice.
int64_t key(uint8_t v) { return v; }
int64_t key(int32_t v) { return v; }
int64_t key(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return v != v ? 0x7fc00000 : bits;
}

// An output of exactly `size` values, with guards around it that nobody may touch.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t size) : bytes_(size * sizeof(T) + 2 * kGuard, kPattern), size_(size) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }

  void compare(const std::vector<T>& expected, const std::string& what, Report& report) {
    for (size_t i = 0; i < size_; ++i)
      if (key(data()[i]) != key(expected[i])) {
        std::ostringstream text;
        text.precision(9);
        text << what << "[" << i << "] of " << size_ << " is " << +data()[i] << ", expected " << +expected[i];
        report.fail(text.str());
        break;
      }
    for (size_t i = 0; i < kGuard; ++i)
      if (bytes_[i] != kPattern || bytes_[bytes_.size() - 1 - i] != kPattern) {
        report.fail(what + " was written outside its bounds");
        break;
      }
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr uint8_t kPattern = 0xa5;
  Bytes bytes_;
  size_t size_;
};

// ---- layers ------------------------------------------------------------------------------------------------------------
struct Result {
  Floats activation_scale, w_scale, bias, residual, residual_factor, post_scale, post_bias, r, z, cmax, y;
  Bytes residual_codes, codes;
  Ints residual_position, residual_alpha, residual_beta, position;
  int rows_per_scale, rows_per_residual_scale, activation;
  float lo, hi;
};

struct LayerCase {
  LayerShape shape;
  std::vector<Bytes> streams;
  Geometry geometry;
  Bytes codes;
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

Result read_result(Reader& in) {
  Result r;
  r.activation_scale = in.array<float>();
  r.rows_per_scale = in.integer();
  r.w_scale = in.array<float>();
  r.bias = in.array<float>();
  r.residual = in.array<float>();
  r.residual_codes = in.array<uint8_t>();
  for (Ints* field : {&r.residual_position, &r.residual_alpha, &r.residual_beta}) *field = in.array<int32_t>();
  r.residual_factor = in.array<float>();
  r.rows_per_residual_scale = in.integer();
  r.activation = in.integer();
  r.lo = in.real();
  r.hi = in.real();
  for (Floats* field : {&r.post_scale, &r.post_bias, &r.r, &r.z, &r.cmax}) *field = in.array<float>();
  r.position = in.array<int32_t>();
  r.y = in.array<float>();
  r.codes = in.array<uint8_t>();
  return r;
}

LayerCase read_layer(Reader& in) {
  LayerCase c;
  LayerShape& s = c.shape;
  for (int* field : {&s.outputs, &s.groups, &s.kernel_h, &s.kernel_w, &s.channels}) *field = in.integer();
  read_segments(in, c);
  Geometry& g = c.geometry;
  for (int* field : {&g.batch, &g.in_h, &g.in_w, &g.out_h, &g.out_w, &g.stride_h, &g.stride_w, &g.pad_top, &g.pad_left,
                     &g.dilation_h, &g.dilation_w})
    *field = in.integer();
  c.codes = in.array<uint8_t>();
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
  o.residual_codes = or_null(r.residual_codes);
  o.residual_position = or_null(r.residual_position);
  o.residual_alpha = or_null(r.residual_alpha);
  o.residual_beta = or_null(r.residual_beta);
  o.residual_factor = or_null(r.residual_factor);
  o.rows_per_residual_scale = r.rows_per_residual_scale;
  o.activation = Activation(r.activation);
  o.lo = r.lo;
  o.hi = r.hi;
  o.post_scale = or_null(r.post_scale);
  o.post_bias = or_null(r.post_bias);
  o.r = or_null(r.r);
  o.z = or_null(r.z);
  o.cmax = or_null(r.cmax);
  o.position = or_null(r.position);
  return o;
}

void check_result(const LayerCase& c, const Layer& layer, const Geometry& geometry, int index, Report& report) {
  const Result& result = c.results[index];
  const size_t size = geometry.rows() * c.shape.outputs;
  const std::string what = "result " + std::to_string(index) + ", batch " + std::to_string(geometry.batch);
  Output output = describe(result);
  if (result.codes.empty()) {
    Guarded<float> y(size);
    output.y = y.data();
    layer.run(c.codes.data(), geometry, output);
    y.compare(result.y, what, report);
  } else {
    Guarded<uint8_t> codes(size);
    output.codes = codes.data();
    layer.run(c.codes.data(), geometry, output);
    codes.compare(result.codes, what, report);
  }
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
    for (int i = 0; i < int(c.results.size()); ++i) check_result(c, layer, geometry, i, report);
  }
}

// The families of the segments: the fastest ones, and for each family of the tier's own table that serves any of them, that
// one where it can.
std::set<std::vector<Family>> plans(const LayerShape& shape, const Tier& tier) {
  std::vector<std::vector<Candidate>> of_segment;
  std::set<Family> own;
  for (const Segment& s : shape.segments) {
    of_segment.push_back(candidates(tier, s.weight.bits, s.activation.bits));
    for (const Candidate& c : of_segment.back())
      if (c.tier == &tier || &c == &of_segment.back().front()) own.insert(c.family);
  }
  std::set<std::vector<Family>> found;
  for (const Family family : own) {
    std::vector<Family> plan;
    for (const auto& all : of_segment) {
      const auto it = std::find_if(all.begin(), all.end(), [&](const Candidate& c) { return c.family == family; });
      plan.push_back(it == all.end() ? all.front().family : family);
    }
    found.insert(plan);
  }
  if (found.empty()) found.insert(std::vector<Family>());  // the reference has none
  return found;
}

void check_layer(const LayerCase& c, const Tier& tier, Report& report) {
  std::vector<const uint8_t*> streams;
  for (const Bytes& stream : c.streams) streams.push_back(stream.data());
  for (const std::vector<Family>& plan : plans(c.shape, tier)) {
    for (const Family family : plan) report.add(family_name(family));
    check_layer_of(c, Layer(c.shape, streams.data(), tier, plan), report);
    report.forget();
  }
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

// ---- single kernels ------------------------------------------------------------------------------------------------------
// The drivers' buffers are longer than a tile needs, so a kernel that reads or writes past its operands would not show in
// the cases. Here the buffers are exact: guards see what is written, AddressSanitizer also what is read.
class Random {
 public:
  uint32_t next() { return uint32_t((state_ = state_ * 6364136223846793005u + 1442695040888963407u) >> 32); }
  Bytes codes(size_t size, int bits) {  // every fourth is the largest
    Bytes values(size);
    for (uint8_t& v : values) v = uint8_t(next() % 4 == 0 ? (1u << bits) - 1 : next() % (1u << bits));
    return values;
  }

 private:
  uint64_t state_ = 1;
};

// The widths with the largest products that a form is exact for; flipped weights would be another operand.
std::pair<int, int> widest(const DotFamily& dot, int form) {
  std::pair<int, int> best(0, 0);
  const auto product = [](std::pair<int, int> bits) { return ((1 << bits.first) - 1) * ((1 << bits.second) - 1); };
  for (int w = 1; w <= (dot.flips_8bit_weights ? 7 : 8); ++w)
    for (int a = 1; a <= 8; ++a)
      if (dot.form(w, a) == form && product({w, a}) > product(best)) best = {w, a};
  return best;
}

// Rows of words, as a form with `expand` reads them.
Bytes expanded(ExpandFn expand, const Bytes& codes, int rows, int k) {
  Bytes words(size_t(rows - 1) * kExpandStride + 2 * k);
  for (int row = 0; expand && row < rows; ++row)
    expand(codes.data() + row * kRowStride, k / kUnit, words.data() + row * kExpandStride);
  return words;
}

void check_tile(const DotFamily& dot, int form, int rows, Random& random, Report& report) {
  const auto [w_bits, a_bits] = widest(dot, form);
  const int columns = dot.columns, k = 3 * kUnit, shift = 2;
  const Bytes w = random.codes(size_t(columns) * k, w_bits);
  const Bytes a = random.codes(size_t(rows - 1) * kRowStride + k, a_bits);
  Guarded<int32_t> sums(size_t(rows) * columns);
  Ints expected(size_t(rows) * columns);
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column) {
      uint32_t sum = 0;
      for (int i = 0; i < k; ++i)  // [k / 4][column][k % 4]
        sum += uint32_t(w[(i / 4 * columns + column) * 4 + i % 4]) * a[row * kRowStride + i];
      const uint32_t before = random.next();
      sums.data()[row * columns + column] = int32_t(before);
      expected[row * columns + column] = int32_t(before + (sum << shift));
    }
  const Bytes words = expanded(dot.expand[form], a, rows, k);
  dot.tile[form][rows](w.data(), dot.expand[form] ? words.data() : a.data(), k,
                       reinterpret_cast<uint32_t*>(sums.data()), shift);
  sums.compare(expected, "sums", report);
}

// One byte of an unpacked unit: fields of 4, 2 and 1 bits, high to low; a field of f bits of 8 rows shares f rows.
uint8_t unpacked(const uint8_t* unit, int bits, int row_bytes, int row, int byte) {
  int code = 0, position = bits;
  for (int field = 4; field >= 1; field /= 2) {
    if (!(bits & field)) continue;
    position -= field;
    const int shared = unit[row % field * row_bytes + byte] >> (row / field * field);
    code |= (shared & ((1 << field) - 1)) << position;
    unit += field * row_bytes;
  }
  return uint8_t(code);
}

void check_unpack(const DotFamily& dot, int bits, Random& random, Report& report) {
  const int units = 3, row_bytes = dot.columns * 4;
  const Bytes panel = random.codes(size_t(units) * bits * row_bytes, 8);
  Guarded<uint8_t> bytes(size_t(units) * 8 * row_bytes);
  Bytes expected;
  for (int unit = 0; unit < units; ++unit)
    for (int row = 0; row < 8; ++row)
      for (int byte = 0; byte < row_bytes; ++byte)
        expected.push_back(unpacked(panel.data() + unit * bits * row_bytes, bits, row_bytes, row, byte));
  dot.unpack[bits](panel.data(), units, bytes.data());
  bytes.compare(expected, "bytes", report);
}

// The kernels of the tier's own table.
Count check_kernels(const Tier& tier, Report& report) {
  Count count;
  if (!tier.table->dot) return count;
  const DotFamily& dot = *tier.table->dot;
  Random random;
  for (int form = 0; form < dot.forms; ++form)
    for (int rows = 1; rows <= dot.tile_rows[form]; ++rows) {
      report.begin(std::string(dot.form_name(form)) + " tile of " + std::to_string(rows) + " rows", tier);
      check_tile(dot, form, rows, random, report);
      count += report.end();
    }
  for (int bits = 1; bits <= 8; ++bits) {
    if (!dot.unpack[bits]) continue;
    report.begin("unpack " + std::to_string(bits) + " bits", tier);
    check_unpack(dot, bits, random, report);
    count += report.end();
  }
  return count;
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
    case kScales: return read_scales(in);
    case kFinite: return read_finite(in);
    default: throw std::runtime_error("a case of a kind that is not known");
  }
}

std::vector<Count> check_all(Reader& in, const std::vector<const Tier*>& tiers, int every) {
  std::vector<Count> counts;
  Report report;
  for (const Tier* tier : tiers) counts.push_back(check_kernels(*tier, report));
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

// "tier.slot" of every kernel that calls on these tiers end in; `own`: in tables of these tiers only.
std::set<std::string> serving_slots(const std::vector<const Tier*>& tiers, bool own) {
  std::set<std::string> slots;
  for (const Tier* t : tiers) {
    const auto add = [&](const char* slot, const Tier& server) {
      if (!own || std::count(tiers.begin(), tiers.end(), &server)) slots.insert(std::string(server.name) + "." + slot);
    };
    add("quantize", tier_with(*t, &KernelTable::quantize));
    add("abs_max", tier_with(*t, &KernelTable::abs_max));
    add("all_finite", tier_with(*t, &KernelTable::all_finite));
    add("sum_bytes", tier_with(*t, &KernelTable::sum_bytes));
    add("epilogue", tier_with(*t, &KernelTable::epilogue));
    add("depthwise", tier_with(*t, &KernelTable::depthwise));
    add("dot", tier_with(*t, &KernelTable::dot));
    add("popcount", tier_with(*t, &KernelTable::popcount));
    add("lut", tier_with(*t, &KernelTable::lut));
    add("lut6", tier_with(*t, &KernelTable::lut6));
  }
  return slots;
}

int report_idle_kernels(const std::vector<const Tier*>& tiers, bool own) {
  const std::set<std::string> slots = serving_slots(tiers, own);
  int idle = 0;
  for (const auto& [kernel, runs] : kernel_counts()) {
    const size_t end = kernel.find('.', kernel.find('.') + 1);
    if (runs > 0 || !slots.count(kernel.substr(0, end))) continue;
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
  bool good = report_idle_kernels(chosen, every > 1) == 0;
  for (size_t i = 0; i < chosen.size(); ++i) {
    std::printf("%s: %d cases, %d failed\n", chosen[i]->name, counts[i].cases, counts[i].failed);
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
