#include "dispatch.h"

#include "cpu.h"

namespace soniq {

// Each tier exports one symbol.
extern const KernelTable reference_table;
#define SONIQ_TIER(name) extern const KernelTable name##_table
SONIQ_TIER(avx2);
SONIQ_TIER(avxvnni);
SONIQ_TIER(avx512);
SONIQ_TIER(avx512_vbmi);
SONIQ_TIER(amx);
SONIQ_TIER(neon);
SONIQ_TIER(neon_dotprod);
SONIQ_TIER(neon_i8mm);
#undef SONIQ_TIER

namespace {

std::vector<Tier*> make_tiers() {
  const CpuFeatures& cpu = cpu_features();
  std::vector<Tier*> list;
  // The list lives as long as the process: layers hold references into it. Below a tier is the last one before it that this
  // processor has: AVX-512 came years before AVX-VNNI, so the order alone does not say who can serve whom.
  int below = -1;
  const auto add = [&](const char* name, const char* needs, const KernelTable* table, bool usable) {
    list.push_back(new Tier{name, needs, table, usable, below, {}});
    if (usable) below = int(list.size()) - 1;
  };
  add("reference", "nothing", &reference_table, true);
#if defined(SONIQ_HAVE_AVX2)
  add("avx2", "AVX2, FMA and BMI2", &avx2_table, cpu.avx2);
#endif
#if defined(SONIQ_HAVE_AVXVNNI)
  add("avxvnni", "AVX2, FMA, BMI2 and AVX-VNNI", &avxvnni_table, cpu.avxvnni);
#endif
#if defined(SONIQ_HAVE_AVX512)
  add("avx512", "AVX-512 F, BW, DQ, VL and VNNI", &avx512_table, cpu.avx512);
#endif
#if defined(SONIQ_HAVE_AVX512_VBMI)
  add("avx512_vbmi", "AVX-512 with VNNI, VBMI, VBMI2, VPOPCNTDQ and BITALG", &avx512_vbmi_table, cpu.avx512_vbmi);
#endif
#if defined(SONIQ_HAVE_AMX)
  add("amx", "AMX-TILE and AMX-INT8, and all of avx512_vbmi", &amx_table, cpu.amx);
#endif
#if defined(SONIQ_HAVE_NEON)
  add("neon", "NEON", &neon_table, cpu.neon);
#endif
#if defined(SONIQ_HAVE_NEON_DOTPROD)
  add("neon_dotprod", "NEON with the dot product extension", &neon_dotprod_table, cpu.neon_dotprod);
#endif
#if defined(SONIQ_HAVE_NEON_I8MM)
  add("neon_i8mm", "NEON with dot product and int8 matrix multiply", &neon_i8mm_table, cpu.neon_i8mm);
#endif
  (void)cpu;
  return list;
}

std::atomic<const Tier*>& active() {
  static std::atomic<const Tier*> tier{&best_tier()};
  return tier;
}

using Counts = std::map<std::string, int64_t>;

void count_dot(const Tier& tier, const DotFamily& dot, Counts& counts) {
  const std::string prefix = std::string(tier.name) + ".dot.";
  for (int alpha = 1; alpha <= 2; ++alpha)
    for (int bits = 1; bits <= 8; ++bits)
      if (dot.unpack[alpha - 1][bits])
        counts[prefix + (alpha == 2 ? "unpack_twice" : "unpack") + std::to_string(bits)] =
            tier.counters.unpack[alpha - 1][bits];
  for (ExpandFn expand : dot.expand)
    if (expand) counts[prefix + "expand"] = tier.counters.expand;
  for (int form = 0; form < dot.forms; ++form)
    for (int rows = 1; rows <= kMaxTileRows && dot.tile[form][rows]; ++rows)
      counts[prefix + dot.form_name(form) + ".tile" + std::to_string(rows)] = tier.counters.tile[form][rows];
  if (dot.matrix) {
    counts[prefix + dot.form_name(0) + ".pair"] = tier.counters.matrix_pair;
    counts[prefix + dot.form_name(0) + ".single"] = tier.counters.matrix_single;
  }
  for (int form = 0; form < dot.forms; ++form)
    for (int bits = 1; bits <= 8; ++bits)
      for (int rows = 1; rows <= dot.few_rows && dot.few[form][bits][rows]; ++rows)
        counts[prefix + dot.form_name(form) + ".w" + std::to_string(bits) + ".few" + std::to_string(rows)] =
            tier.counters.few[form][bits][rows];
}

void count_depthwise(const Tier& tier, const DepthwiseFamily& depthwise, Counts& counts) {
  const std::string prefix = std::string(tier.name) + ".depthwise.";
  counts[prefix + "interleave"] = tier.counters.depthwise_interleave;
  counts[prefix + "merge"] = tier.counters.depthwise_merge;
  for (int i = 0; i < depthwise.forms; ++i) {
    const DepthwiseForm& form = depthwise.form[i];
    counts[prefix + form.name + ".any"] = tier.counters.depthwise_any[i];
    for (int rows = 1; rows <= 2 && form.three[rows - 1]; ++rows)
      counts[prefix + form.name + ".three.rows" + std::to_string(rows)] = tier.counters.depthwise_three[i][rows - 1];
  }
}

void count_popcount(const Tier& tier, const PopcountFamily& popcount, Counts& counts) {
  const std::string prefix = std::string(tier.name) + ".popcount.";
  for (int bits = 1; bits <= 8; ++bits)
    if (popcount.planes[bits]) counts[prefix + "planes" + std::to_string(bits)] = tier.counters.planes[bits];
  for (int rows = 1; rows <= popcount.tile_rows; ++rows)
    counts[prefix + popcount.name + ".tile" + std::to_string(rows)] = tier.counters.popcount_tile[rows];
}

void count_lut(const Tier& tier, const LutFamily& lut, Counts& counts) {
  const std::string prefix = std::string(tier.name) + ".lut.";
  counts[prefix + "tables"] = tier.counters.tables;
  if (lut.indexes) counts[prefix + "indexes"] = tier.counters.indexes;
  for (int bits = 1; bits <= kMaxLutBits; ++bits) {
    for (int rows = 1; rows <= lut.few_rows; ++rows)
      counts[prefix + lut.name + ".a" + std::to_string(bits) + ".few" + std::to_string(rows)] =
          tier.counters.lut_few[bits][rows];
    for (int rows = 1; rows <= kMaxTileRows && lut.tile[bits][rows]; ++rows) {
      int first = bits;  // widths may share one kernel, which then counts under the first of them
      while (lut.tile[first - 1][rows] == lut.tile[bits][rows]) --first;
      counts[prefix + lut.name + ".a" + std::to_string(first) + ".tile" + std::to_string(rows)] +=
          tier.counters.lut_tile[bits][rows];
    }
  }
}

void count_lut6(const Tier& tier, const Lut6Family& lut6, Counts& counts) {
  const std::string prefix = std::string(tier.name) + ".lut" + std::to_string(lut6.codes) + ".";
  counts[prefix + "tables"] = tier.counters.lut6_tables;
  for (int bits = 1; bits <= kMaxLut6Bits; ++bits)
    for (int rows = 1; rows <= lut6.tile_rows && lut6.tile[bits][rows]; ++rows) {
      int first = bits;  // as above
      while (lut6.tile[first - 1][rows] == lut6.tile[bits][rows]) --first;
      counts[prefix + lut6.name + ".a" + std::to_string(first) + ".tile" + std::to_string(rows)] +=
          tier.counters.lut6_tile[bits][rows];
    }
}

}  // namespace

const std::vector<Tier*>& tiers() {
  static const auto& list = *new std::vector<Tier*>(make_tiers());
  return list;
}

const Tier& best_tier() {
  const Tier* best = tiers().front();
  for (const Tier* t : tiers())
    if (t->usable) best = t;
  return *best;
}

const Tier* find_tier(const std::string& name) {
  for (const Tier* t : tiers())
    if (name == t->name) return t;
  return nullptr;
}

const Tier& active_tier() { return *active().load(); }
void set_active_tier(const Tier& tier) { active() = &tier; }

std::map<std::string, int64_t> kernel_counts() {
  Counts counts;
  for (const Tier* t : tiers()) {
    if (!t->usable) continue;
    const std::string prefix = std::string(t->name) + ".";
    const KernelTable& k = *t->table;
    const KernelCounters& c = t->counters;
    if (k.quantize) counts[prefix + "quantize"] = c.quantize;
    if (k.quantize_split) counts[prefix + "quantize_split"] = c.quantize_split;
    if (k.abs_max) counts[prefix + "abs_max"] = c.abs_max;
    if (k.all_finite) counts[prefix + "all_finite"] = c.all_finite;
    if (k.sum_bytes) counts[prefix + "sum_bytes"] = c.sum_bytes;
    if (k.epilogue) counts[prefix + "epilogue"] = c.epilogue;
    if (k.depthwise) count_depthwise(*t, *k.depthwise, counts);
    if (k.combine) counts[prefix + "combine"] = c.combine;
    if (k.max_codes) counts[prefix + "max_codes"] = c.max_codes;
    if (k.winograd) {
      counts[prefix + "winograd.pixels"] = c.winograd_pixels;
      counts[prefix + "winograd.weights"] = c.winograd_weights;
      counts[prefix + "winograd.sums"] = c.winograd_sums;
    }
    if (k.sum_codes) counts[prefix + "sum_codes"] = c.sum_codes;
    if (k.dot) count_dot(*t, *k.dot, counts);
    if (k.popcount) count_popcount(*t, *k.popcount, counts);
    if (k.lut) count_lut(*t, *k.lut, counts);
    if (k.lut6) count_lut6(*t, *k.lut6, counts);
  }
  return counts;
}

}  // namespace soniq
