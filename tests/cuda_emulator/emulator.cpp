// Fibers, warps and blocks of tests/cuda_emulator/emulator.h, and the kernels by name.
#include "emulator.h"

#include <csetjmp>
#include <string>
#include <ucontext.h>
#include <utility>
#include <vector>

namespace emulator {

Dim block_index, grid_size;
uint4* shared;

namespace {

constexpr size_t kStack = 64 * 1024,
                 kGuard = 96 * 1024;  // wide, so that what writes past its memory is reported and does not crash
constexpr u8 kPoison = 0xa5;          // what nobody wrote

enum Meeting { kNobody, kMma, kBallot, kShuffle };

struct Fiber {
  jmp_buf at;
  bool started;
  u32 value;
  MmaOperands operands;
  std::vector<std::vector<std::pair<uint4*, const uint4*>>> copies;  // by group; the last one is open
};

struct Warp {
  u32 ready;  // lanes that can go on
  u32 arrived;
  Meeting meeting;
  u32 values[32], ballot;
};

struct Range {
  const char *begin, *end;
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<char> stacks;
std::vector<Range> readable;
u32 current, waiting, alive, order;
u64 random_state;
jmp_buf outside;
void (*kernel)(const void*);
const void* kernel_arguments;
std::string failure;

[[noreturn]] void fail(const std::string& what) {
  if (failure.empty()) failure = what + " (thread " + std::to_string(current) + ")";
  _longjmp(outside, 1);
}

u32 random_below(u32 count) {
  random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
  return u32(random_state >> 33) % count;
}

// Order 0: the first thread that can go on; 1: the last; others: any warp, from a random lane on. With an even order copies
// to shared memory arrive when they are waited for, with an odd one at once; both may happen.
bool pick(u32& next) {
  const u32 count = u32(warps.size()), from = order > 1 ? random_below(count) : 0;
  for (u32 i = 0; i < count; ++i) {
    const u32 w = order == 1 ? count - 1 - i : (from + i) % count;
    if (!warps[w].ready) continue;
    const u32 ready = warps[w].ready, turn = order > 1 ? random_below(32) : 0;
    const u32 turned = turn ? ready >> turn | ready << (32 - turn) : ready;
    const u32 bit = order == 1 ? 31 - __builtin_clz(turned) : __builtin_ctz(turned);
    next = w * 32 + (bit + turn) % 32;
    return true;
  }
  return false;
}

void body() {
  kernel(kernel_arguments);
  Warp& mine = warps[current / 32];
  mine.ready &= ~(1u << current % 32);
  --alive;
  _longjmp(outside, 2);
}

void start(Fiber& fiber) {
  ucontext_t there;
  fiber.started = true;
  getcontext(&there);
  there.uc_stack.ss_sp = stacks.data() + current * kStack;
  there.uc_stack.ss_size = kStack;
  there.uc_link = nullptr;
  makecontext(&there, body, 0);
  setcontext(&there);
}

// Goes on in another fiber.
void resume(u32 next) {
  current = next;
  Fiber& fiber = fibers[next];
  if (!fiber.started) start(fiber);
  _longjmp(fiber.at, 1);
}

void yield() {
  u32 next;
  if (!pick(next)) fail("deadlock: every thread waits");
  if (next == current) return;
  if (!_setjmp(fibers[current].at)) resume(next);
}

u32 common_bits(u32 a, u32 b) { return u32(__builtin_popcount(a & b)); }

void multiply(Warp& mine) {
  const Fiber* lanes = &fibers[(&mine - warps.data()) * 32];
  u32 rows[16][8], columns[8][8];  // [row][word of 32 columns], [column][word of 32 rows]
  for (u32 l = 0; l < 32; ++l) {
    const u32 g = l / 4, t = l % 4;
    const MmaOperands& o = lanes[l].operands;
    for (u32 i = 0; i < 4; ++i) rows[g + (i % 2) * 8][t + (i / 2) * 4] = o.a[i];
    for (u32 i = 0; i < 2; ++i) columns[g][t + i * 4] = o.b[i];
  }
  for (u32 l = 0; l < 32; ++l)
    for (u32 q = 0; q < 4; ++q) {
      const u32 row = l / 4 + (q / 2) * 8, column = l % 4 * 2 + q % 2;
      for (u32 w = 0; w < 8; ++w) lanes[l].operands.sums[q] += common_bits(rows[row][w], columns[column][w]);
    }
}

// All 32 lanes come to the same instruction; the last one does it for all.
void meet(Meeting meeting) {
  Warp& mine = warps[current / 32];
  if (mine.arrived == 0) mine.meeting = meeting;
  if (mine.meeting != meeting) fail("lanes of a warp are at different instructions");
  const u32 bit = 1u << current % 32;
  mine.arrived |= bit;
  mine.ready &= ~bit;
  if (mine.arrived != 0xffffffffu) return yield();
  if (meeting == kMma) multiply(mine);
  if (meeting == kBallot) {
    mine.ballot = 0;
    for (u32 l = 0; l < 32; ++l) mine.ballot |= u32(mine.values[l] != 0) << l;
  }
  if (meeting == kShuffle)
    for (u32 l = 0; l < 32; ++l) fibers[(&mine - warps.data()) * 32 + l].value = mine.values[l];
  mine.arrived = 0;
  mine.ready = 0xffffffffu;
}

void run_block() {
  alive = u32(fibers.size()), waiting = 0;
  for (Fiber& fiber : fibers) fiber.started = false, fiber.copies.assign(1, {});
  for (Warp& w : warps) w = {0xffffffffu, 0, kNobody, {}, 0};
  if (_setjmp(outside) == 1) return;
  if (!alive) return;
  u32 next;
  if (!pick(next)) {
    failure = "deadlock: threads wait for one that has ended";
    return;
  }
  resume(next);
}

}  // namespace

u32 thread_index() { return current; }

void barrier() {
  warps[current / 32].ready &= ~(1u << current % 32);
  if (++waiting != fibers.size()) return yield();
  waiting = 0;
  for (Warp& w : warps) w.ready = 0xffffffffu;
}

void require_readable(const void* p, size_t bytes) {
  const char* at = static_cast<const char*>(p);
  for (const Range& r : readable)
    if (at >= r.begin && at + bytes <= r.end) return;
  fail("access outside of the buffers that were passed");
}

void start_copy(uint4* to, const uint4* from) {
  require_readable(from, sizeof *from);
  if (order % 2)
    *to = *from;
  else
    fibers[current].copies.back().push_back({to, from});
}

void commit_copies() { fibers[current].copies.emplace_back(); }

void wait_for_copies(size_t pending) {
  auto& groups = fibers[current].copies;
  while (groups.size() - 1 > pending) {
    for (auto& [to, from] : groups.front()) *to = *from;
    groups.erase(groups.begin());
  }
}

u32 ballot(u32 bit) {
  Warp& mine = warps[current / 32];
  mine.values[current % 32] = bit;
  meet(kBallot);
  return mine.ballot;
}

u32 shuffle_xor(u32 value, int mask) {
  warps[current / 32].values[current % 32] = value;
  meet(kShuffle);
  return fibers[current ^ u32(mask)].value;
}

void mma(const MmaOperands& operands) {
  fibers[current].operands = operands;
  meet(kMma);
}

// Poison before and behind the shared memory of a block has to be there still when it ends.
bool intact(const u8* memory, size_t bytes) {
  const u8* behind = memory + kGuard + bytes;
  for (const u8* guard : {memory, behind})  // each byte is the one before it, and the first is poison
    if (guard[0] != kPoison || std::memcmp(guard, guard + 1, kGuard - 1)) return false;
  return true;
}

void launch_blocks(size_t shared_bytes) {
  std::vector<u8> memory(shared_bytes + 2 * kGuard + 16);
  const size_t skew = (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16;
  const u32 count = grid_size.x * grid_size.y * grid_size.z;
  for (u32 i = 0; i < count && failure.empty(); ++i) {
    const u32 block = order % 2 ? count - 1 - i : i;
    block_index = {block % grid_size.x, block / grid_size.x % grid_size.y, block / grid_size.x / grid_size.y};
    std::memset(memory.data(), kPoison, memory.size());
    shared = reinterpret_cast<uint4*>(memory.data() + skew + kGuard);
    run_block();
    if (failure.empty() && !intact(memory.data() + skew, shared_bytes))
      failure = "write outside of the shared memory that was asked for";
  }
}

}  // namespace emulator

#include "b1.cu"
#include "cuda_planes.cu"

namespace {

struct Kernel {
  const char* name;
  void (*run)(const void*);
};

#define SONIQ_PRODUCT(name) {#name, [](const void* p) { name(*static_cast<const Product*>(p)); }}
const Kernel kernels[] = {
    SONIQ_PRODUCT(b1_gemv_1),
    SONIQ_PRODUCT(b1_gemv_2),
    SONIQ_PRODUCT(b1_gemv_4),
    SONIQ_PRODUCT(b1_gemv_8),
    SONIQ_PRODUCT(b1_gemm_1),
    SONIQ_PRODUCT(b1_gemm_2),
    SONIQ_PRODUCT(b1_gemm_3),
    SONIQ_PRODUCT(b1_gemm_4),
    SONIQ_PRODUCT(b1_gemm_5),
    SONIQ_PRODUCT(b1_gemm_6),
    SONIQ_PRODUCT(b1_gemm_7),
    SONIQ_PRODUCT(b1_gemm_8),
    {"write_planes", [](const void* p) { write_planes(*static_cast<const PlanesCall*>(p)); }},
};

}  // namespace

extern "C" {

struct Buffer {
  const char* begin;
  u64 bytes;
};

u64 soniq_bytes_of_product() { return sizeof(Product); }
u64 soniq_bytes_of_planes_call() { return sizeof(PlanesCall); }

// Null, or what went wrong.
const char* soniq_launch(const char* name, const u32* grid, u32 threads, u64 shared_bytes, const void* arguments,
                         const Buffer* buffers, u32 buffer_count, u32 order) {
  using namespace emulator;
  static std::string message;
  failure = "no kernel of that name";
  for (const Kernel& candidate : kernels)
    if (!std::strcmp(candidate.name, name)) failure.clear(), kernel = candidate.run;
  grid_size = {grid[0], grid[1], grid[2]};
  kernel_arguments = arguments;
  emulator::order = order;
  random_state = order;
  readable.clear();
  for (u32 i = 0; i < buffer_count; ++i) readable.push_back({buffers[i].begin, buffers[i].begin + buffers[i].bytes});
  fibers.resize(threads);
  warps.resize(threads / 32);
  stacks.resize(threads * kStack);
  if (failure.empty()) launch_blocks(shared_bytes);
  message = failure;
  return message.empty() ? nullptr : message.c_str();
}
}
