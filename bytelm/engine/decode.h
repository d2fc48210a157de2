// What choose.cpp, draft.cpp and decode.cpp share: settings, the context of a byte, drafts, sequences, the decoder.
// Structs marked (ctypes) are mirrored in Python: fields, order and types must stay equal.
#pragma once
#include "engine.h"

namespace BL_NS {

constexpr int EOD = 256;
constexpr int PENALTY_BYTES = 64;
constexpr int NOISE_ROWS = 64;     // positions whose noise is kept: a draft and its verification ask for the same
constexpr int MOST_NODES = 47;     // of a draft: with its first id a pass has 48 rows of a sequence at most
constexpr int TRUNK = 0, LOOKUP = -1;  // sources of a byte; k >= 1 is head k

enum Policy : int32_t { NONE = 0, ADAPTIVE = 1, HEADS = 2, NGRAM = 3 };

// What a sequence is doing, and why it ended.
enum State : int32_t { FREE = 0, READING = 1, RUNNING = 2, FINISHED = 3 };
enum Finish : int32_t { GOES_ON = 0, END_OF_DOCUMENT = 1, MAX_IDS = 2, LOGITS_NOT_FINITE = 3 };
// Why decoder_run came back.
enum Ended : int32_t { STEPS_DONE = 0, TIME_OVER = 1, SEQUENCE_FINISHED = 2, BLOCK_FULL = 3, NOTHING_RUNS = 4 };

// (ctypes) What is asked of a sequence.
struct Settings {
  double temperature;         // 0: greedy
  double top_p, min_p;        // below 0: none
  double repetition_penalty;  // 1: none
  uint64_t seed, sequence;
  int64_t max_ids;            // ids of the output at most
  int32_t top_k;              // 0: none
  int32_t utf8, logprobs;     // 0 or 1
  int32_t policy;             // Policy
};

// What the next-byte distribution must know of the bytes before.
struct Context {
  int64_t position;   // in the output, of the byte that is chosen here
  int32_t utf8_state;
  int32_t count;      // of recent
  uint8_t recent[PENALTY_BYTES];  // the last bytes, oldest first
};

// choose.cpp ----------------------------------------------------------------------------------------------------------

struct Chooser {
  Settings settings;
  int choices;                    // ids below this can be chosen
  double* noise;                  // [NOISE_ROWS][choices]
  int64_t noise_position[NOISE_ROWS];
  float* changed;                 // [choices], logits with penalty and exclusions
  double* scores;                 // twice [choices], each half rounded up to 16: scores, then weights of restrictions
  int32_t* ranks;                 // [choices], whole numbers in the order of the logits
};

int chooser_init(Chooser* c, const Settings* settings, int choices);  // Status
void chooser_free(Chooser* c);
// A prompt that is no UTF-8 counts as one that ends between characters.
Context first_context(const uint8_t* prompt, int64_t n);
Context context_after(const Context& before, int id);
bool constrained(const Chooser* c);  // penalty or UTF-8
bool permits(const Chooser* c, int id, const Context& at);
// The id at a context from the trunk's logits [choices or more].
int choose(Chooser* c, const float* logits, const Context& at);
// For drafts: log-probabilities (normalised, of the distribution that the settings make of these logits) and the scores
// of which `choose` would take the highest (with the noise of the position), both [columns]; columns <= choices.
void draft_view(Chooser* c, const float* logits, int columns, const Context& at, double* log_probs, double* scores);
const double* noise_at(Chooser* c, int64_t position);  // [choices], Gumbel; not for greedy
double log_probability(const float* logits, int vocabulary, int id);  // nats, softmax over all V columns

// draft.cpp -----------------------------------------------------------------------------------------------------------

// (ctypes) How often drafts of a kind were right; old ones fade.
struct Counter { double right, total; };

// (ctypes) What became of drafts, by kind. Rule: 0 greedy, 1 sampled. Bins as probability_bin and match_bin have them.
struct Calibration {
  Counter head[2][2][9][13];  // [rule][0 head, 1 agree: prompt lookup said the same][depth][bin of the probability]
  Counter lookup[2][8];       // [rule][bin of the match]
  Counter against[2][8];      // the same, where the head says another byte
};

// (ctypes) Seconds of a step by the ids before it and by its rows, at least two numbers of rows, ascending.
struct Costs {
  int32_t pasts, row_counts;  // used entries of past, and of rows
  int32_t past[4];
  int32_t rows[12];
  double seconds[4][12];
  double head;                // of one draft head asked at one row
  double sequence;            // of each sequence beyond the first
};

// (ctypes) Correction of draft heads by the last two bytes: of_head * logits + of_pair * ((last[x] + before[y]) · out).
struct Pairs {
  int32_t rank;                      // 1 … 256
  const float *last, *before, *out;  // [257][rank], [257][rank], [rank][257]
  const float *of_head, *of_pair;    // [K - 1]
};

// Index of a sequence's own bytes: places by the hash of the four bytes before them, the last place first.
struct Lookup {
  uint8_t* bytes;
  int32_t* previous;  // of each place, the one before it with the same hash; -1: none
  int32_t* newest;    // by hash; -1: none
  int32_t count, room;
  int bits;           // newest has 2^bits entries
};

// Where the same bytes stood before: the place of the byte that followed, and how many bytes before it are the same.
struct Match { int32_t place, length; };  // length 0: nowhere

// A byte that may be drafted, and what is to be counted when it is known whether it was right.
struct Node {
  int32_t parent;            // index among the nodes; -1: the last id
  int32_t depth;             // ids between it and the last id
  int32_t id;
  int32_t source;            // LOOKUP or a head
  double probability;        // that it is right, its parent being right
  double path_probability;   // that it is right and its parents too
  Counter* counter;          // of its kind, or null
  int32_t guess;             // of prompt lookup at this place; -1: none
  Counter* guess_counter;
  Counter* against_counter;  // of the guess, where the head's best byte is another; else null
};

constexpr int MOST_CANDIDATES = 3 * MOST_NODES;  // a chain, and two nodes of a branch at each depth
constexpr int LOOKUP_NODES = 15;                 // of the policy NGRAM
constexpr double LEAST_PATH = 0.03;              // ADAPTIVE looks at nothing that is reached less often

struct Sequence {
  int32_t state;           // State
  Cache* cache;
  int32_t* ids;            // EOD, prompt, output; of a prompt longer than the context its last part
  int64_t count, room;     // of ids
  int64_t first;           // index of the id at position 0 of the cache
  int64_t produced;        // ids of the output
  bool has_lookup;
  bool heads_ready;        // whether draft heads can be asked: some need a pass of head 0 first
  Chooser chooser;
  Context context;         // after the last id
  Lookup lookup;
  // The draft of this step.
  Node nodes[MOST_CANDIDATES];
  int candidates;          // nodes that were proposed, chain first
  int order[MOST_CANDIDATES];  // by path_probability, parents first
  int chosen[MOST_NODES];  // nodes that are verified, in the order of their rows 1, 2, …
  int drafted;
  int asked;               // draft heads that were asked
  // Heads that hardly ever help are asked only now and then.
  double gain, spent;      // ids that heads gave to a step that asked them, seconds that they took; fading means
  int pause, wait;         // steps of the last pause, and of this one still to come
};

struct Decoder {
  Session* session;
  Sequence* sequence;      // [slots]
  int slots, capacity, cache_kind;
  bool bytes;              // ids are bytes and EOD; else prompt lookup and pairs have no part in drafts
  bool trees;              // heads' second-best bytes are drafted as branches
  Costs costs;
  Calibration calibration;
  Counter branch[2][9][13], behind[2][9];  // of trees
  double gained, spent;    // ids and seconds of the last steps, fading: the rate that decoding runs at
  // Copy of Pairs, out filled up to 256 columns.
  int rank;                // 0: none
  float *last, *before, *out, *of_head, *of_pair;
  float *head_logits;      // [K][columns], of the heads of one sequence
  float *own_logits;       // [columns], corrected
  double *log_probs, *scores;  // [columns]
  int columns;             // of a draft head
  Part* parts;             // [slots]
  int32_t* pass_ids;       // [rows]
  int32_t* pass_parents;   // [rows]
  int* running;            // [slots], numbers of running sequences
};

int lookup_init(Lookup* lookup, int64_t expected);  // Status
void lookup_free(Lookup* lookup);
int lookup_add(Lookup* lookup, int byte);           // Status
// The longest match of the text with n drafted bytes behind it, among the last few places where four bytes are equal;
// of equal lengths the last place.
Match lookup_find(const Lookup& lookup, const uint8_t* drafted, int n);
// The i-th byte from a place on, in the text with n drafted bytes behind it; at its end they begin again.
int lookup_following(const Lookup& lookup, int32_t place, int64_t i, const uint8_t* drafted, int n);

double cost_of(const Costs& costs, int past, int rows, int sequences);
int probability_bin(double probability);
int match_bin(int length);
// Proposes nodes for a sequence, at most `limit` on a path; asks heads as long as they can pay at this rate of ids a
// second, in a pass that has `rows` rows without them.
void propose(Decoder* d, Sequence* q, int limit, int past, int rows, double rate);
// Chooses the nodes that are worth their rows, of all sequences together: ids expected less seconds times rate is
// highest. Limits: nodes of each sequence at most.
void plan(Decoder* d, Sequence** sequences, const int* limits, int count, int past, double rate);
// Counts what became of a draft: `path` are the nodes that were right, `choices` the ids after the last id and each.
void observe(Decoder* d, Sequence* q, const int* path, int accepted, const int32_t* choices, int past);

// decode.cpp ----------------------------------------------------------------------------------------------------------

// model.cpp: room for one sequence, rotations included; null if memory is short.
Cache* cache_new(const Model* model, int capacity, int kind);
void cache_free(Cache* cache);

// (ctypes) What one step gave to one sequence. Indices count within the block.
struct Record {
  int32_t slot;
  int32_t first, count;    // its ids in Block.ids, sources and logprobs; EOD is never among them
  int32_t drafted_first, drafted;  // its verified drafts in Block.drafted
  int32_t accepted;        // how many of them were right
  int32_t rows;            // of the pass
  int32_t asked;           // draft heads that were asked before the pass
  int32_t finish;          // Finish
  float expected;          // ids that the planner expected
};

// (ctypes) Results of some steps; arrays are the caller's. The most_ fields and arrays are set by the caller, the rest
// by decoder_run. One step needs up to `slots` records, and 48 ids and 47 drafts for each running sequence.
struct Block {
  int32_t most_records, most_ids, most_drafted;
  int32_t records, id_count, drafted_count;
  int32_t steps, ended;    // passes, and why no more: Ended
  Record* record;
  int32_t* ids;
  int8_t* sources;         // of each id: TRUNK, LOOKUP or a head
  double* logprobs;        // of each id, nats, 0 where the sequence did not ask; null: nobody asks
  int8_t* drafted;         // sources of the verified drafts of a record, those that were right first
};

// Exported, each as bl_<isa>_<name>; int is a Status where nothing else is said.
//
//   int decoder_new(Session* session, int32_t slots, int32_t capacity, int32_t cache_kind, int32_t trees,
//                   const Costs* costs, const Calibration* calibration, const Pairs* pairs, Decoder** out)
//       slots 1 … 64 sequences side by side, at most as many as the session has rows; capacity 2 … most_slots ids of a
//       context; cache_kind F32 or BF16; trees 0 or 1; pairs null for none. Everything is copied. Caches are made when
//       a slot is first used.
//   void decoder_free(Decoder*)
//   int decoder_set_costs(Decoder*, const Costs*)
//   int decoder_calibration(const Decoder*, Calibration* out)          copies out
//   int decoder_set_calibration(Decoder*, const Calibration*)
//   int64_t decoder_begin(Decoder*, int32_t slot, const int32_t* ids, int64_t n, const Settings*)
//       ids: EOD and the whole prompt. The slot must be free or finished. Gives the ids that decoder_prefill must read
//       (what a cache of any slot already holds is kept or copied), or -Status.
//   int64_t decoder_prefill(Decoder*, int32_t slot, int64_t most_ids)   ids still to be read, or -Status
//   int decoder_run(Decoder*, int32_t most_steps, int64_t most_microseconds, Block*)
//       Steps of all begun sequences, until most_steps, the time (0: no limit), the block's room, or a sequence that
//       finished ends the block. What decoder_prefill has left is read first. Time ends blocks, it changes no byte.
//       WRONG_ARGUMENT if not even one step fits the block.
//   int decoder_end(Decoder*, int32_t slot)                             frees the slot; its cache stays for reuse
//   int lookup_test(const uint8_t* text, int64_t n, const uint8_t* drafted, int32_t m, int32_t count,
//                   int32_t* place_and_length, uint8_t* following)      place -1: no match; following[count]
//   int plan_test(const Costs*, int32_t past, double rate, int32_t sequences, const int32_t* nodes,
//                 const double* path_probabilities, int32_t* taken)     chains behind each other; nodes taken of each
//   double cost_test(const Costs*, int32_t past, int32_t rows, int32_t sequences)

}  // namespace BL_NS
