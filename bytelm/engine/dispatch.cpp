// What the library is, and which of its variants this processor can run. Compiled without flags for an instruction
// set: these functions run on every processor of the architecture. build.py passes the words in capitals.

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

// 1 if this processor has the instructions of the variant, and the system saves their registers; else 0.
BL_API int bl_can_run(const char* isa) {
  if (same(isa, "plain")) return 1;
#if defined(__x86_64__)
  // The compiler's own detection also reads XCR0: a system that does not save the wide registers has no AVX.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (same(isa, "avx2")) return avx2;
  if (same(isa, "avx512")) return avx512;
  if (same(isa, "avx512vnni")) return avx512 && __builtin_cpu_supports("avx512vnni");
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
