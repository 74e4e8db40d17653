//! Requests that come and go over one model: the only loop that decodes.
//!
//! A run of the model computes the next token of every answer and stretches of the prompts that are being read, for the
//! weights are read once for all of them. Answers come first. While any is under way, prompts get what a budget of time
//! allows by the measured costs, so that no answer pauses for longer; among prompts the room is shared evenly. A request
//! begins with what the engine remembers of its prompt, and waits while another one computes what it could begin with. When
//! pages run out the youngest makes way: what it computed becomes part of the past, and it goes on when there is room.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::stream::Stream;
use super::{Event, Finish, GenerateError, Limits, Summary};
use crate::backend::Phase;
use crate::engine::{Engine, EngineError, Session, Span, Wanted, advance_unless, common_prefix};
use crate::plan::PAGE_TOKENS;
use crate::sampler::Sampler;
use crate::tokenizer::Tokenizer;

/// The longest that a running answer waits for prompts to be read, per token.
pub const PROMPT_BUDGET: Duration = Duration::from_millis(250);
/// Prompt tokens of a run beside answers, at least: below this a run costs hardly less.
const LEAST_SHARE: usize = 8;
/// Tokens between marks where nothing else asks for one.
const MARK_SPACING: usize = 1024;

/// One request.
pub struct Job {
    pub prompt: Vec<u32>,
    pub sampler: Sampler,
    pub limits: Limits,
}

/// A request that is over. What it computed is remembered by the engine.
pub struct Done {
    pub id: usize,
    /// An error is this request's own, such as a bias that forbids every token.
    pub result: Result<Summary, GenerateError>,
}

/// Breaks a request off, from any thread, within one layer of a long run.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Breaks it off.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Requests over one model.
pub struct Scheduler {
    running: Vec<Running>,
    waiting: VecDeque<Running>,
    next_id: usize,
    most: usize,
    budget: Duration,
    turn: usize,
    /// Pages ran out: nobody joins before somebody ends.
    full: bool,
}

struct Running {
    id: usize,
    session: Session,
    /// What is computed and what is to be: the prompt and the answer so far.
    ids: Vec<u32>,
    prompt_tokens: usize,
    marks: Vec<usize>, // rising
    sampler: Sampler,
    stream: Stream,
    cancel: Cancel,
    summary: Summary,
    started: Instant,
    /// Of this reading: tokens that were there when it began.
    held: usize,
    joined: u64,
}

impl Running {
    fn pending(&self) -> usize {
        self.ids.len() - self.session.ids().len()
    }

    /// Whether only the token that was chosen last is to be computed.
    fn decodes(&self) -> bool {
        self.ids.len() > self.prompt_tokens && self.pending() == 1
    }

    /// Of so many tokens those up to the next mark.
    fn up_to_mark(&self, share: usize) -> usize {
        let at = self.session.ids().len();
        let next = self.marks.iter().find(|&&mark| mark > at);
        next.map_or(share, |mark| share.min(mark - at))
    }
}

impl Scheduler {
    /// At most `most` requests run at once; others wait.
    pub fn new(most: usize) -> Scheduler {
        let most = most.max(1);
        Scheduler {
            running: vec![],
            waiting: VecDeque::new(),
            next_id: 0,
            most,
            budget: PROMPT_BUDGET,
            turn: 0,
            full: false,
        }
    }

    /// Answers wait for prompts at most this long, a token.
    pub fn with_budget(self, budget: Duration) -> Scheduler {
        Scheduler { budget, ..self }
    }

    /// Requests that are not over.
    pub fn len(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Requests that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a request in; its id is one that no other request of this scheduler had.
    pub fn add(&mut self, engine: &Engine, tokenizer: &Tokenizer, job: Job) -> Result<usize, GenerateError> {
        let (tokens, context) = (job.prompt.len(), engine.context());
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt.into());
        }
        if tokens > context {
            return Err(EngineError::ContextFull { tokens, context }.into());
        }
        engine.check_ids(&job.prompt)?;
        let summary = Summary {
            finish: Finish::Length,
            prompt_tokens: tokens,
            cached_tokens: 0,
            disk_tokens: 0,
            parted: None,
            generated_tokens: 0,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.push_back(Running {
            id,
            session: Session::new(),
            marks: if engine.is_marked() { marks(tokenizer, &job.prompt) } else { vec![] },
            stream: Stream::new(&job.limits, context - tokens),
            ids: job.prompt,
            prompt_tokens: tokens,
            sampler: job.sampler,
            cancel: Cancel::default(),
            summary,
            started: Instant::now(),
            held: 0,
            joined: 0,
        });
        Ok(id)
    }

