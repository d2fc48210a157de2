// Prints a hash of what the engine computes, so that two machines can be compared: logits of passes over chains and
// trees, of draft heads, and the functions of dmath.h, for float32, bfloat16 and int8 matrices, all head families.
// It is built against one variant of a library and run where that variant runs; equal output means equal bits.
// `make check-aarch64` compares 64-bit ARM, run by qemu, with the plain variant of this machine.
#include "../../bytelm/engine/export.h"

#include "../../bytelm/engine/engine.h"

#include <stdio.h>

using namespace BL_NS;

extern "C" {
int BL_EXPORT(model_new)(const Shape*, const uint8_t* local, int layers, Model** out);
int64_t BL_EXPORT(model_elements)(const Model*, int part, int index);
int BL_EXPORT(model_set)(Model*, int part, int index, int dtype, const void* data, int64_t count);
int BL_EXPORT(model_complete)(const Model*);
void BL_EXPORT(model_free)(Model*);
int BL_EXPORT(session_new)(const Model*, int threads, int most_rows, int most_slots, Session** out);
void BL_EXPORT(session_free)(Session*);
int BL_EXPORT(cache_new)(const Model*, int capacity, int kind, Cache** out);
void BL_EXPORT(cache_free)(Cache*);
int BL_EXPORT(prefill)(Session*, Cache*, const int32_t* ids, int n);
int BL_EXPORT(pass)(Session*, int count, Cache**, const int32_t* rows, const int32_t* parents, const int32_t* ids, float*);
int BL_EXPORT(accept_path)(Session*, Cache*, int first, int rows, const int32_t* path, int n);
int BL_EXPORT(draft_head)(Session*, Cache*, int head, float* logits);
int32_t BL_EXPORT(dmath)(int32_t what, const double* x, int32_t n, double* out);
}

static uint64_t hash = 1469598103934665603u;
static void mix(const void* data, size_t bytes) {  // FNV-1a
  for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t*)data)[i]) * 1099511628211u;
}

static uint32_t state = 1;
static uint32_t random_bits() { return state = state * 1664525u + 1013904223u; }
static float random_weight(float scale) { return ((float)(random_bits() >> 8) / 8388608.0f - 1.0f) * scale; }

static void check(bool good, const char* what) {
  if (good) return;
  printf("%s failed\n", what);
  exit(1);
}

static void run(int kind, int family, int cache_kind) {
  Shape h = {};
  h.width = 96, h.layers = 3, h.heads = 4, h.groups = 2, h.channels = 24, h.inner = 152;
  h.vocabulary = 320, h.choices = 257, h.head_count = 4, h.family = family;
  h.ngrams = 2, h.ngram_rows = 1000, h.ngram_width = 16, h.ngram_size[0] = 2, h.ngram_size[1] = 3;
  h.kind = kind, h.local_window = 20, h.norm_epsilon = 1e-5f, h.rope_base = 10000.0;
  const int layers = h.layers + (family < TRANSFORMER ? 0 : family == SHARED ? 1 : h.head_count);
  uint8_t local[16] = {1, 0, 1};
  Model* model;
  check(BL_EXPORT(model_new)(&h, local, layers, &model) == OK, "model_new");
  for (int part = 0; part < 17; part++)
    for (int index = 0; index < layers + h.head_count; index++) {
      const int64_t n = BL_EXPORT(model_elements)(model, part, index);
      if (n == 0) continue;
      float* numbers = (float*)malloc((size_t)n * 4);
      for (int64_t i = 0; i < n; i++) numbers[i] = random_weight(0.15f);
      check(BL_EXPORT(model_set)(model, part, index, 0, numbers, n) == OK, "model_set");
      free(numbers);
    }
  check(BL_EXPORT(model_complete)(model), "model_complete");
  Session* session;
  Cache* cache;
  check(BL_EXPORT(session_new)(model, 2, 24, 128, &session) == OK, "session_new");
  check(BL_EXPORT(cache_new)(model, 100, cache_kind, &cache) == OK, "cache_new");
  int32_t ids[70];
  for (int32_t& id : ids) id = (int32_t)(random_bits() >> 16) % 257;
  check(BL_EXPORT(prefill)(session, cache, ids, 53) == OK, "prefill");
  static float logits[24 * 320];
  for (int round = 0; round < 3; round++) {
    const int32_t rows = 9, parents[9] = {-1, 0, 0, 1, 2, 2, 3, 4, 6}, path[3] = {0, 2, 5};
    const int status = BL_EXPORT(pass)(session, 1, &cache, &rows, round ? parents : nullptr, ids + 53, logits);
    check(status == OK, "pass");
    mix(logits, (size_t)rows * 320 * 4);
    check(BL_EXPORT(accept_path)(session, cache, 0, rows, round ? path : nullptr, 3) == OK, "accept_path");
    for (int head = 1; head < h.head_count; head++) {
      check(BL_EXPORT(draft_head)(session, cache, head, logits) == OK, "draft_head");
      mix(logits, 320 * 4);
    }
  }
  BL_EXPORT(cache_free)(cache), BL_EXPORT(session_free)(session), BL_EXPORT(model_free)(model);
}

int main() {
  for (int kind = F32; kind <= INT8; kind++)
    for (int family = LINEAR; family <= SHARED; family++)
      for (int cache_kind = F32; cache_kind <= BF16; cache_kind++) run(kind, family, cache_kind);
  printf("passes %016llx\n", (unsigned long long)hash);
  static double x[4096], y[4096];
  for (int what = 0; what <= 4; what++) {
    for (double& one : x) one = ((double)random_bits() + 1.0) / 4294967296.0 * (what == 0 ? 80.0 : 4.0);
    BL_EXPORT(dmath)(what, x, 4096, y);
    mix(y, sizeof y);
  }
  printf("dmath  %016llx\n", (unsigned long long)hash);
}
