// Names that a library with several variants needs. BL_ISA_NAME (avx2, plain, ...) comes from the command line:
// everything inside lies in namespace BL_NS = bl_<isa>, and `BL_API int BL_EXPORT(step)(...)` is seen as bl_<isa>_step.
#pragma once

#ifndef BL_ISA_NAME
#error "compile with -DBL_ISA_NAME=<avx512vnni|avx512|avx2|plain|neon>"
#endif

#define BL_PASTE_NS_(isa) bl_##isa
#define BL_PASTE_NS(isa) BL_PASTE_NS_(isa)
#define BL_NS BL_PASTE_NS(BL_ISA_NAME)
#define BL_API extern "C" __attribute__((visibility("default")))
#define BL_PASTE_EXPORT_(isa, name) bl_##isa##_##name
#define BL_PASTE_EXPORT(isa, name) BL_PASTE_EXPORT_(isa, name)
#define BL_EXPORT(name) BL_PASTE_EXPORT(BL_ISA_NAME, name)