    /// What breaks a request off; `None` when it is over.
    pub fn canceller(&self, id: usize) -> Option<Cancel> {
        self.running.iter().chain(&self.waiting).find(|running| running.id == id).map(|running| running.cancel.clone())
    }

    /// Breaks a request off; the next step returns it.
    pub fn cancel(&self, id: usize) {
        if let Some(cancel) = self.canceller(id) {
            cancel.cancel();
        }
    }

    /// Runs the model once and returns the requests that are over by it.
    ///
    /// `on_event` hears each request's events with its id and may break that request off; the others go on. After an
    /// error all requests are as they were before the step.
    pub fn step(
        &mut self,
        engine: &mut Engine,
        tokenizer: &Tokenizer,
        mut on_event: impl FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<Vec<Done>, GenerateError> {
        let mut done = self.sweep(engine);
        self.admit(engine);
        engine.set_busy(self.len() > 1);
        let shares = self.shares(engine);
        // Answers come first, also in the run: what their picks say of experts is heard before the prompts'.
        let with = |decodes: bool| {
            let running = self.running.iter().enumerate();
            running.filter(move |(_, running)| running.decodes() == decodes).map(|(at, _)| at)
        };
        let order: Vec<usize> = with(true).chain(with(false)).filter(|&at| shares[at] > 0).collect();
        match self.run(engine, &shares, &order) {
            Ok(()) => {}
            Err(e) if e.is_stopped() => {
                done.extend(self.sweep(engine));
                return Ok(done);
            }
            Err(EngineError::NoPages) => {
                done.extend(self.make_way(engine));
                return Ok(done);
            }
            Err(e) => return Err(e.into()),
        }
        let mut finished = vec![];
        for (span, at) in order.into_iter().enumerate() {
            let running = &mut self.running[at];
            let mut on_event = |event: Event| on_event(running.id, event);
            let reading = !running.cancel.is_cancelled() && running.ids.len() == running.prompt_tokens;
            if reading {
                let total = running.prompt_tokens - running.held;
                let read = running.session.ids().len() - running.held;
                let flow = on_event(Event::Prefill { done: read, total });
                if running.pending() == 0 {
                    running.ids.iter().for_each(|&id| running.sampler.accept(id));
                    running.summary.prefill = running.started.elapsed();
                    engine.keep(&running.session);
                }
                if flow.is_break() {
                    finished.push((at, Ok(Finish::Interrupted)));
                    continue;
                }
            }
            if running.cancel.is_cancelled() {
                finished.push((at, Ok(Finish::Interrupted)));
                continue;
            }
            if running.pending() > 0 {
                continue;
            }
            match choose(engine, span, &mut running.sampler) {
                Err(error) => finished.push((at, Err(error))),
                Ok(id) => {
                    let finish = running.stream.push(tokenizer, &mut running.sampler, id, &mut on_event);
                    // What ends an answer is no part of it.
                    if finish != Some(Finish::End) {
                        running.ids.push(id);
                    }
                    finished.extend(finish.map(|finish| (at, Ok(finish))));
                }
            }
        }
        // From the last down, so that the others keep their places.
        finished.sort_by_key(|(at, _)| *at);
        let over: Vec<Done> = finished.into_iter().rev().map(|(at, finish)| self.end(engine, at, finish)).collect();
        done.extend(over.into_iter().rev());
        Ok(done)
    }

    /// Breaks everything off; what was computed is remembered.
    pub fn stop(&mut self, engine: &mut Engine) -> Vec<Done> {
        self.running.iter().chain(&self.waiting).for_each(|running| running.cancel.cancel());
        let mut done = self.sweep(engine);
        done.sort_by_key(|done| done.id);
        done
    }

    /// Ends the requests that were cancelled.
    fn sweep(&mut self, engine: &mut Engine) -> Vec<Done> {
        let mut done = vec![];
        for at in (0..self.running.len()).rev() {
            if self.running[at].cancel.is_cancelled() {
                done.push(self.end(engine, at, Ok(Finish::Interrupted)));
            }
        }
        while let Some(at) = self.waiting.iter().position(|waiting| waiting.cancel.is_cancelled()) {
            let Some(waiting) = self.waiting.remove(at) else { break };
            done.push(over(engine, waiting, Ok(Finish::Interrupted)));
        }
        done
    }

    /// Lets those that wait begin, as far as there is room.
    fn admit(&mut self, engine: &mut Engine) {
        // Executors that were replaced took all memory with them.
        for running in self.running.iter_mut().filter(|running| !engine.holds(&running.session)) {
            running.session = Session::new();
        }
        self.full &= !self.running.is_empty();
        let mut at = 0;
        while !self.full && at < self.waiting.len() && self.running.len() < self.most.min(engine.batch()) {
            let waiting = &self.waiting[at];
            let kept = engine.remembered(&waiting.ids);
            // Another one is about to compute more of what this one begins with.
            let will = |other: &Running| {
                let common = common_prefix(&other.ids, &waiting.ids).min(waiting.ids.len() - 1);
                other.pending() > 1 && common > kept + PAGE_TOKENS && common > other.session.ids().len()
            };
            if self.running.iter().any(will) {
                at += 1;
                continue;
            }
            // Each one that runs may need another page soon.
            let needed = engine.needed_pages(&waiting.ids) + self.running.len();
            if !self.running.is_empty() && engine.free_pages() < needed {
                return;
            }
            let Some(mut running) = self.waiting.remove(at) else { return };
            let first = running.ids.len() == running.prompt_tokens;
            if first {
                running.summary.parted = engine.parted(&running.ids);
            }
            let (session, read) = engine.recall(&running.ids);
            running.held = session.ids().len();
            running.session = session;
            if first {
                (running.summary.cached_tokens, running.summary.disk_tokens) = (running.held, read);
            }
            running.joined = self.next_id as u64;
            self.running.push(running);
        }
    }

    /// How many tokens each request gets in the next run.
    fn shares(&mut self, engine: &Engine) -> Vec<usize> {
        let mut shares = vec![0; self.running.len()];
        let mut room = engine.batch();
        let mut depth = 0;
        for (share, _) in shares.iter_mut().zip(&self.running).filter(|(_, running)| running.decodes()) {
            *share = 1.min(room);
            room -= *share;
        }
        let answers = engine.batch() - room;
        let mut reading: Vec<usize> = (0..self.running.len()).filter(|&at| !self.running[at].decodes()).collect();
        if reading.is_empty() {
            return shares;
        }
        // Who is served first changes from run to run.
        self.turn = self.turn.wrapping_add(1);
        let first = self.turn % reading.len();
        reading.rotate_left(first);
        reading.iter().for_each(|&at| depth = depth.max(self.running[at].session.ids().len()));
        if answers > 0 {
            let costs = engine.memory().costs();
            let affordable = self.budget.as_secs_f64() / (costs.token + costs.depth * depth as f64).max(1e-9);
            room = room.min((affordable as usize).max(LEAST_SHARE));
        }
        for (i, &at) in reading.iter().enumerate() {
            let even = room.div_ceil(reading.len() - i);
            let running = &self.running[at];
            shares[at] = running.up_to_mark(running.pending().min(even));
            room -= shares[at];
        }
        // What short ones leave goes to the first that can use it.
        for &at in &reading {
            let running = &self.running[at];
            let more = running.up_to_mark(running.pending().min(shares[at] + room));
            room -= more - shares[at];
            shares[at] = more;
        }
        shares
    }

    /// The run itself.
    fn run(&mut self, engine: &mut Engine, shares: &[usize], order: &[usize]) -> Result<(), EngineError> {
        let largest = (0..shares.len()).max_by_key(|&at| shares[at]);
        let most_of_it = largest.filter(|&at| 2 * shares[at] > shares.iter().sum());
        let stop = most_of_it.map(|at| self.running[at].cancel.clone());
        let mut spans = vec![];
        let mut running: Vec<Option<&mut Running>> = self.running.iter_mut().map(Some).collect();
        for &at in order {
            let (Some(running), share) = (running[at].take(), shares[at]) else { continue };
            let phase = if running.decodes() { Phase::Decode } else { Phase::Prompt };
            let Running { session, ids, sampler, marks, .. } = running;
            let start = session.ids().len();
            let end = start + share;
            let wanted = match end == ids.len() {
                false => Wanted::None,
                true if sampler.takes_largest() => Wanted::Best,
                true => Wanted::Last,
            };
            let mark = marks.binary_search(&end).is_ok();
            spans.push(Span { session, ids: &ids[start..end], wanted, phase, mark });
        }
        if spans.is_empty() {
            return Ok(());
        }
        advance_unless(engine, &mut spans, stop.as_ref().map(|stop| &*stop.0)).map(|_| ())
    }

    /// Pages have run out: the youngest gives up its own and waits, or fails when it is alone.
    fn make_way(&mut self, engine: &mut Engine) -> Vec<Done> {
        let Some(at) = (0..self.running.len()).max_by_key(|&at| self.running[at].id) else { return vec![] };
        if self.running.len() == 1 {
            return vec![self.end(engine, at, Err(EngineError::NoPages.into()))];
        }
        let mut running = self.running.remove(at);
        engine.keep(&running.session);
        running.session = Session::new();
        self.waiting.push_front(running);
        self.full = true;
        vec![]
    }

    fn end(&mut self, engine: &mut Engine, at: usize, finish: Result<Finish, GenerateError>) -> Done {
        self.full = false;
        over(engine, self.running.remove(at), finish)
    }
}

/// A request is over.
fn over(engine: &mut Engine, running: Running, finish: Result<Finish, GenerateError>) -> Done {
    let Running { id, session, ids, stream, mut summary, started, .. } = running;
    engine.keep_said(&session, &ids[session.ids().len()..]);
    summary.generated_tokens = stream.tokens();
    match summary.prefill {
        Duration::ZERO => summary.prefill = started.elapsed(),
        prefill => summary.decode = started.elapsed().saturating_sub(prefill),
    }
    Done { id, result: finish.map(|finish| Summary { finish, ..summary }) }
}

/// The next token of a span of the run before.
fn choose(engine: &mut Engine, span: usize, sampler: &mut Sampler) -> Result<u32, GenerateError> {
    if sampler.takes_largest()
        && let Some(best) = engine.rows().best(span)
    {
        return Ok(best);
    }
    // Where only the largest was computed and there is none, the sampler says why.
    engine.last_logits()?;
    Ok(sampler.sample(engine.rows().logits(span))?)
}

/// Where others may branch off: behind every turn, before the last token, whose logits are wanted again when the same prompt
/// comes again, and at even distances between.
fn marks(tokenizer: &Tokenizer, prompt: &[u32]) -> Vec<usize> {
    let turns = prompt.iter().enumerate().filter(|(_, id)| tokenizer.is_end(**id)).map(|(at, _)| at + 1);
    let mut marks: Vec<usize> = turns.chain([prompt.len() - 1, prompt.len()]).filter(|&mark| mark > 0).collect();
    marks.sort_unstable();
    marks.dedup();
    let mut all = vec![];
    let mut before = 0;
    for mark in marks {
        let parts = (mark - before).div_ceil(MARK_SPACING);
        all.extend((1..parts).map(|part| before + (mark - before) * part / parts));
        all.push(mark);
        before = mark;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_lie_behind_turns_and_no_further_apart_than_the_spacing() {
        use crate::gguf::Gguf;
        use crate::tokenizer::Vocab;
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/qwen2/model.gguf");
        let tokenizer = Tokenizer::new(Vocab::from_gguf(&Gguf::open(&path).unwrap()).unwrap()).unwrap();
        let end = tokenizer.ends()[0];
        let mut prompt = vec![1; 3000];
        (prompt[99], prompt[2998]) = (end, end);
        let found = marks(&tokenizer, &prompt);
        assert_eq!((found[0], found[found.len() - 2], found[found.len() - 1]), (100, 2999, 3000));
        assert!(found.windows(2).all(|pair| pair[0] < pair[1] && pair[1] - pair[0] <= MARK_SPACING), "{found:?}");
        assert_eq!(marks(&tokenizer, &[5]), [1]);
    }
}
