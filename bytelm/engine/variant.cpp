// The whole engine for one instruction set, as one translation unit: build.py compiles this file once for each, with
// -DBL_ISA_NAME=<name> and the flags of that set. No symbol may be shared by two variants, or the linker would keep
// one copy of it, with instructions that some processors lack. So all code lies in a namespace of the variant's own,
// and what Python calls is named after the variant.
#include "export.h"

#include "engine.h"

#include "step.cpp"
#include "heads.cpp"
#include "model.cpp"
#include "choose.cpp"
#include "draft.cpp"
#include "decode.cpp"
