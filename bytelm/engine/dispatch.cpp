// What the library is, and which of its variants this processor can run. Compiled without flags for an instruction
// set: these functions run on every processor of the architecture. build.py passes the words in capitals.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define BL_API extern "C" __attribute__((visibility("default")))

BL_API int bl_abi() { return BL_ABI; }

// Hash of the sources, the flags and the version that the library was built from.
BL_API const char* bl_build() { return BL_BUILD; }

// Names of the variants in the library, best first, with commas between them.
BL_API const char* bl_isas() { return BL_ISAS; }

static bool same(const char* a, const char* b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

#if defined(__x86_64__)
struct Features { bool avx2, avx512, avx512vnni; };

// Asked of the processor itself: __builtin_cpu_supports says no to everything where the compiler's runtime library, as
// Zig's, does not fill in its table. Source: Intel 64 Software Developer's Manual, volume 1, sections 14.3 and 15.2.
static Features features() {
  Features found = {false, false, false};
  unsigned a, b, c, d, c1;
  if (!__get_cpuid(1, &a, &b, &c1, &d) || !(c1 >> 27 & 1)) return found;  // the system does not manage wide registers
  unsigned saved, high;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const bool fma = c1 >> 12 & 1, avx = c1 >> 28 & 1, f16c = c1 >> 29 & 1;
  const bool wide = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // AVX-512 F, DQ, BW, VL
  found.avx2 = (saved & 0x6) == 0x6 && avx && fma && (b >> 5 & 1);
  found.avx512 = (saved & 0xe6) == 0xe6 && found.avx2 && f16c && wide;
  found.avx512vnni = found.avx512 && (c >> 11 & 1);
  return found;
}
#endif

// 1 if this processor has the instructions of the variant, and the system saves their registers; else 0.
BL_API int bl_can_run(const char* isa) {
  if (same(isa, "plain")) return 1;
#if defined(__x86_64__)
  const Features found = features();
  if (same(isa, "avx2")) return found.avx2;
  if (same(isa, "avx512")) return found.avx512;
  if (same(isa, "avx512vnni")) return found.avx512vnni;
#elif defined(__aarch64__)
  if (same(isa, "neon")) return 1;  // every 64-bit ARM processor has it
#endif
  return 0;
}

// The first variant in the library that this processor can run; empty if there is none.
BL_API const char* bl_best() {
  static const char* const names[] = {BL_ISA_LIST};
  for (const char* name : names)
    if (bl_can_run(name)) return name;
  return "";
}
