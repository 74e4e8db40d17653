//! rynd: a quantised GGUF runtime for workstations.
//!
//! A model file is mapped, never copied. An architecture file turns its metadata into a list of steps, built once; an
//! executor replays that list for every run of tokens, reading the GGML blocks where they lie. This page is the tour; each
//! module's header says what it refuses to do.
//!
//! # A token's way
//!
//! text -> [`tokenizer`] ids -> [`generate::Scheduler`], which begins with what is remembered of them and computes the rest ->
//! embedding, layers, the rows whose logits are wanted ([`plan`], run by [`cpu`] and [`gpu`]) -> [`sampler`] id -> whole
//! characters -> [`generate::Event::Text`]. The engine has the only mutable state: what sequences remember.
//!
//! # The forward pass is a value
//!
//! [`plan::Op`] is a closed set of operations over numbered slots; [`models`] has one file an architecture that reads like
//! the paper's block diagram. `rynd inspect MODEL --plan` prints the list with shapes, formats and bytes a token;
//! `rynd inspect MODEL --trace-step IDS` runs it step by step beside the exact mode and names the first step that parts.
//!
//! # Speed on the CPU
//!
//! Decoding one token reads every active weight once: it is bound by memory, so the kernels of `rynd_quant` multiply the
//! blocks as they come from memory, int8 by int8, and `rynd bench` prints GB/s beside tok/s and the share of the machine's
//! own read bandwidth. A batch of prompt tokens is bound by arithmetic: tiles of weights are unpacked to int8 once and used
//! for all tokens, and a mixture of experts groups its tokens by expert first. Attention walks pages of 64 tokens with an
//! online softmax; keys are stored transposed, so no sum crosses lanes. The threads of a run walk the steps together, with a
//! spinning barrier between two steps.
//!
//! # A chat
//!
//! A conversation is rendered whole by the model's own template at every turn, and only what is new is computed. What outgrows
//! the context loses its oldest turns, never its system prompt. Many requests at once share each run of the model.
//!
//! # Nothing is computed twice
//!
//! What a sequence remembers is a value ([`engine::Session`]): ids, pages of 64 positions by page group (layers of one window
//! share a group), and recurrent states at marked positions. Pages are counted; a fork copies counters, and the run that
//! writes to a shared page copies that page. A state is never written in place: a run reads one and leaves another, so a run
//! that fails or is stopped has changed nothing. Sequences that are over are kept as branches of one tree; of those goes what
//! is cheapest to compute again, by measured costs and depth, times how likely it is wanted. What goes, and what is left at
//! the end, is written behind to files that are named by their content ([`cache`]), and read back when that beats computing.
//!
//! A rendered prompt is compared with what is remembered as bytes, in which control tokens are told apart from text that
//! spells them; up to the last control token where both agree the remembered ids are taken, so an answer that comes back
//! keeps the ids it was generated with.
//!
//! The scheduler is the only decode loop. Every sequence of a run says its phase, prompt, decode or draft, and the pager, the
//! recorder and the guard go by each token's own. Answers come first; prompts get what a budget of milliseconds allows by
//! measured costs, shared evenly; a request waits while another computes what it could begin with; when pages run out the
//! youngest makes way and goes on later.
//!
//! # One plan, several executors
//!
//! Placement gives every step a side and puts a `Move` in front of a value that is read on another one. The GPU executor
//! ([`gpu`]) prepares pipelines, bind groups and parameters at load; a token that runs on one GPU from end to end is one
//! submission, one pass and one read-back, the logits' or, when greedy, the id's. Weights whose blocks are not 16-byte
//! aligned are split into planes at upload. On NVIDIA, AMD and Intel single tokens are multiplied with activations rounded
//! to int8; exact runs never are. Counted from headers, with 128 MiB bindings; the times are weight bytes over the cards' peak
//! bandwidth, lower bounds and no measurements:
//!
//! | model | weights a token | dispatches (short, 4096 deep) | 4090, 1008 GB/s | M3 Ultra, 819 | 7900 XTX, 960 |
//! |--|--|--|--|--|--|
//! | Qwen2.5-Coder-1.5B Q4_K_M | 980 MB | 186, 214 | 0.97 ms | 1.20 ms | 1.02 ms |
//! | Qwen3-Coder-30B-A3B Q4_K_M (its shape) | 1.92 GB | 461, 509 | 1.90 ms | 2.34 ms | 2.00 ms |
//! | llama.cpp, published: Llama-3.2-3B Q4_K_M | 2.01 GB | | 2.99 ms (335 tok/s) | 6.47 ms (155) | |
//! | llama.cpp, published: Llama-3-8B Q4_K_M | 4.92 GB | | | | 9.45 ms (105.8) |
//! | llama.cpp, published: Qwen3-30B-A3B Q4_0 | | | 6.12 ms (163) | | |
//!
//! The published rows are of the models nearest in bytes for which figures of these cards were found (github.com:
//! geerlingguy/ai-benchmarks, issues 42 and 43, December 2025; ggml-org/llama.cpp, pull requests 26284 and 16834): they reach
//! 67%, 38% and 54% of the peaks with dense models, which is the yardstick for the bounds above.
//!
//! # Experts
//!
//! A mixture of experts that does not fit its GPUs is paged by what the router picks. Attention and dense layers take their
//! memory first; the rest is slots, each for one expert of a layout, on any GPU. Of a layer the GPU computes the experts that
//! it finds in its own slot map, with no read-back, while the CPU computes the others where they lie; the sums are added
//! once. Between two tokens the pager moves the experts whose combined recency and frequency (half-life 16 tokens) exceeds
//! that of the least valuable resident 1.3 times, at most one a layer and token on average, on a thread that nothing waits for.
//! The first tokens are computed with and without, and the cache is switched off when it loses; whole layers in its place are
//! predicted from the measured rates of the GPU and, where they should win, tried once.
//!
//! A batch of a prompt picks nearly every expert, and to bring one over the bus costs the same for any number of tokens. So of a
//! layer's missing experts those with the most tokens pass through the GPU in waves, packed into one half of a buffer while
//! the GPU computes with what lies in the other, and the CPU computes the rest at the same time: as many pass as make both
//! sides end together by the measured rates ([`experts::waves`]; all and none are cases of it). The slots are used and left
//! as they are, and the scores are fed. With a RAM tier only what lies in it passes while the CPU reads the rest. A layer
//! whose other steps run on the CPU sends its hits to the GPUs that hold them. For the 480B over PCIe 4 the model gives 181,
//! 361 and 723 tokens a second in batches of 2048, 4096 and 8192 when all layers pass.
//!
//! Caches start small: as the context grows, the least valuable experts make room, and come back when it shrinks, so a
//! GPU never holds more than its budget. What was learned is kept by the key of the model's routers and loaded at the
//! next start, also by runs without a GPU.
//!
//! The pager ([`experts::Pager`]) knows no clock and no device: `rynd experts replay` runs the same code over a trace.
//! Hit % (points behind Belady's optimum), uploads a layer and token and modelled tok/s over the decode of two public
//! traces, global pools:
//!
//! | trace | policy | 10% resident | 20% | 40% |
//! |--|--|--|--|--|
//! | Qwen3-30B-A3B | LRU | 50.5 (24.2), 2.97, 61 | 74.7 (14.5), 1.52, 116 | 94.1 (2.9), .36, 237 |
//! | | CRF, gated | 53.4 (21.3), .30, 119 | 75.2 (13.9), .50, 169 | 94.1 (2.8), .33, 238 |
//! | the same, topic switched | LRU | 50.3, 2.98, 60 | 74.4, 1.54, 115 | 93.3, .40, 225 |
//! | | CRF, gated | 52.4, .32, 117 | 73.8, .54, 160 | 92.5, .41, 222 |
//! | Gemma 4 26B-A4B | LRU | 49.7 (24.2), 3.02, 70 | 72.9 (14.8), 1.63, 125 | 93.1 (3.1), .41, 218 |
//! | | CRF, gated | 55.4 (18.5), .26, 126 | 74.6 (13.0), .51, 165 | 93.1 (3.2), .40, 218 |
//!
//! Uploading on a miss and waiting for it models 50, 82 and 175 tok/s for the first row. Tried and lost: half-lives of 32
//! and more (after a change of topic at 20% resident 70.0% at 32 and 65.3% at 64, against 74.0% at 16), a gate of 2.0, and
//! pinning by a slower score when slots are fewer than a token's picks.
//!
//! # Less memory than the model
//!
//! Dense weights stay mapped; with a budget, experts live in slots filled by direct reads that start when the picks are
//! known. Slots keep what the router picked often and lately. Sums keep their order, so a budget changes speed and
//! never a number. What lies in VRAM is the first to lose its slot in RAM. An 11.6 GB mixture under `--ram 4GiB` (4.295
//! GB) held 4.22 GB, page cache included, and under 2GiB (2.147 GB) 2.07 GB, and made 3.4 and 2.1 tokens a second where
//! the cost model gives 0.96 to 1.93 for 4GiB. Without a budget the tier's code costs nothing that could be measured: the
//! 0.5B as 16 experts generated 2.6% faster with it than without (median of 20 pairs in turn on an idle machine, 95%
//! interval 0.0 to 4.5%).
//!
//! # Quantising
//!
//! [`quantize::Source`] is a GGUF or a checkpoint as a list of tensors, [`quantize::Recipe`] chooses each one's format as
//! llama-quantize does, and slabs of rows are read ahead, encoded by all threads and written behind, so memory does not
//! grow with the model. Files get their names together, when all are complete.
//!
//! # What is true
//!
//! Logits, hidden states, router picks and greedy ids are tested against another implementation (`tests/golden.rs`), token
//! ids, chat renderings and block decoding likewise. Exact mode (`--exact`) widens weights to f32 and keeps activations and
//! cache in f32: it is the reference beside every fast path. Scalar code is the specification of every SIMD kernel.
//!
//! GPUs compute in f32 beside a CPU that rounds activations to int8, so a model that is on both computes neither's logits.
//! How far they lie from the exact ones, the 0.5B as 16 experts over 24 tokens of prose (`tests/spread.rs`, ignored: it needs a
//! model): rounding on the CPU alone moves the difference of the two best logits by up to 0.18, and those of the best to the
//! next nine by up to 0.35, where the two best lie 0.11 to 2.8 apart. One id of 24 is another: there they lie 0.137 apart,
//! and rounding moves them by 0.184. With experts on GPUs, the first eight of those tokens:
//!
//! | experts in slots | two best moved by | ten best | greedy ids as the exact ones | picks on GPUs |
//! |--|--|--|--|--|
//! | no GPU | 0.160 | 0.237 | 8 of 8 | |
//! | none | 0.089 | 0.162 | 8 of 8 | 0% |
//! | one of each layout | 0.155 | 0.180 | 8 of 8 | 2.8% |
//! | a quarter | 0.027 | 0.051 | 8 of 8 | 69.5% |
//! | half | 0.027 | 0.060 | 8 of 8 | 71.9% |
//! | all | 0.004 | 0.009 | 8 of 8 | 100% |
//! | half, at random | 0.019 | 0.040 | 8 of 8 | 85.1% |
//! | a quarter, others after every token | 0.089 | 0.110 | 8 of 8 | 24.6% |
//! | two GPUs, a quarter and a third, at random | 0.038 | 0.047 | 8 of 8 | 87.6% |
//! | three GPUs, an eighth, a quarter and a third, all moving | 0.046 | 0.056 | 8 of 8 | 63.4% |

// The order below is the law: a module may use only modules above it (tests/layering.rs checks it).
pub mod files;
pub mod sizes;
pub mod cores;
pub mod gguf;
pub mod catalog;
pub mod cache;
pub mod tokenizer;
pub mod chat;
pub mod sampler;
pub mod plan;
pub mod models;
pub mod weights;
pub mod experts;
pub mod backend;
pub mod cpu;
pub mod gpu;
pub mod engine;
pub mod generate;
pub mod complete;
pub mod quantize;
pub mod commands;
